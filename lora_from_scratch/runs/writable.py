"""Where results are to go: tried at once, so that a folder that cannot be made does not lose a training."""

import os
from pathlib import Path

from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats.whole_files import appearing

RESULTS = "results.json"  # in the folder of a run


class _Tried(Exception):
    """Ends a trial: `appearing` then leaves everything as it was."""


def check_place(folder: Path, flag: str = "--output-dir", asked: Path | None = None) -> None:
    """Write into the folder, and take everything back. UserError says why what was asked cannot be done.

    Of several processes the first one tries it for all: they would be in each other's way.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        if folder.is_symlink() and not folder.exists():
            raise FileNotFoundError(0, "a link to nothing")
        existing = next(part for part in (folder, *folder.parents) if part.exists())
        if not existing.is_dir():
            raise NotADirectoryError(0, f"{quoted(existing, length=60)} is not a folder")
        with appearing(folder) as aside:
            (aside / RESULTS).touch()
            raise _Tried
    except _Tried:
        pass
    except OSError as error:
        kind = "no permission to write there" if isinstance(error, PermissionError) else error.strerror
        where = quoted(asked or folder, length=60)
        raise UserError(f"{flag} {where} cannot be written: {kind}; name another") from error


def check_new_file(path: Path, flag: str) -> None:
    """UserError if there is something of that name, or nothing can be written beside it."""
    check_place(path.parent, flag, path)
    if path.exists() or path.is_symlink():
        raise UserError(f"{flag} {quoted(path, length=60)} is there already; name another, or move it away")

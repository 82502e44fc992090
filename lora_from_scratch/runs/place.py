"""Where results are to go: tried at once, so that a folder that cannot be made does not lose a training."""

from pathlib import Path

from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.files import appearing

RESULTS = "results.json"  # in the folder of a run


class _Tried(Exception):
    """Ends a trial: `appearing` then leaves everything as it was."""


def check_place(folder: Path, flag: str = "--output-dir") -> None:
    """Write into the folder, and take everything back. UserError says why that cannot be done."""
    try:
        if folder.is_symlink() and not folder.exists():
            raise FileNotFoundError(0, "a link to nothing")
        existing = next(part for part in (folder, *folder.absolute().parents) if part.exists())
        if not existing.is_dir():
            raise NotADirectoryError(0, f"{existing} is not a folder")
        with appearing(folder) as aside:
            (aside / RESULTS).touch()
            raise _Tried
    except _Tried:
        pass
    except OSError as error:
        kind = "no permission to write there" if isinstance(error, PermissionError) else error.strerror
        raise UserError(f"{flag} {folder} cannot be written: {kind}; name another") from error


def check_new_file(path: Path, flag: str) -> None:
    """UserError if there is something of that name, or nothing can be written beside it."""
    check_place(path.parent, flag)
    if path.exists() or path.is_symlink():
        raise UserError(f"{flag} {path} is there already: name another, or move it away")

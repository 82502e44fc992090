"""Files that appear whole, or not at all."""

import errno
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LITTER_SECONDS = 3600  # nobody writes a folder for that long
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """`with appearing(folder) as aside:` what is written into `aside` moves into `folder` at the end.

    A folder that was not there appears at once with all its files; into one that was, they move one by one,
    each whole. Missing parents are made. After an error in the block (`OSError` for a full disk, an
    interruption) everything is as it was, and `aside` is gone; what a killed process left of it goes the next
    time that the folder is written, an hour later or more.
    """
    folder = folder.absolute()
    place = folder if folder.exists() else folder.parent
    made = [path for path in (place, *place.parents) if not path.exists()]
    prefix, aside = _prefix(folder), None
    try:
        place.mkdir(parents=True, exist_ok=True)
        for where in {place, folder.parent}:
            _clear_litter(where, prefix, LITTER_SECONDS)
        aside = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
        yield aside
        for path in (*aside.iterdir(), aside):
            _publish(path)
        if place == folder:
            for path in sorted(aside.iterdir()):
                path.replace(folder / path.name)
            aside.rmdir()
        else:
            aside.rename(folder)
        _flush_folder(place)
    except BaseException as error:
        if isinstance(error, OSError):
            _name_as_known(error, str(place / prefix), folder)
        if aside:
            shutil.rmtree(aside, ignore_errors=True)
        for path in made:  # unless somebody has put something there meanwhile
            with suppress(OSError):
                path.rmdir()
        raise


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file in the place of the one that is there, if any: a reader sees one of them whole, the old
    one after an `OSError` (a full disk)."""
    with appearing(path.parent) as aside:
        (aside / path.name).write_bytes(contents)


def clear_litter(folder: Path) -> None:
    """Remove at once what killed processes left of files they wrote into a folder that nobody else writes,
    and of that folder itself, which appears with its first files."""
    for where in (folder, folder.parent):
        _clear_litter(where, _prefix(folder), 0)


def _name_as_known(error: OSError, aside: str, folder: Path) -> None:
    """Let an error speak of the folder that was asked for, not of the one whose path begins with `aside`."""
    mark = re.compile(re.escape(aside) + r"\w+")
    error.args = tuple(mark.sub(lambda _: str(folder), a) if isinstance(a, str) else a for a in error.args)
    for which in ("filename", "filename2"):
        if isinstance(path := getattr(error, which), str):  # to set what is not there would show as None
            setattr(error, which, mark.sub(lambda _: str(folder), path))
    if error.errno in NO_ROOM and error.filename is None:  # a file that is written to does not say which
        error.filename = str(folder)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.part-"


def _clear_litter(place: Path, prefix: str, age: float) -> None:
    for path in place.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):  # its owner may be faster
            if time.time() - path.stat().st_mtime >= age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flush_folder(path: Path) -> None:
    """Make the names in it last, where the system lets a folder be flushed (Windows does not)."""
    if os.name == "posix":
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not know how
                raise
        finally:
            os.close(number)


def _publish(path: Path) -> None:
    """Flush to disk, and let others read what a writer left for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
    if path.is_file():
        with path.open("r+b") as file:  # Windows flushes only what it may write
            os.fsync(file.fileno())

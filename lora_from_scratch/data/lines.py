"""The bytes and the lines of a file, compressed or not, and what a file is not."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lora_from_scratch.errors import UserError, first_line

POINTER = b"version https://git-lfs"
LINE_END = re.compile(rb"\r\n|\r|\n")
DAMAGE = (OSError, EOFError, zlib.error)  # what reading raises; the last two are of a damaged .gz


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, which are \\n, \\r\\n or \\r."""
    try:
        with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            yield from text
    except UnicodeDecodeError:
        data = bytes_of(path)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line = len(LINE_END.findall(data, 0, error.start)) + 1
            utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
            what = "UTF-16" if utf16 else "not UTF-8"
            raise UserError(f"{path}, line {line}: {what}; save the file as UTF-8") from error
    except DAMAGE as error:
        raise unreadable(path, error) from error


def bytes_of(path: Path) -> bytes:
    try:
        with _open(path) as file:
            return file.read()
    except DAMAGE as error:
        raise unreadable(path, error) from error


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")


def refuse_by_content(path: Path) -> None:
    """Files that are something else, whatever they are called."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{path}: an Excel workbook or another archive; export the sheet as CSV (UTF-8)")
    refuse_pointer(path)


def refuse_pointer(path: Path) -> None:
    """UserError for the note that git-lfs leaves in the place of a file not fetched yet."""
    try:
        with path.open("rb") as file:
            pointer = file.read(len(POINTER)) == POINTER
    except OSError as error:
        raise unreadable(path, error) from error
    if pointer:
        raise UserError(f"{path}: only a pointer of git-lfs, not the file; fetch it with git lfs pull")


def unreadable(path: Path, error: Exception) -> UserError:
    why = getattr(error, "strerror", None) or first_line(error)
    return UserError(f"{path}: cannot be read ({why}); check the file, or give another")

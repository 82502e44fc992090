"""Files of labelled sentences, as rows of text: .tsv, .csv and .jsonl."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_from_scratch.errors import UserError

SUFFIXES = (".tsv", ".csv", ".jsonl")
USUAL = {"text": ("sentence", "text"), "label": ("label",)}  # where a column is, if nobody says


@dataclass(frozen=True)
class Columns:
    """Where text and label are; None takes the usual names."""

    text: str | None = None
    label: str | None = None

    def found_in(self, names: Iterable[str], place: str) -> list[str]:
        """The names of the text's and of the label's column. Raises UserError where one is not there."""
        found = []
        for what, usual in USUAL.items():
            asked = getattr(self, what)
            wanted = (asked,) if asked else usual
            there = [name for name in wanted if name in names]
            if not there:
                missing, choice = " or ".join(wanted), ", ".join(names)
                raise UserError(f"{place}: no column {missing!r}; name one of {choice} with --{what}-column")
            found.append(there[0])
        return found


@dataclass(frozen=True)
class Row:
    """One raw example, stripped, and where it stands, for error messages."""

    text: str
    label: str
    place: str


def make_row(text: object, label: object, place: str) -> Row:
    """A row of two values. Raises UserError where one of them is empty."""
    row = Row(str(text).strip(), str(label).strip(), place)
    if not row.text or not row.label:
        raise UserError(f"{place}: the {'label' if row.text else 'text'} is empty")
    return row


def read_rows(path: Path, columns: Columns) -> list[Row]:
    """Every row of a file.

    Raises UserError where it cannot be read, holds no example, lacks a column, or has an empty value.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a dataset file ends in one of {', '.join(SUFFIXES)}")
    read, rows, names = _jsonl if path.suffix == ".jsonl" else _delimited, [], None
    for place, values in read(path, _read_text(path)):
        names = names or columns.found_in(values, place)  # the first row decides
        for name in names:
            if values.get(name) is None:
                raise UserError(f"{place}: no value in column {name!r}")
        rows.append(make_row(values[names[0]], values[names[1]], place))
    if not rows:
        raise UserError(f"{path} holds no examples")
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _delimited(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    # A .tsv is GLUE's kind, where a quotation mark is only a character; a .csv quotes its fields.
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {"strict": True}
    reader = csv.reader(text.splitlines(keepends=True), **dialect)
    lines = filter(None, reader)  # without the empty ones
    try:
        header = next(lines, [])
        for fields in lines:
            place = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                raise UserError(f"{place}: {len(fields)} columns, where the header has {len(header)}")
            yield place, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{place}: a JSON object is expected, with a text and a label")
        yield place, row

"""Files of labelled sentences, as rows of text: .tsv, .csv and .jsonl."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_from_scratch.errors import UserError

SUFFIXES = (".tsv", ".csv", ".jsonl")
TEXT_COLUMNS = ("sentence", "text")
LABEL_COLUMN = "label"


@dataclass(frozen=True)
class Columns:
    """Where text and label are; None takes the usual names."""

    text: str | None = None
    label: str | None = None

    def found_in(self, there: Iterable[str], place: str) -> tuple[str, str]:
        """The names of both columns.

        Raises:
            UserError: one of them is not there.
        """
        names = list(map(str, there))
        return (
            _pick(self.text, TEXT_COLUMNS, names, place, "--text-column"),
            _pick(self.label, (LABEL_COLUMN,), names, place, "--label-column"),
        )


@dataclass(frozen=True)
class Row:
    """One raw example, stripped, and where it stands, for error messages."""

    text: str
    label: str
    place: str


def make_row(text: object, label: object, place: str) -> Row:
    """A row of two values.

    Raises:
        UserError: one of them is empty.
    """
    row = Row(str(text).strip(), str(label).strip(), place)
    for what in ("text", "label"):
        if not getattr(row, what):
            raise UserError(f"{place}: the {what} is empty")
    return row


def read_rows(path: Path, columns: Columns) -> list[Row]:
    """Every row of a file.

    Raises:
        UserError: the file cannot be read, holds no example, lacks a column, or has an empty value.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a dataset file ends in one of {', '.join(SUFFIXES)}")
    text = _read_text(path)
    names: tuple[str, str] | None = None
    rows = []
    for place, values in _jsonl(path, text) if path.suffix == ".jsonl" else _delimited(path, text):
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
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _delimited(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    # A .tsv is GLUE's kind, where a quotation mark is only a character; a .csv quotes its fields.
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {"strict": True}
    reader = csv.reader(text.splitlines(keepends=True), **dialect)
    header: list[str] | None = None
    try:
        for fields in reader:
            place = f"{path}, line {reader.line_num}"
            if not fields:
                continue
            if header is None:
                header = fields
            elif len(fields) != len(header):
                raise UserError(f"{place}: {len(fields)} columns, where the header has {len(header)}")
            else:
                yield place, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{place}: a JSON object is expected, with a text and a label")
        yield place, row


def _pick(wanted: str | None, usual: tuple[str, ...], names: list[str], place: str, flag: str) -> str:
    for name in (wanted,) if wanted else usual:
        if name in names:
            return name
    missing = wanted or " or ".join(usual)
    raise UserError(f"{place}: no column {missing!r}; name one of {', '.join(names)} with {flag}")

"""Files of cells between delimiters: .csv and .tsv."""

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path

from lora_from_scratch.data.large_files import read_at_once
from lora_from_scratch.data.lines import lines_of
from lora_from_scratch.data.rows import Numbered, Table, folded
from lora_from_scratch.errors import UserError

SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # a line above the header, for Excel
ENCLOSED = re.compile('"(?:[^"]|"")*"')


def open_delimited(path: Path, delimiters: str) -> Table:
    """A line for each row, the first one the header.

    Cells stand between the first of the delimiters that the header holds. A quotation mark encloses a cell;
    in a file of tabs only where `_encloses` finds so: GLUE writes bare ones. Lines end as `lines_of`
    says.
    """
    lines = lines_of(path)
    blank = []
    while (first := next(lines, "")) and (not first.strip() or SEPARATOR.fullmatch(first)):
        if said := SEPARATOR.fullmatch(first):
            delimiters = said[1]
        blank.append("\n")
    if "\0" in first:
        raise UserError(f"{path}, line {len(blank) + 1}: UTF-16 or no text at all; save the file as UTF-8")
    delimiter = _delimiter(first, delimiters)
    encloses = delimiter != "\t" or _encloses(path, first)
    quoting = {"strict": True} if encloses else {"quoting": csv.QUOTE_NONE}
    csv.field_size_limit(2**31 - 1)  # the module's own default cuts a cell at 131,072 characters
    reader = csv.reader(chain(blank, [first], lines), delimiter=delimiter, **quoting)
    rows = _records(path, reader)
    _, header = next(rows, (0, []))
    table = Table(str(path), "line", header, lambda names: _cells(path, header, rows, names))
    if reader.line_num > 1:  # blank lines above the header, or a line break in it
        return table
    return replace(table, at_once=partial(read_at_once, path, delimiter, encloses, header))


def _delimiter(header: str, candidates: str) -> str:
    for candidate in candidates:
        try:
            if len(next(csv.reader([header], delimiter=candidate), [])) > 1:
                return candidate
        except csv.Error:
            continue
    return candidates[0]


def _encloses(path: Path, header: str) -> bool:
    """Whether the quotation marks of a file of tabs enclose cells, as pandas writes them.

    They do where each cell with one is enclosed by two, and those inside it are doubled; or where only so
    the rows have as many cells as the header.
    """
    tabs, marks, bare = header.count("\t"), False, False
    for line in lines_of(path):
        if line.count("\t") != tabs and line.strip("\r\n"):
            return _fits_enclosed(path, tabs + 1)
        if '"' in line:
            marks = True
            cells = line.rstrip("\r\n").split("\t")
            bare = bare or any('"' in cell and not ENCLOSED.fullmatch(cell) for cell in cells)
    return marks and not bare


def _fits_enclosed(path: Path, width: int) -> bool:
    try:
        rows = csv.reader(lines_of(path), delimiter="\t", strict=True)
        return all(len(row) in (0, width) for row in rows)
    except csv.Error:
        return False


def _records(path: Path, reader: "csv._reader") -> Numbered:
    """The lines of a reader that are not empty, each with the number of the line where it starts."""
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        why = "a quotation mark opens a cell here, and nothing closes it; close it"
        if "end of data" not in str(error):
            why = f'{error}; inside an enclosed cell write a quotation mark twice ("")'
        raise UserError(f"{path}, line {start}: {why}") from error


def _cells(path: Path, header: list[str], rows: Numbered, names: Sequence[str]) -> Numbered:
    places, width = [header.index(name) for name in names], len(header)
    choose = itemgetter(*places) if len(places) > 1 else lambda cells: [cells[i] for i in places]
    if names == header:  # whose names may not all differ
        choose = list
    again, last = list(map(folded, names if len(names) > 1 else header)), folded(names[-1])
    for number, cells in rows:
        if len(cells) != width:
            if len(cells) == 1 and not cells[0].strip():
                continue
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns, where the header has {width}; enclose a text "
                "that holds the delimiter in quotation marks, or mend the header"
            )
        chosen = choose(cells)
        if folded(chosen[-1]) == last and again == list(map(folded, chosen if len(chosen) > 1 else cells)):
            raise UserError(
                f"{path}, line {number}: the header again (files put together?); delete this line"
            )
        yield number, chosen

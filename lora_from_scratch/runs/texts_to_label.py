"""Texts to label: lines, or a column of a table, which is then written again with its labels.

Nothing heavy is imported: what is wrong with them is told at once.
"""

import csv
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lora_from_scratch.data.files import is_table, open_table
from lora_from_scratch.data.lines import lines_of, refuse_by_content
from lora_from_scratch.data.rows import SURROGATE, Rows, Selection, collect, whole
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats.whole_files import appearing

if TYPE_CHECKING:
    from lora_from_scratch.runs.predict import Prediction

ADDED = ("predicted_label", "probability")
ENDINGS = (".csv", ".tsv", ".jsonl")  # of a table that is written
WAITING = "waiting for texts, one a line; end with Ctrl-D (on Windows Ctrl-Z and Enter)"


def given(texts: Sequence[str], drop_blank: bool) -> Iterator[str]:
    """The texts themselves. UserError names the first that is blank."""
    blank = [number for number, text in enumerate(texts, start=1) if not text.strip()]
    if blank and not drop_blank:
        raise UserError(
            f"text {blank[0]} of {len(texts)} is blank; leave it out, or give it no label with --drop-blank"
        )
    return iter(texts)


def lines(file: Path | None, drop_blank: bool) -> Iterator[str]:
    """The lines of a UTF-8 file, or of stdin, without their ends.

    UserError if it is a table, not UTF-8, or has blank lines: of a file at once, of a stream as they come.
    """
    if file is None:
        if sys.stdin is None:
            raise UserError("no texts: standard input is closed; give them as arguments or with --file")
        if sys.stdin.isatty():
            print(WAITING, file=sys.stderr)
        return _stream(sys.stdin.buffer, "stdin", drop_blank)
    if is_table(file.name):
        raise UserError(
            f"{quoted(file, length=60)} is a table, --file takes lines of text; label it with "
            "--dataset FILE --text-column NAME --output labelled.csv"
        )
    if not file.exists() or file.is_dir():
        raise UserError(f"--file {file}: no such file; name one with a text on each line")
    if not file.is_file():  # a pipe can be read only once
        return _stream(file.open("rb"), str(file), drop_blank)
    refuse_by_content(file)
    numbered = enumerate(lines_of(file), start=1)
    blank, count = [], 0
    for count, line in numbered:
        if not line.strip():
            blank.append(count)
    _tell_blank(str(file), "line", blank, count, drop_blank)
    return (line.rstrip("\r\n") for line in lines_of(file))


def read_table(path: Path, text_column: str | None, drop_blank: bool, output: Path) -> Rows:
    """The texts of a table that are not blank. UserError if the output cannot hold it with its labels."""
    if output.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {quoted(output, length=60)} must end in .csv, .tsv or .jsonl")
    if not path.is_file():
        raise UserError(f"--dataset {path} is no file; give predict one table, such as reviews.csv")
    table = open_table(path)
    for name in ADDED:
        if name in table.columns:
            raise UserError(f"{path} has a column {name} already, which is to be added; rename it there")
    if len(set(table.columns)) < len(table.columns) and output.suffix.lower() == ".jsonl":
        raise UserError(f"{path}: two columns have one name, which a .jsonl cannot hold; write a .csv")
    (column,) = Selection(text_column=text_column).found_in(table.columns, table.source, ["text"])
    blank, count = [], 0

    def triples() -> Iterator[tuple[int, object, int]]:
        nonlocal count
        for number, (text,) in table.pick([column]):
            count += 1
            if (drop_blank and (text is None or text != text)) or (
                isinstance(text, str) and not text.strip()
            ):
                blank.append(number)
            else:
                yield number, text, 0  # its label, if it has one, is none of our business
        _tell_blank(table.source, table.unit, blank, count, drop_blank)

    return collect(triples(), table.source, table.unit)


def write_table(path: Path, rows: Rows, predictions: Iterable["Prediction"], output: Path) -> None:
    """Every row of the table with its label and probability, in their order; nothing after a blank text.

    The file appears whole or not at all. It is UTF-8; a .csv and a .tsv enclose what needs it in quotation
    marks. UserError if the table or the output has become another meanwhile.
    """
    table, answers = open_table(path), zip(rows.numbers, predictions, strict=True)
    with appearing(output.parent) as aside:
        with (aside / output.name).open("w", encoding="utf-8", newline="") as file:
            write = _writer(file, output.suffix.lower(), [*table.columns, *ADDED])
            due, prediction = next(answers, (None, None))
            for number, cells in table.rows:
                if number == due:
                    write([*cells, prediction.label, round(prediction.probability, 6)])
                    due, prediction = next(answers, (None, None))
                else:
                    write([*cells, None, None])
        if due is not None:
            raise UserError(f"{path} has changed while it was labelled; start again")
        if output.exists():
            raise UserError(f"--output {output} is there by now; name another")


def _writer(file: TextIO, suffix: str, columns: list[str]) -> Callable[[list[object]], object]:
    if suffix == ".jsonl":

        def write(cells: list[object]) -> None:
            row = dict(zip(columns, map(_finite, cells), strict=True))
            file.write(whole(json.dumps(row, ensure_ascii=False, default=str)) + "\n")

        return write
    writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writerow(map(_cell, columns))
    return lambda cells: writer.writerow(map(_cell, cells))


def _cell(value: object) -> str:
    value = _finite(value)
    if isinstance(value, (list, dict)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else whole(str(value))


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _stream(source: io.BufferedIOBase, name: str, drop_blank: bool) -> Iterator[str]:
    """Lines as they come. What is not UTF-8 is let through first, so that its line can be named."""
    text = io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape")
    try:
        for number, line in enumerate(text, start=1):
            if not line.isascii() and SURROGATE.search(line):
                raise UserError(f"{name}, line {number}: not UTF-8; convert it to UTF-8 first")
            if not line.strip() and not drop_blank:
                raise UserError(
                    f"{name}, line {number}: the text is blank; give it no label with --drop-blank"
                )
            yield line.rstrip("\n")
    finally:
        text.detach()  # stdin is not ours to close


def _tell_blank(source: str, unit: str, blank: Sequence[int], count: int, drop_blank: bool) -> None:
    if blank:
        told = f"{len(blank):,} of {count:,} texts {'is' if len(blank) == 1 else 'are'} blank"
        told += f" ({unit} {blank[0]}{' first' if len(blank) > 1 else ''})"
        if not drop_blank:
            raise UserError(f"{source}: {told}; give them no label with --drop-blank")
        warnings.warn(
            f"{source}: {told}, and {'gets' if len(blank) == 1 else 'get'} no label, as --drop-blank asks",
            stacklevel=3,
        )

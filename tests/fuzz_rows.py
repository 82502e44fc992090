"""Files of rows for `fuzz.py`: any bytes in each of the formats."""

from __future__ import annotations

import csv
import datetime
import decimal
import functools
import gzip
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pyarrow
from fuzz_files import TOKENS, VALUES, Files, altered, damaged, outcome, require
from pyarrow import parquet

from lora_from_scratch.data import files as reader
from lora_from_scratch.data.labels import label_ids, label_names
from lora_from_scratch.data.rows import Rows, Selection

FORMATS = ("csv", "tsv", "json", "jsonl", "ndjson", "parquet")
# fmt: off
TEXTS = [
    "a fine film", "dull", "so, so", 'they said "no"', '"all of it"', "café 🎬", "one\x85two", "tab\there",
    "two\nlines", " spaces ", "", "1", "5.0", "x" * 40, "form\x0cfeed", "semi;colon", "nan", "half \ud83d",
    "text", "\\n",
]
LABELS = [
    ["0", "1"], ["neg", "pos"], ["1", "2", "3"], ["-1", "1"], ["0.0", "1.0"], ["a", "A", " a"],
    ["0.25", "x", ""],
]
COLUMNS = [["text", "label"]] * 15 + [
    ["label", "id", "text"], ["sentence", "label", "text"], [" Text", "LABEL "], ["a", "b"],
    ["text", "text", "label"], ["text\n2", "label"], ["", "label"], ["\ud800x", "y"],
]
# fmt: on


def maker(format: str) -> Callable[[random.Random], Files]:
    return functools.partial(make, format)


def make(format: str, draw: random.Random) -> Files:
    """A file as a writer leaves it, damaged mostly; or bytes, or what stands between cells, at random."""
    kind = draw.random()
    if kind < 0.08:
        contents = draw.randbytes(draw.randrange(300))
    elif kind < 0.2:
        contents = b"".join(draw.choices(TOKENS[:-12], k=draw.randrange(12)))
    else:
        written = _WRITERS[format](draw)
        contents = written if kind < 0.5 else (_by_lines if kind < 0.6 else damaged)(draw, written)
    name = f"d.{draw.choice((format, format, format.upper()))}"
    if draw.random() < 0.03 and format != "parquet":
        contents = contents.decode(errors="replace").encode(
            draw.choice(("utf-16", "utf-16-le", "latin-1")), "replace"
        )
    compressed = draw.random() < 0.25
    if compressed:
        contents = gzip.compress(contents, 1, mtime=0)
        contents = damaged(draw, contents) if draw.random() < 0.4 else contents
    if compressed != (draw.random() < 0.03):
        name += draw.choice((".gz", ".GZ"))
    return {name: contents}


def _by_lines(draw: random.Random, contents: bytes) -> bytes:
    """Lines once more, moved or left out; a header stands in the middle where files are put together."""
    lines = contents.splitlines(keepends=True)
    for _ in range(draw.choice((1, 1, 2))):
        part = draw.choice((lines, lines[:1], draw.choices(lines, k=1) if lines else []))
        at = draw.choice((0, len(lines), draw.randrange(len(lines) + 1)))
        lines[at : at + draw.choice((0, 0, 0, 1))] = part
    return b"".join(lines)


def check(case: Files) -> bool:
    ((name, contents),) = case.items()
    path = Path(name)
    path.write_bytes(contents)
    try:
        first = _read(path, Selection())
        if isinstance(first, str) and "--drop-blank" in first:
            again = _read(path, Selection(drop_blank=True))
            require(isinstance(again, Rows) or "--drop-blank" not in again, again)
            first = again
        return isinstance(first, Rows) and isinstance(_ids(path, first), list)
    finally:
        path.unlink()


def _read(path: Path, selection: Selection) -> Rows | str:
    """The rows of a file, read one by one and at once alike; or why not."""
    found = []
    for large in (reader.LARGE, 0) if reader.suffix(path) in (".csv", ".tsv") else (reader.LARGE,):
        with mock.patch.object(reader, "LARGE", large):
            rows = outcome(lambda: reader.read_rows(path, selection), path)
        if isinstance(rows, str):
            require(rows.count(str(path)) == 1, f"a sentence inside another: {rows}")
        else:
            _check_rows(rows, str(path))
            rows = Rows(rows.texts, rows.labels, list(rows.numbers), rows.source, rows.unit, rows.label_names)
        found.append(rows)
    require(found[0] == found[-1], f"at once otherwise than row by row: {found}")
    return found[0]


def _check_rows(rows: Rows, source: str) -> None:
    require(len(rows.texts) == len(rows.labels) == len(rows.numbers) >= 1, "columns of other lengths")
    for text in rows.texts:
        require(type(text) is str and text and text == text.strip() and text.encode(), f"a text: {text!r}")
    for label in rows.labels:
        if isinstance(label, str):
            require(label and label == label.strip() and label.encode(), f"a label: {label!r}")
        else:
            require(
                type(label) is int or (type(label) is float and math.isfinite(label)), f"a label: {label!r}"
            )
    numbers = list(rows.numbers)
    require(numbers == sorted(set(numbers)) and numbers[0] >= 1, f"numbers: {numbers[:9]}")
    require(
        rows.place(0) == f"{source}, {rows.unit} {numbers[0]}" and rows.unit in ("line", "row"), rows.place(0)
    )


def _ids(path: Path, rows: Rows) -> list[int] | str:
    names = outcome(lambda: label_names(rows), path)
    if isinstance(names, str):
        return names
    require(len(names) >= 2 and len(set(names)) == len(names), f"names of labels: {names}")
    require(all(type(name) is str and name and name.encode() for name in names), f"names of labels: {names}")
    ids = outcome(lambda: label_ids(rows, names), path)
    if isinstance(ids, list):
        require(len(ids) == len(rows), "not an id for each row")
        require(all(type(one) is int and 0 <= one < len(names) for one in ids), f"ids: {ids[:9]}")
    else:
        require(rows.label_names is not None, f"a label of the file's own: {ids}")
    return ids


def _table(draw: random.Random) -> tuple[list[str], list[list[str]]]:
    columns, labels = draw.choice(COLUMNS), draw.choice(LABELS)
    texts = draw.choice((TEXTS, TEXTS[:9]))
    rows = [[draw.choice(texts) for _ in columns] for _ in range(draw.choice((0, 1, 4, 6, 8, 8, 12, 12, 20)))]
    for row in rows:
        for i, column in enumerate(columns):
            if column.strip().lower() == "label":
                row[i] = draw.choice(labels)
    return columns, rows


def _delimited(draw: random.Random, usual: str) -> bytes:
    columns, rows = _table(draw)
    text, delimiter = io.StringIO(), draw.choice((usual, usual, usual, ",", "\t", ";", "|"))
    end = draw.choice(("\n", "\n", "\r\n", "\r"))
    if draw.random() < 0.6:
        quoting = draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([columns, *rows])
    else:  # as GLUE writes, and as people do by hand
        for row in (columns, *rows):
            text.write(delimiter.join(row).replace("\n", " ") + end)
    return text.getvalue().encode(errors="replace")


def _objects(draw: random.Random) -> list[object]:
    columns, rows = _table(draw)
    numbers = draw.random() < 0.5
    objects: list[object] = []
    for row in rows:
        cells = [int(cell) if numbers and cell.isdecimal() else cell for cell in row]
        objects.append(dict(zip(columns, cells, strict=True)))
    if objects and draw.random() < 0.3:
        altered(draw, objects, VALUES)
    return objects


def _array(draw: random.Random) -> bytes:
    return json.dumps(_objects(draw), ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 1))).encode(
        errors="replace"
    )


def _lines(draw: random.Random) -> bytes:
    ascii, end = draw.random() < 0.5, draw.choice(("\n", "\n", "\r\n", "\r"))
    return end.join(json.dumps(row, ensure_ascii=ascii) for row in _objects(draw)).encode(errors="replace")


def _json(draw: random.Random) -> bytes:
    return draw.choice((_array, _lines))(draw)


def _parquet(draw: random.Random) -> bytes:
    return draw.choice(_parquet_files())


@functools.cache
def _parquet_files() -> list[bytes]:
    """A few of each type, encoding and compression; damage alone differs afterwards."""
    day, n = datetime.datetime(2020, 1, 2), 8
    texts = pyarrow.array(["fine", "dull", "so so", "café", "x" * 60, "a", "b", " c "])
    many = pyarrow.array([f"text {i % 7}" for i in range(3000)])
    labels: list[pyarrow.Array] = [
        pyarrow.array([0, 1] * 4),
        pyarrow.array([0, 1] * 4, pyarrow.uint64()),
        pyarrow.array([0.0, 1.0] * 4, pyarrow.float32()),
        pyarrow.array(["neg", "pos"] * 4),
        pyarrow.array(["neg", "pos"] * 4).dictionary_encode(),
        pyarrow.array([True, False] * 4),
        pyarrow.array([day, None] * 4),
        pyarrow.array([day.date()] * n),
        pyarrow.array([datetime.timedelta(1)] * n),
        pyarrow.array([decimal.Decimal("1.5")] * n),
        pyarrow.array([b"\xff", b"a"] * 4),
        pyarrow.array([[1], []] * 4),
        pyarrow.array([{"a": 1}, {"a": None}] * 4),
        pyarrow.nulls(n),
        pyarrow.array([1, None] * 4),
        pyarrow.array([0.5, float("nan")] * 4),
        pyarrow.array([0, 1] * 4, pyarrow.timestamp("ns", "Europe/Paris")),
    ]
    tables = [pyarrow.table({"text": texts, "label": label}) for label in labels]
    tables.append(
        pyarrow.table({"text": many, "label": pyarrow.array([0, 1] * 1500), "id": pyarrow.nulls(3000)})
    )
    tables.append(
        pyarrow.table(
            {"text": texts.cast(pyarrow.large_string()), "label": labels[3].cast(pyarrow.string_view())}
        )
    )
    for names in (["b", "a"], ["a"], ["a", "a"], ["\ud800", "b"], [1, None], "ab", [], ["", "b"]):
        features = {"label": {"names": names, "_type": "ClassLabel"}, "text": {"dtype": "string"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        tables.append(tables[0].replace_schema_metadata(metadata))
    contents = []
    for i, table in enumerate(tables):
        buffer = io.BytesIO()
        options = {"compression": ("snappy", "none", "gzip", "zstd", "lz4", "brotli")[i % 6]}
        options |= {"use_dictionary": i % 4 != 1, "data_page_version": ("1.0", "2.0")[i % 3 == 2]}
        parquet.write_table(table, buffer, **options, store_schema=i % 5 != 4)
        contents.append(buffer.getvalue())
    return contents


_WRITERS: dict[str, Callable[[random.Random], bytes]] = {
    "csv": lambda draw: _delimited(draw, ","),
    "tsv": lambda draw: _delimited(draw, "\t"),
    "json": _json,
    "jsonl": _lines,
    "ndjson": _lines,
    "parquet": _parquet,
}

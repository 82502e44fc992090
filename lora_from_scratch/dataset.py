"""Labelled sentences: from the hub (or its cache), from files, or bundled."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_from_scratch.config import BUNDLED, DEFAULT_DATASET
from lora_from_scratch.errors import UserError
from lora_from_scratch.model import NotFound

BUNDLED_DATASET = Path(__file__).parent / "bundled" / "mini-reviews"
SUFFIXES = (".tsv", ".csv", ".jsonl")
TEXT_COLUMNS = ("sentence", "text")
LABEL_COLUMN = "label"
GLUE_SST2 = ("nyu-mll/glue", "sst2")  # hub id, configuration
HELD_OUT = 0.1  # of a single file, for validation


@dataclass(frozen=True)
class Split:
    """Sentences and their label ids, in the order of their source."""

    sentences: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.sentences)

    def take(self, indices: list[int]) -> Split:
        return Split([self.sentences[i] for i in indices], [self.labels[i] for i in indices])


@dataclass(frozen=True)
class Dataset:
    """What a run learns from and is measured on. `label_names[i]` is the name of label id i."""

    train: Split
    validation: Split
    label_names: list[str]
    validation_name: str  # where the validation sentences come from, for tables and captions

    def fingerprint(self) -> str:
        """SHA-256 over every sentence and label, in order: equal data, equal fingerprint."""
        digest = hashlib.sha256(json.dumps(self.label_names).encode())
        for split in (self.train, self.validation):
            digest.update(json.dumps([split.sentences, split.labels]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Row:
    """One raw example, stripped, and where it stands, for error messages."""

    text: str
    label: str
    place: str


def _row(text: object, label: object, place: str) -> Row:
    row = Row(str(text).strip(), str(label).strip(), place)
    for what in ("text", "label"):
        if not getattr(row, what):
            raise UserError(f"{place}: the {what} is empty")
    return row


def load_dataset(name: str, text_column: str | None = None, label_column: str | None = None) -> Dataset:
    """Load a dataset by what its name is.

    "bundled"; a .tsv, .csv or .jsonl file, of which a tenth of the rows is held out for validation, always
    the same ones; a folder with train.* and dev.* or validation.*; else a hub id, whose files come from the
    hub or its cache.

    Integer labels must be 0..n-1. Others become ids in sorted order, and keep their names. The sentences are
    stripped: GLUE's end in a space, which GPT-2 would read as a token of its own.

    Raises:
        NotFound: nothing of that name is here, on the hub or in its cache.
        UserError: a file cannot be read, a column is missing, a row is empty, a label is out of range.
    """
    train, validation, validation_name, label_names = _rows(name, text_column, label_column)
    label_names = label_names or _label_names(train)
    return Dataset(
        _encode(train, label_names), _encode(validation, label_names), label_names, validation_name
    )


def _rows(
    name: str, text_column: str | None, label_column: str | None
) -> tuple[list[Row], list[Row], str, list[str] | None]:
    """Rows of both splits, the name of the second, and the label names where the source decides them."""
    path = BUNDLED_DATASET if name == BUNDLED else Path(name)
    if path.is_dir():
        train_file, validation_file = _find(path, "train"), _find(path, "dev", "validation")
        train = list(_read(train_file, text_column, label_column))
        return train, list(_read(validation_file, text_column, label_column)), validation_file.name, None
    if path.is_file():
        rows = list(_read(path, text_column, label_column))
        train, validation = _hold_out(rows)
        return train, validation, f"{len(validation)} rows held out of {path.name}", _label_names(rows)
    if path.suffix in SUFFIXES or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise NotFound(f"dataset {name!r}: no such file or folder")
    return _from_hub(name, text_column, label_column)


def load_labelled(
    name: str, label_names: list[str], text_column: str | None = None, label_column: str | None = None
) -> tuple[Split, str]:
    """Sentences to measure a trained model on, and where they come from: a file whole, else validation.

    Labels are ids or names of `label_names`; otherwise as `load_dataset`.

    Raises:
        NotFound, UserError: see `load_dataset`; also a label that the model does not know.
    """
    path = Path(name)
    if name != BUNDLED and path.is_file():
        return _encode(list(_read(path, text_column, label_column)), label_names), path.name
    train, validation, validation_name, names = _rows(name, text_column, label_column)
    names = names or _label_names(train)
    numbered = all(map(_is_integer, names)) or all(map(_is_integer, label_names))  # no names to compare
    if names != label_names and not (numbered and len(names) <= len(label_names)):
        raise UserError(
            f"dataset {name!r} has the labels {', '.join(names)}, the model has {', '.join(label_names)}"
        )
    return _encode(validation, names), validation_name


def _find(folder: Path, *stems: str) -> Path:
    candidates = [folder / (stem + suffix) for stem in stems for suffix in SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(
        f"dataset folder {str(folder)!r} holds none of {', '.join(path.name for path in candidates)}"
    )


def _read(path: Path, text_column: str | None, label_column: str | None) -> Iterator[Row]:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a dataset file ends in one of {', '.join(SUFFIXES)}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error
    rows = _jsonl_rows(path, text) if path.suffix == ".jsonl" else _delimited_rows(path, text)
    empty = True
    for place, row in rows:
        if empty:  # the first row decides the column names
            text_column = _pick(text_column, TEXT_COLUMNS, row, place, "--text-column")
            label_column = _pick(label_column, (LABEL_COLUMN,), row, place, "--label-column")
            empty = False
        for column in (text_column, label_column):
            if row.get(column) is None:
                raise UserError(f"{place}: no value in column {column!r}")
        yield _row(row[text_column], row[label_column], place)
    if empty:
        raise UserError(f"{path} holds no examples")


def _delimited_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
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


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
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


def _pick(wanted: str | None, usual: tuple[str, ...], row: dict[str, object], place: str, flag: str) -> str:
    for column in (wanted,) if wanted else usual:
        if column in row:
            return column
    missing = wanted or " or ".join(usual)
    columns = ", ".join(str(column) for column in row)
    raise UserError(f"{place}: no column {missing!r}; name one of {columns} with {flag}")


def _hold_out(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    held_out = max(1, round(HELD_OUT * len(rows)))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[i] for i in sorted(order[held_out:])], [rows[i] for i in sorted(order[:held_out])]


def _label_names(rows: list[Row]) -> list[str]:
    """Names in the order of their ids: integers stand for themselves, anything else is sorted."""
    distinct = sorted({row.label for row in rows})
    if len(distinct) < 2:
        raise UserError(
            f"{rows[0].place}: label {distinct[0]!r}, as everywhere: there is nothing to tell apart"
        )
    return [str(i) for i in range(len(distinct))] if all(map(_is_integer, distinct)) else distinct


def _encode(rows: list[Row], label_names: list[str]) -> Split:
    """Sentences and label ids. An integer is an id, also where the ids have names."""
    ids = {name: i for i, name in enumerate(label_names)}
    sentences, labels = [], []
    for row in rows:
        label = row.label
        if label not in ids and not (_is_integer(label) and 0 <= int(label) < len(ids)):
            if _is_integer(label):
                raise UserError(
                    f"{row.place}: label {label} is outside 0..{len(ids) - 1}; number labels from 0"
                )
            raise UserError(f"{row.place}: label {label!r} is none of {', '.join(label_names)}")
        sentences.append(row.text)
        labels.append(ids[label] if label in ids else int(label))
    return Split(sentences, labels)


def _is_integer(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _from_hub(
    name: str, text_column: str | None, label_column: str | None
) -> tuple[list[Row], list[Row], str, list[str] | None]:
    """Rows of both splits, the name of the second, and the names of the label ids where the hub has them."""
    import datasets  # a second's import, needed here alone

    path = GLUE_SST2 if name == DEFAULT_DATASET else (name,)
    try:
        splits = datasets.load_dataset(*path)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"dataset {name!r} does not load from the hub: {str(error).splitlines()[0]}"
        ) from error
    except OSError as error:
        raise NotFound(
            f"dataset {name!r} is neither here nor in the hub's cache, and the hub does not give it: "
            f"check the name and the network, or use --dataset {BUNDLED}"
        ) from error
    second = next((split for split in ("validation", "dev", "test") if split in splits), None)
    if "train" not in splits or second is None:
        raise UserError(f"dataset {name!r} has splits {', '.join(splits)}; it needs train and validation")
    rows = []
    for split in ("train", second):
        place = f"dataset {name!r}, split {split}"
        columns = dict.fromkeys(splits[split].column_names)
        texts = splits[split][_pick(text_column, TEXT_COLUMNS, columns, place, "--text-column")]
        label_column = _pick(label_column, (LABEL_COLUMN,), columns, place, "--label-column")
        labels = splits[split][label_column]
        rows.append(
            [
                _row(text, label, f"{place}, row {i}")
                for i, (text, label) in enumerate(zip(texts, labels, strict=True))
            ]
        )
    return *rows, second, getattr(splits["train"].features[label_column], "names", None)

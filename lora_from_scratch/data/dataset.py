"""Labelled sentences in two splits: from the hub (or its cache), from files, or bundled; labels made ids."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_from_scratch.data.hub import rows_of_hub
from lora_from_scratch.data.rows import SUFFIXES, Columns, Row, read_rows
from lora_from_scratch.errors import NotFound, UserError

BUNDLED = "bundled"
BUNDLED_DATASET = Path(__file__).parents[1] / "bundled" / "mini-reviews"
DEFAULT = "sst2"


@dataclass(frozen=True)
class Split:
    """Sentences and their label ids, in the order of their source."""

    sentences: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.sentences)

    def take(self, indices: list[int]) -> "Split":
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


def load_dataset(name: str, columns: Columns | None = None) -> Dataset:
    """Load a dataset by what its name is.

    "bundled"; a .tsv, .csv or .jsonl file, of which always the same tenth of the rows is held out for
    validation; a folder with train.* and dev.* or validation.*; else a hub id, from the hub or its cache.

    Integer labels must be 0..n-1. Others become ids in sorted order, and keep their names. The sentences are
    stripped: GLUE's end in a space, which GPT-2 would read as a token of its own.

    Raises NotFound where nothing of that name is here, on the hub or in its cache; UserError where a file
    cannot be read, a column is missing, a row is empty, or a label is out of range.
    """
    train, validation, source, names = _rows(name, columns or Columns())
    return Dataset(_split(train, names), _split(validation, names), names, source)


def load_labelled(name: str, known: list[str], columns: Columns | None = None) -> tuple[Split, str]:
    """Sentences to measure a trained model on, and where they come from: a file whole, else validation.

    `known` are the names of the labels that the model knows; the labels here are these, or ids. Raises what
    `load_dataset` does; UserError also for a label that the model does not know.
    """
    columns, path = columns or Columns(), Path(name)
    if name != BUNDLED and path.is_file():
        return _split(read_rows(path, columns), known), path.name
    _, validation, source, names = _rows(name, columns)
    numbered = all(map(_is_integer, names)) or all(map(_is_integer, known))  # no names to compare
    if names != known and not (numbered and len(names) <= len(known)):
        ours, theirs = ", ".join(names), ", ".join(known)
        raise UserError(f"dataset {name!r} has the labels {ours}, the model has {theirs}")
    return _split(validation, names), source


def display_name(name: str) -> str:
    return "mini-reviews (bundled)" if name == BUNDLED else name


def _rows(name: str, columns: Columns) -> tuple[list[Row], list[Row], str, list[str]]:
    """Rows for training and for validation, where the latter come from, and the labels by their ids."""
    path = BUNDLED_DATASET if name == BUNDLED else Path(name)
    if path.is_dir():
        files = _find(path, "train"), _find(path, "dev", "validation")
        train, validation = (read_rows(file, columns) for file in files)
        return train, validation, files[1].name, _label_names(train)
    if path.is_file():
        rows = read_rows(path, columns)
        held_out = max(1, round(0.1 * len(rows)))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        parts = order[held_out:], order[:held_out]
        train, validation = ([rows[i] for i in sorted(part)] for part in parts)
        return train, validation, f"{held_out} rows held out of {path.name}", _label_names(rows)
    if path.suffix in SUFFIXES or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise NotFound(f"dataset {name!r}: no such file or folder")
    train, validation, source, names = rows_of_hub(name, columns)
    return train, validation, source, names or _label_names(train)


def _find(folder: Path, *stems: str) -> Path:
    candidates = [stem + suffix for stem in stems for suffix in SUFFIXES]
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise UserError(f"dataset folder {str(folder)!r} holds none of {', '.join(candidates)}")


def _label_names(rows: list[Row]) -> list[str]:
    """The labels in the order of their ids: integers stand for themselves, anything else is sorted."""
    distinct = sorted({row.label for row in rows})
    if len(distinct) < 2:
        place = rows[0].place
        raise UserError(f"{place}: label {distinct[0]!r}, as everywhere: there is nothing to tell apart")
    return [str(i) for i in range(len(distinct))] if all(map(_is_integer, distinct)) else distinct


def _split(rows: list[Row], names: list[str]) -> Split:
    """Labels are names, or integers: ids, also where the ids have names."""
    ids, labels = {name: i for i, name in enumerate(names)}, []
    for row in rows:
        if row.label not in ids and not _is_integer(row.label):
            raise UserError(f"{row.place}: label {row.label!r} is none of {', '.join(names)}")
        labels.append(ids[row.label] if row.label in ids else int(row.label))
        if labels[-1] not in range(len(ids)):
            last = len(ids) - 1
            raise UserError(f"{row.place}: label {row.label} is outside 0..{last}; number labels from 0")
    return Split([row.text for row in rows], labels)


def _is_integer(label: str) -> bool:
    return label.removeprefix("-").isdecimal()

"""Labelled sentences in two splits: from the hub (or its cache), from files, or bundled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_from_scratch.data.hub import rows_of_hub
from lora_from_scratch.data.labels import is_integer, label_ids, label_names
from lora_from_scratch.data.rows import SUFFIXES, Columns, Row, read_rows
from lora_from_scratch.errors import NotFound, UserError

BUNDLED = "bundled"
BUNDLED_DATASET = Path(__file__).parents[1] / "bundled" / "mini-reviews"
DEFAULT = "sst2"
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


def load_dataset(name: str, columns: Columns | None = None) -> Dataset:
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
    train, validation, validation_name, names = _rows(name, columns or Columns())
    names = names or label_names(train)
    return Dataset(_split(train, names), _split(validation, names), names, validation_name)


def load_labelled(name: str, known: list[str], columns: Columns | None = None) -> tuple[Split, str]:
    """Sentences to measure a trained model on, and where they come from: a file whole, else validation.

    Args:
        known: the names of the labels that the model knows; labels are these, or ids.

    Raises:
        NotFound, UserError: see `load_dataset`; also a label that the model does not know.
    """
    columns, path = columns or Columns(), Path(name)
    if name != BUNDLED and path.is_file():
        return _split(read_rows(path, columns), known), path.name
    train, validation, validation_name, names = _rows(name, columns)
    names = names or label_names(train)
    numbered = all(map(is_integer, names)) or all(map(is_integer, known))  # no names to compare
    if names != known and not (numbered and len(names) <= len(known)):
        raise UserError(
            f"dataset {name!r} has the labels {', '.join(names)}, the model has {', '.join(known)}"
        )
    return _split(validation, names), validation_name


def display_name(name: str) -> str:
    return "mini-reviews (bundled)" if name == BUNDLED else name


def _rows(name: str, columns: Columns) -> tuple[list[Row], list[Row], str, list[str] | None]:
    """Rows of both splits, the name of the second, and the label names where the source decides them."""
    path = BUNDLED_DATASET if name == BUNDLED else Path(name)
    if path.is_dir():
        train_file, validation_file = _find(path, "train"), _find(path, "dev", "validation")
        rows = (read_rows(file, columns) for file in (train_file, validation_file))
        return *rows, validation_file.name, None
    if path.is_file():
        rows = read_rows(path, columns)
        train, validation = _hold_out(rows)
        return train, validation, f"{len(validation)} rows held out of {path.name}", label_names(rows)
    if path.suffix in SUFFIXES or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise NotFound(f"dataset {name!r}: no such file or folder")
    return rows_of_hub(name, columns)


def _find(folder: Path, *stems: str) -> Path:
    candidates = [folder / (stem + suffix) for stem in stems for suffix in SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(
        f"dataset folder {str(folder)!r} holds none of {', '.join(path.name for path in candidates)}"
    )


def _hold_out(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    held_out = max(1, round(HELD_OUT * len(rows)))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[i] for i in sorted(order[held_out:])], [rows[i] for i in sorted(order[:held_out])]


def _split(rows: list[Row], names: list[str]) -> Split:
    return Split([row.text for row in rows], label_ids(rows, names))

"""Labelled sentences in two splits, as ids: from the hub (or its cache), from files, or bundled."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lora_from_scratch.data.files import is_table, read_rows
from lora_from_scratch.data.hub import SECOND, is_hub_name, rows_of_hub, warn_of_shadow
from lora_from_scratch.data.labels import label_ids, label_names, plain
from lora_from_scratch.data.rows import Rows, Selection
from lora_from_scratch.errors import NotFound, UserError, quoted

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


def load_dataset(name: str, selection: Selection | None = None) -> Dataset:
    """Load a dataset by what its name is.

    "bundled"; a file (see `data/files.py`), of which always the same tenth of each class is held out for
    validation; a folder with a file for each split; else a hub id, from the hub or its cache.

    Labels become ids as `data/labels.py` says. The sentences are stripped: GLUE's end in a space, which GPT-2
    would read as a token of its own.

    Raises NotFound where nothing of that name is here, on the hub or in its cache; UserError where a file
    cannot be read, a column is missing, a text is blank, or a label is none.
    """
    selection, path = selection or Selection(), _path(name)
    if path.is_dir():
        files = _file(path, "train", selection.train_split), _validation_file(path, selection)
        train, validation = (read_rows(file, selection) for file in files)
        source, names = files[1].name, label_names(train)
    elif path.is_file():
        rows = read_rows(path, selection)
        names, (train, validation) = label_names(rows), _held_out(rows)
        source = f"{len(validation)} rows held out of {path.name}"
    else:
        train, validation, source = _from_hub(name, selection)
        names = label_names(train)
    splits = (Split(rows.texts, label_ids(rows, names)) for rows in (train, validation))
    return Dataset(*splits, names, source)


def load_labelled(name: str, known: list[str], selection: Selection | None = None) -> tuple[Split, str]:
    """Sentences to measure a trained model on, and where they come from: a file whole, else validation.

    `known` are the names of the labels that the model knows; the labels here are these, or ids. Raises what
    `load_dataset` does; UserError also for a label that the model does not know.
    """
    selection, path = selection or Selection(), _path(name)
    if path.is_file() or path.is_dir():
        file = path if path.is_file() else _validation_file(path, selection)
        rows, source = read_rows(file, selection), file.name
    else:
        _, rows, source = _from_hub(name, selection)
    advice = "say what the model's ids mean: --label-names, in their order" if plain(known) else "rename it"
    return Split(rows.texts, label_ids(rows, known, advice)), source


def display_name(name: str) -> str:
    return "mini-reviews (bundled)" if name == BUNDLED else name


def _path(name: str) -> Path:
    warn_of_shadow(name)
    return BUNDLED_DATASET if name == BUNDLED else Path(name)


def local_files(name: str, selection: Selection, whole: bool = False) -> list[Path]:
    """The files that `load_dataset`, or `load_labelled` (`whole`), reads; none where it asks the hub.

    Raises what they do about the name.
    """
    path = _path(name)
    if path.is_dir():
        train = [] if whole else [_file(path, "train", selection.train_split)]
        return [*train, _validation_file(path, selection)]
    if not path.is_file():
        _refuse_path(name)
    return [path] if path.is_file() else []


def _held_out(rows: Rows) -> tuple[Rows, Rows]:
    """The same tenth of each class for whoever asks, as the second part; both in their source's order."""
    if len(rows) < 2:
        raise UserError(f"{rows.source}: a single row cannot be trained on and measured; add others")
    import torch  # here alone: the rest of this file answers mistakes before seconds of imports

    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    counts = Counter(rows.labels)
    several = [i for i in order if counts[rows.labels[i]] > 1] or order  # of a class of one, none to spare
    by_class = sorted(several, key=lambda i: str(rows.labels[i]))
    size = min(max(1, round(0.1 * len(rows))), len(several))
    held_out = {by_class[(2 * k + 1) * len(by_class) // (2 * size)] for k in range(size)}
    parts = ([i for i in range(len(rows)) if (i in held_out) == kept] for kept in (False, True))
    return tuple(map(rows.take, parts))


def _validation_file(folder: Path, selection: Selection) -> Path:
    return _file(folder, "validation", selection.validation_split, *SECOND)


def _file(folder: Path, split: str, asked: str | None, *usual: str) -> Path:
    """The one file of a split, case of its name aside. Raises UserError where there is none, or a second."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_table(path.name))
    for stem in (asked,) if asked else usual or (split,):
        found = [path for path in files if path.name.lower().split(".")[0] == stem.lower()]
        if len(found) > 1:
            names = quoted(*(path.name for path in found))
            raise UserError(f"dataset folder {folder}: both {names} are there; move one away")
        if found:
            return found[0]
    wanted = asked or " or ".join(usual or (split,))
    there = f"holds {quoted(*(path.name for path in files))}" if files else "holds no file of rows"
    raise UserError(
        f"dataset folder {folder} {there}; it needs {wanted}.csv, or another name as --{split}-split"
    )


def _from_hub(name: str, selection: Selection) -> tuple[Rows, Rows, str]:
    _refuse_path(name)
    return rows_of_hub(name, selection)


def _refuse_path(name: str) -> None:
    if is_table(name) or not is_hub_name(name):
        raise NotFound(f"dataset {name!r}: no such file or folder; check the path")

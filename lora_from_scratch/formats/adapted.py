"""A model as one of the methods left it: how it is loaded from a folder, whatever format that is in."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GPT2ForSequenceClassification
from transformers import PreTrainedTokenizerBase as Tokenizer

from lora_from_scratch.base.load import lasting_name, load_model, load_tokenizer
from lora_from_scratch.base.precisions import BASE_PRECISIONS, FLOAT, KEY, rounded
from lora_from_scratch.errors import UserError, first_line, quoted
from lora_from_scratch.formats.table import FORMATS, format_named

HEAD_WEIGHT = "score.weight"
PIPELINE = """\
```python
from transformers import pipeline

classify = pipeline("text-classification", model="{folder}")
classify("a text to classify")
```"""
MERGED = f"""\
In transformers, after merging into a plain checkpoint:

```bash
python -m lora_from_scratch merge --adapter . --out merged
```

{PIPELINE.format(folder="merged")}"""


@dataclass(frozen=True)
class Adapted:
    """A model ready to use, with its tokenizer and the name of its base (None: it is whole without one)."""

    model: GPT2ForSequenceClassification
    tokenizer: Tokenizer
    base_name: str | None
    method: str | None = None  # what made it ready, where that has to be known to do so again
    settings: Mapping[str, object] = field(default_factory=dict)  # the method's own

    @property
    def label_names(self) -> list[str]:
        """The name of each label id; raises `UserError` unless there are two at least, each with a name."""
        names = self.model.config.id2label
        if len(names) < 2:
            raise UserError(
                f"the model has {len(names)} outputs, a regression's: train it with one for each class"
            )
        if sorted(names) != list(range(len(names))) or not all(
            isinstance(name, str) for name in names.values()
        ):
            raise UserError(f"config.json: id2label needs a name for each id from 0 to {len(names) - 1}")
        return [names[i] for i in range(len(names))]


def load_adapted(folder: Path | str, base_name: str | None = None) -> Adapted:
    """The adapted model of a folder: one of ours, one of PEFT's, or a plain checkpoint; in eval mode.

    `base_name` is the base to put the adapter on, where it is not the one that the files name. Raises
    `UserError` if the folder holds nothing of the kind, or what is there is damaged or does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the one that a run printed at its end")
    formats = [format_named(name) for name in FORMATS]
    for format in formats:
        if format.is_in(folder):
            adapted = format.load(folder, base_name)
            adapted.model.eval()
            return adapted
    holders = [path for path in _folders_below(folder) if any(format.is_in(path) for format in formats)]
    if holders:
        raise UserError(f"{folder} holds no adapter, but {holders[-1]} does: name that folder")
    there = " or ".join(format.FILES[0] for format in formats)
    raise UserError(f"{folder} holds no adapter: name a folder with {there}")


def load_base(path: Path, name: str | None, metadata: dict[str, str], head: torch.Tensor | None) -> Adapted:
    """The base that a file of weights names, with as many labels as the head in that file has.

    What was trained on a rounded base gets the same one again, its matrices dense. Raises `UserError` if no
    base is named, the head is missing or a regression's, its label names do not fit it, or the base was
    rounded as nothing here rounds.
    """
    if not name:
        raise UserError(f"{path.parent}: no base is named; name it with --model")
    if head is None or head.ndim != 2:
        raise UserError(
            f"{path}: the classifier head, {HEAD_WEIGHT}, is missing: train one, in PEFT with "
            "task_type SEQ_CLS"
        )
    if len(head) < 2:
        what = f"{HEAD_WEIGHT} is {tuple(head.shape)}, one output, a regression's"
        raise UserError(f"{path}: {what}: only classifiers are adapted here, with an output for each class")
    labels = _label_names(path, metadata, tuple(head.shape))
    if (precision := metadata.get(KEY, FLOAT)) not in BASE_PRECISIONS:
        what = f"{quoted(precision)} is no precision of a base that this version knows"
        raise UserError(f"{path}: {what}: update lora-from-scratch")
    tokenizer = load_tokenizer(name)
    model = load_model(name, labels, tokenizer.pad_token_id)
    return Adapted(rounded(model, precision), tokenizer, lasting_name(name))


def refuse_pickle(folder: Path, pickle: str, wanted: str) -> None:
    """Raise `UserError` if weights are there as a pickle alone: reading one runs whatever code is in it."""
    if (folder / pickle).exists() and not (folder / wanted).exists():
        raise UserError(
            f"{folder / pickle} is a pickle, never opened here: "
            f'weights = torch.load("{pickle}", weights_only=True); '
            f'safetensors.torch.save_file(weights, "{wanted}")'
        )


def _label_names(path: Path, metadata: dict[str, str], head: tuple[int, ...]) -> list[str]:
    if "labels" not in metadata:
        return [f"LABEL_{i}" for i in range(head[0])]
    try:
        names = json.loads(metadata["labels"])
        if not isinstance(names, list) or len(set(names)) != len(names):
            raise ValueError("not a list of different names")
        "".join(names).encode()  # TypeError: no texts
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: the label names are damaged ({first_line(error)}): take another copy"
        ) from error
    if len(names) != head[0]:
        raise UserError(f"{path}: {len(names)} label names, but {HEAD_WEIGHT} is {head}: take another copy")
    return names


def _folders_below(folder: Path) -> list[Path]:
    """The folders in a folder and those in them, `checkpoint-1000` after `checkpoint-500`."""

    def by_number(path: Path) -> list[tuple[int, str]]:
        return [(len(part), part) for part in path.parts]

    return sorted(
        (path for depth in ("*/", "*/*/") for path in folder.glob(depth) if path.is_dir()), key=by_number
    )

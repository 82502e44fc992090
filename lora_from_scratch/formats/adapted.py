"""A model as one of the methods left it: how it is loaded from a folder, whatever format that is in."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2ForSequenceClassification
from transformers import PreTrainedTokenizerBase as Tokenizer

from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.errors import UserError
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

    @property
    def label_names(self) -> list[str]:
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]


def load_adapted(folder: Path, base_name: str | None = None) -> Adapted:
    """The adapted model of a folder: one of ours, one of PEFT's, or a plain checkpoint; in eval mode.

    `base_name` is the base to put the adapter on, where it is not the one that the files name. Raises
    `UserError` if the folder holds nothing of the kind, or what is there is damaged or does not fit.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    formats = [format_named(name) for name in FORMATS]
    for format in formats:
        if format.is_in(folder):
            adapted = format.load(folder, base_name)
            adapted.model.eval()
            return adapted
    raise UserError(f"{folder} holds no adapter: none of {', '.join(format.FILES[0] for format in formats)}")


def load_base(path: Path, name: str | None, metadata: dict[str, str], head: torch.Tensor | None) -> Adapted:
    """The base that a file of weights names, with as many labels as the head in that file has.

    Raises `UserError` if no base is named, the head is missing, or its label names do not fit it.
    """
    if not name:
        raise UserError(f"{path.parent} does not name its base: say which with --model")
    if head is None or head.ndim != 2:
        raise UserError(f"{path}: the classifier head, {HEAD_WEIGHT}, is missing")
    unnamed = json.dumps([f"LABEL_{i}" for i in range(len(head))])
    try:
        labels = json.loads(metadata.get("labels", unnamed))
    except ValueError as error:
        raise UserError(f"{path}: the label names are damaged ({error})") from error
    if len(labels) != len(head):
        raise UserError(f"{path}: {len(labels)} label names, but {HEAD_WEIGHT} is {tuple(head.shape)}")
    tokenizer = load_tokenizer(name)
    return Adapted(load_model(name, labels, tokenizer.pad_token_id), tokenizer, name)

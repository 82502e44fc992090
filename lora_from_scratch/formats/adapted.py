"""A model as one of the methods left it: how it is loaded from a folder, whatever format that is in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerBase

from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.table import FORMATS, format_named

HEAD_WEIGHT = "score.weight"


@dataclass(frozen=True)
class Adapted:
    """A model ready to use, with its tokenizer and the name of its base (None: it is whole without one)."""

    model: GPT2ForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    base_name: str | None

    @property
    def label_names(self) -> list[str]:
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]


def load_adapted(folder: Path, base_name: str | None = None) -> Adapted:
    """The adapted model of a folder: one of ours, one of PEFT's, or a plain checkpoint; in eval mode.

    Args:
        base_name: the base to put the adapter on, where it is not the one that the files name.

    Raises:
        UserError: the folder holds nothing of the kind, or what is there is damaged or does not fit.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    for name in FORMATS:
        if format_named(name).is_in(folder):
            adapted = format_named(name).load(folder, base_name)
            adapted.model.eval()
            return adapted
    known = ", ".join(format_named(name).FILES[0] for name in FORMATS)
    raise UserError(f"{folder} holds no adapter: none of {known}")


def load_base(
    path: Path, base_name: str | None, metadata: dict[str, str], head: torch.Tensor | None
) -> tuple[GPT2ForSequenceClassification, PreTrainedTokenizerBase]:
    """The base that a file of weights names, with as many labels as the head in that file has.

    Raises:
        UserError: no base is named, the head is missing, or its label names do not fit it.
    """
    if not base_name:
        raise UserError(f"{path.parent} does not name its base: say which with --model")
    if head is None or head.ndim != 2:
        raise UserError(f"{path}: the classifier head, {HEAD_WEIGHT}, is missing")
    labels = [f"LABEL_{i}" for i in range(len(head))]
    if "labels" in metadata:
        try:
            labels = json.loads(metadata["labels"])
        except ValueError as error:
            raise UserError(f"{path}: the label names are damaged ({error})") from error
    if len(labels) != len(head):
        raise UserError(f"{path}: {len(labels)} label names, but {HEAD_WEIGHT} is {tuple(head.shape)}")
    tokenizer = load_tokenizer(base_name)
    return load_model(base_name, labels, tokenizer.pad_token_id), tokenizer


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises:
        UserError: the file is missing, damaged, or holds a value that is not finite.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds a value that is not finite")
    return tensors, metadata


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: no permission, or the disk is full.
    """
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contents, path, {"format": "pt", **metadata})
    except SafetensorError as error:  # how safetensors reports the operating system's refusals
        raise OSError(f"{path}: {error}") from error


def python_block(*lines: str) -> list[str]:
    """Lines of Python for a model card."""
    return ["```python", *lines, "```"]


def pipeline_block(folder: str) -> list[str]:
    """How transformers alone labels texts with the checkpoint of a folder."""
    return python_block(
        "from transformers import pipeline",
        "",
        f'classify = pipeline("text-classification", model="{folder}")',
        'classify("a text to classify")',
    )


def merged_block() -> list[str]:
    """How to make a plain checkpoint of what needs its base, and use it."""
    command = ["```bash", "python run.py merge --adapter . --out merged", "```"]
    return [
        "In transformers, after merging into a plain checkpoint:",
        "",
        *command,
        "",
        *pipeline_block("merged"),
    ]

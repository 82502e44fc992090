"""What a run leaves to be used again, by method, and how it comes back.

lora, prelayer: a PEFT adapter; full: a plain transformers checkpoint; head: the head alone; none: nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerBase

from lora_from_scratch import adapter
from lora_from_scratch.errors import UserError
from lora_from_scratch.files import appearing
from lora_from_scratch.fingerprint import check_base, fingerprints
from lora_from_scratch.model import load_model, load_tokenizer

HEAD = "head.safetensors"
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


def save_adapted(adapted: Adapted, method: str, folder: Path) -> None:
    """Write what `method` trained into the folder.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    if method in ("lora", "prelayer"):
        adapter.save_adapter(adapted.model, folder, adapted.base_name, adapted.tokenizer)
    elif method == "full":
        save_checkpoint(adapted.model, adapted.tokenizer, folder)
    elif method == "head":
        metadata = {
            "format": "pt",
            "base": adapted.base_name or "",
            "labels": json.dumps(adapted.label_names),
            **fingerprints(adapted.model, adapted.tokenizer, [HEAD_WEIGHT]),
        }
        weight = adapted.model.score.weight.detach().cpu().contiguous()
        with appearing(folder) as aside:
            adapter.write_tensors({HEAD_WEIGHT: weight}, aside / HEAD, metadata)


def save_checkpoint(
    model: GPT2ForSequenceClassification, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write a plain transformers checkpoint: configuration with label names, weights, tokenizer.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    with appearing(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def load_adapted(folder: Path, base_name: str | None = None) -> Adapted:
    """The adapted model of a folder: one of ours, one of PEFT's, or a plain checkpoint; in eval mode.

    Args:
        base_name: the base to put the adapter on, where it is not the one that the files name.

    Raises:
        UserError: the folder holds nothing of the kind, or see `load_adapter` and `load_model`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / adapter.CONFIG).exists():
        config = adapter.read_config(folder)
        tensors, metadata = adapter.read_tensors(folder / adapter.WEIGHTS)
        base_name = base_name or config.get("base_model_name_or_path")
        head = tensors.get(adapter.PREFIX + HEAD_WEIGHT)
        model, tokenizer = _load_base(folder / adapter.WEIGHTS, base_name, metadata, head)
        adapter.load_adapter(model, folder, tokenizer)
    elif (folder / HEAD).exists():
        tensors, metadata = adapter.read_tensors(folder / HEAD)
        base_name = base_name or metadata.get("base")
        head = tensors.get(HEAD_WEIGHT)
        model, tokenizer = _load_base(folder / HEAD, base_name, metadata, head)
        for key in tensors.keys() - {HEAD_WEIGHT}:
            raise UserError(f"{folder / HEAD}: unexpected tensor {key}")
        if head.shape != model.score.weight.shape:
            expected = tuple(model.score.weight.shape)
            raise UserError(f"{folder / HEAD}: {HEAD_WEIGHT} is {tuple(head.shape)}, expected {expected}")
        check_base(model, [HEAD_WEIGHT], metadata, tokenizer, folder)
        model.requires_grad_(False).score.requires_grad_(True)
        with torch.no_grad():
            model.score.weight.copy_(head)
    elif (folder / "config.json").exists():
        base_name, tokenizer = None, load_tokenizer(str(folder))
        model = load_model(str(folder), None, tokenizer.pad_token_id)
    else:
        raise UserError(f"{folder} holds no adapter: neither {adapter.CONFIG}, {HEAD} nor config.json")
    return Adapted(model.eval(), tokenizer, base_name)


def _load_base(
    path: Path, base_name: str | None, metadata: dict[str, str], head: torch.Tensor | None
) -> tuple[GPT2ForSequenceClassification, PreTrainedTokenizerBase]:
    """The base that an adapter names, with as many labels as its head has."""
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

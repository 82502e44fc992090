"""The trained tensors alone, under their names in the model, in one safetensors file: for any method."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lora_from_scratch.base.fingerprint import check_base, fingerprints
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.adapted import (
    HEAD_WEIGHT,
    Adapted,
    load_base,
    merged_block,
    read_tensors,
    write_tensors,
)

TITLE = "transformers"
FILES = ("trained.safetensors", "head.safetensors")  # the second is what versions before 0.2 called it


def is_in(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def save(adapted: Adapted, folder: Path) -> None:
    """Write whatever has `requires_grad`, which the head has to be part of.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    trained = {name: p for name, p in adapted.model.named_parameters() if p.requires_grad}
    metadata = {
        "base": adapted.base_name or "",
        "labels": json.dumps(adapted.label_names),
        **fingerprints(adapted.model, adapted.tokenizer, trained),
    }
    write_tensors(trained, folder / FILES[0], metadata)


def load(folder: Path, base_name: str | None = None) -> Adapted:
    """Put the tensors into their base, and let exactly them learn.

    Raises:
        UserError: the file is damaged, a tensor is unexpected or misshapen, or the base is another.
    """
    path = next(folder / name for name in FILES if (folder / name).exists())
    tensors, metadata = read_tensors(path)
    base_name = base_name or metadata.get("base")
    model, tokenizer = load_base(path, base_name, metadata, tensors.get(HEAD_WEIGHT))
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        if key not in parameters:
            raise UserError(f"{path}: unexpected tensor {key}")
        there, here = tuple(tensor.shape), tuple(parameters[key].shape)
        if there != here:
            raise UserError(f"{path}: {key} is {there}, expected {here}")
    check_base(model, tensors, metadata, tokenizer, folder)
    model.requires_grad_(False)
    with torch.no_grad():
        for key, tensor in tensors.items():
            parameters[key].requires_grad_(True).copy_(tensor)
    return Adapted(model, tokenizer, base_name)


def how_to_load(base_name: str, labels: int) -> list[str]:
    return merged_block()

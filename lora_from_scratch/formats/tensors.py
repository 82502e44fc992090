"""Trained tensors under their names in the model, in one safetensors file: a format for any method.

The file says which method made them, with which settings: what that method adds to a model is there before
the tensors come.

Also what the formats share in reading and writing such a file.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lora_from_scratch.base.fingerprint import check_base, fingerprints
from lora_from_scratch.data.lines import refuse_pointer
from lora_from_scratch.errors import UserError, first_line, printable
from lora_from_scratch.formats.adapted import HEAD_WEIGHT, MERGED, Adapted, load_base
from lora_from_scratch.formats.seal import check_seal, seal
from lora_from_scratch.methods import METHODS

TITLE = "transformers"
FILES = ("trained.safetensors", "head.safetensors")  # the second is what versions before 0.2 called it
Tensors = dict[str, torch.Tensor]  # by name
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_in(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def save(adapted: Adapted, folder: Path) -> None:
    """Write whatever has `requires_grad`, and the head; raises `OSError` if there is no room."""
    trained = _to_save(adapted.model)
    metadata = {"base": adapted.base_name or "", "labels": json.dumps(adapted.label_names)}
    if adapted.method:
        metadata |= {"method": adapted.method, "settings": json.dumps(dict(adapted.settings))}
    metadata |= fingerprints(adapted.model, adapted.tokenizer, trained)
    write_tensors(trained, folder / FILES[0], metadata)


def load(folder: Path, base_name: str | None = None) -> Adapted:
    """Put the tensors into their base, which their method has made ready; exactly what learned then learns.

    A file that names no method, or none of the table's, holds parameters of the base's own, which then learn.
    Raises `UserError` if the file is damaged, a tensor is unexpected, missing or misshapen, or the base is
    another.
    """
    path = next(folder / name for name in FILES if (folder / name).exists())
    tensors, metadata = read_tensors(path)
    base = load_base(path, base_name or metadata.get("base"), metadata, tensors.get(HEAD_WEIGHT))
    base = _made_ready(base, tensors, metadata, path)
    check_shapes(tensors, {name: p.shape for name, p in _to_save(base.model).items()}, path)
    check_base(fingerprints(base.model, base.tokenizer, tensors), metadata, folder)
    check_seal(path)
    copy_into(base.model, tensors)
    return base


def how_to_load(base_name: str, label_names: list[str]) -> list[str]:
    return MERGED.splitlines()


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises `UserError` if the file is missing, damaged, or holds what is no floating-point number, or one that
    is not finite in fp32.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file: take another copy of the folder")
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except Exception as error:  # of many kinds; all mean that the file is bad
        raise UserError(
            f"{path}: not a whole safetensors file ({first_line(error)[:60]}): take another copy"
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{path}: {printable(name)[:80]} holds {tensor.dtype}: save it in a floating-point type"
            )
        if not tensor.float().isfinite().all():
            raise UserError(
                f"{path}: {printable(name)[:80]} holds a value that is not finite: take an earlier checkpoint"
            )
    return tensors, metadata


def write_tensors(tensors: Tensors, path: Path, metadata: dict[str, str], beside: str = "") -> None:
    """Write a sealed safetensors file; raises `OSError` without permission, or if the disk is full."""
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contents, path)
    except SafetensorError as error:  # how safetensors reports the operating system's refusals
        raise OSError(f"{path}: {error}") from error
    seal(path, {"format": "pt", **metadata}, beside)


def check_shapes(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise `UserError` for a tensor of the file that is not expected, missing, or not in that shape."""
    for key in sorted(tensors.keys() - expected.keys()):
        raise UserError(
            f"{path}: unexpected tensor {printable(key)[:90]}: see that --model and the files belong together"
        )
    for key, shape in expected.items():
        if key not in tensors:
            raise UserError(f"{path}: {key} is missing: see that --model and the files belong together")
        there, here = tuple(tensors[key].shape), tuple(shape)
        if there != here:
            relabelled = key.endswith(HEAD_WEIGHT) and there[1:] == here[1:]
            hint = " (another number of labels)" if relabelled else ""
            raise UserError(
                f"{path}: {key} is {there}, expected {here}{hint}: name its own base with --model"
            )


def fill(model: nn.Module, tensors: Tensors) -> None:
    """Copy tensors into the parameters of their names, and let exactly those learn."""
    model.requires_grad_(False)
    for name in tensors:
        model.get_parameter(name).requires_grad_(True)
    copy_into(model, tensors)


@torch.no_grad()
def copy_into(model: nn.Module, tensors: Tensors) -> None:
    """Copy tensors into the parameters of their names."""
    for name, tensor in tensors.items():
        model.get_parameter(name).copy_(tensor)


def _to_save(model: nn.Module) -> Tensors:
    """What learns, and the head, which was drawn at random where it does not."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad or name == HEAD_WEIGHT}


def _made_ready(base: Adapted, tensors: Tensors, metadata: dict[str, str], path: Path) -> Adapted:
    name = metadata.get("method")
    if name not in METHODS:
        base.model.requires_grad_(False)
        for parameter_name, parameter in base.model.named_parameters():
            parameter.requires_grad_(parameter_name in tensors)
        return base
    try:
        settings = json.loads(metadata.get("settings", "{}"))
        METHODS[name].adapt(base.model, METHODS[name].Settings(**settings))
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        if "base_weights" in metadata:  # that it is another base is told before
            check_base(fingerprints(base.model, base.tokenizer, tensors), metadata, path.parent)
        what = f"the settings of --method {name} are damaged ({first_line(error)[:60]})"
        raise UserError(f"{path}: {what}: take another copy") from error
    return replace(base, method=name, settings=settings)

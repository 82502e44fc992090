"""Swap layers in a model, by structure: put LoRA in, fold it away, or fold it away for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.errors import UserError
from lora_from_scratch.lora import LoRALinear


def inject_lora(
    model: nn.Module,
    target_modules: Sequence[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Replace every layer that `target_modules` names by a `LoRALinear` around it, in the model itself.

    A target is a dotted suffix of a module's name: `c_attn` and `attn.c_attn` both match
    `transformer.h.0.attn.c_attn`; `c_proj` matches the one in `attn` and the one in `mlp`. Layers are visited
    in the model's own order, so a generator's draws depend on nothing else.

    Returns the same model. Its other parameters keep the `requires_grad` they had.

    Raises:
        UserError: a target matches nothing or a layer of another type; the model already holds LoRA layers.
    """
    if any(True for _ in lora_layers(model)):
        raise UserError("this model already holds LoRA layers: merge_lora(model) before injecting others")
    if not target_modules:
        raise UserError("no target modules were named: LoRA needs at least one, such as attn.c_attn")
    matches = [
        (name, module)
        for name, module in model.named_modules()
        if any(is_suffix(target, name) for target in target_modules)
    ]
    for target in target_modules:
        if not any(is_suffix(target, name) for name, _ in matches):
            raise UserError(f"target module {target!r} matches nothing; this model has {_layer_names(model)}")
    for name, module in matches:
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise UserError(
                f"target {name} is a {type(module).__name__}: LoRA wraps nn.Linear and Conv1D layers"
            )
    # Every layer is built before the first is placed, so an error leaves the model as it was.
    wrapped = [(name, LoRALinear(module, rank, alpha, dropout, generator)) for name, module in matches]
    for name, layer in wrapped:
        place(model, name, layer)
    return model


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The (dotted name, layer) pairs of the model's LoRA layers, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every update into its base layer and put the plain layers back under their original names.

    What remains is the model as transformers built it, with other weights: nothing of this package is left.
    Merging is final; `merged` does it for a while.
    """
    for name, layer in list(lora_layers(model)):
        place(model, name, layer.merge())
    return model


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """`with merged(model):` runs the block on plain merged layers, then restores every original bit.

    The original weights are kept aside: subtracting the update again would not give them back, because
    (W0 + delta) - delta is rounded twice.
    """
    layers = [(name, layer, layer.base_layer.weight.detach().clone()) for name, layer in lora_layers(model)]
    try:
        yield merge_lora(model)
    finally:
        for name, layer, weight in layers:
            with torch.no_grad():
                layer.base_layer.weight.copy_(weight)
            place(model, name, layer)


def is_suffix(target: str, name: str) -> bool:
    """Whether a dotted name ends in a target: `transformer.h.0.attn.c_attn` in `attn.c_attn`."""
    return name == target or name.endswith("." + target)


def place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the dotted `name` points to, in the place of what is there."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _layer_names(model: nn.Module) -> str:
    """The distinct `parent.child` endings of the layers that LoRA could wrap, for an error message."""
    endings = {
        ".".join(name.split(".")[-2:])
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return ", ".join(sorted(endings))

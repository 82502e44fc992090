"""Swap layers in a model, by structure: put LoRA in, fold it away, or fold it away for a while."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.errors import UserError


def inject_lora(
    model: nn.Module,
    target_modules: Sequence[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    modules_to_save: Sequence[str] = (),
) -> nn.Module:
    """Replace every layer that `target_modules` names by a `LoRALinear` around it, in place.

    A target is a dotted suffix of a module's name: `c_attn` and `attn.c_attn` both match
    `transformer.h.0.attn.c_attn`; `c_proj` the one in `attn` and the one in `mlp`. The generator draws for
    the layers in the model's own order.

    Args:
        modules_to_save: suffixes of what learns whole beside A and B, such as the head, `score`. All else is
            frozen.

    Raises:
        UserError: a name matches nothing, or a layer that LoRA cannot wrap or later not merge; the model
            already holds LoRA layers. The model is then as it was.
    """
    if not target_modules:
        raise UserError("no target modules were named: LoRA needs at least one, such as attn.c_attn")
    update = {"rank": rank, "alpha": alpha, "dropout": dropout, "generator": generator}
    targets, whole = _matches(model, target_modules), _matches(model, modules_to_save)
    inject_each(model, dict.fromkeys(targets, update), whole)
    for name, layer in lora_layers(model):
        if rank > (width := min(layer.base_layer.weight.shape)):
            why = "no update has a higher rank, so that rank does as much"
            warnings.warn(f"rank {rank} is above {width}, the width of {name}: {why}", stacklevel=2)
            break
    return model


def inject_each(model: nn.Module, updates: Mapping[str, dict], whole: Sequence[str] = ()) -> nn.Module:
    """`inject_lora` with an update for each layer: arguments of `LoRALinear` by the layer's full name.

    `whole` names, in full, the modules that learn whole; raises what `inject_lora` does.
    """
    if any(True for _ in lora_layers(model)):
        raise UserError("this model already holds LoRA layers: merge_lora(model) before injecting others")
    targets = {name: model.get_submodule(name) for name in updates}
    _check_targets(model, targets, whole, any(update.get("dropout") for update in updates.values()))

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:  # all are built before the first is placed: an error leaves the model as it was
        layers = {name: LoRALinear(module, **updates[name]) for name, module in targets.items()}
    except BaseException:
        for parameter in learning:
            parameter.requires_grad_(True)
        raise
    model.requires_grad_(False)
    for name in whole:
        model.get_submodule(name).requires_grad_(True)
    for name, layer in layers.items():
        place(model, name, layer)
    return model


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The (dotted name, layer) pairs of the model's LoRA layers, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every LoRA update into its base layer and put the plain layers back under their original names.

    What remains is the model as transformers built it, with other weights: no LoRA is left. What another
    method added stays (its `Method.merge` folds that in). Merging is final; `merged` does it for a while.
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
            place(model, name, layer.train(layer.base_layer.training))  # in the mode set meanwhile


def is_suffix(target: str, name: str) -> bool:
    """Whether a dotted name ends in a target: `transformer.h.0.attn.c_attn` in `attn.c_attn`."""
    return name == target or name.endswith("." + target)


def place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the dotted `name` points to, in the place of what is there."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _matches(model: nn.Module, suffixes: Sequence[str]) -> list[str]:
    """The names of the modules that the suffixes name, in the model's order."""
    names = [n for n, _ in model.named_modules() if n and any(is_suffix(s, n) for s in suffixes)]
    for suffix in suffixes:
        if not any(is_suffix(suffix, name) for name in names):
            layers = (n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)))
            endings = sorted({".".join(name.split(".")[-2:]) for name in layers})
            raise UserError(f"target module {suffix!r} matches nothing; this model has {', '.join(endings)}")
    return names


def _check_targets(
    model: nn.Module, targets: dict[str, nn.Module], whole: Sequence[str], dropout: bool
) -> None:
    for name, module in targets.items():
        if any(name == other or name.startswith(f"{other}.") for other in whole):
            raise UserError(f"{name} is named as a target of LoRA and as learning whole: leave one out")
        if not isinstance(module, (nn.Linear, Conv1D)):
            kind = type(module).__name__
            raise UserError(f"target {name} is of type {kind}: LoRA wraps nn.Linear and Conv1D layers")
        parent = model.get_submodule(name.rpartition(".")[0])
        if dropout and isinstance(parent, nn.MultiheadAttention):
            why = "nn.MultiheadAttention reads its weight and never calls it: no dropout would happen"
            raise UserError(f"target {name}: {why}; use dropout 0")
    # Merging changes a weight for everybody who reads it, so nobody else may.
    owners: dict[object, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        in_memory = parameter.numel() and not parameter.is_meta
        owners.setdefault(parameter.data_ptr() if in_memory else id(parameter), []).append(name)
    for names in owners.values():
        for target in targets:
            if len(names) > 1 and any(name.rpartition(".")[0] == target for name in names):
                raise UserError(
                    f"target {target}: {' and '.join(names)} are one tensor, so an update of one would, when "
                    "merged, move the other too: leave it out, or untie them first"
                )

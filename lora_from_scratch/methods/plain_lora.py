"""Layers that are more than LoRA's own, as the plain LoRA that computes the same: what PEFT's files hold.

Such a layer is a `LoRALinear` with a method `as_lora()`.
"""

import copy

import torch
from torch import Tensor, nn

from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers, place


def as_plain_lora(model: nn.Module) -> nn.Module:
    """The model with plain LoRA layers alone; it shares everything else with the one given, which stays."""
    layers = {name: layer for name, layer in lora_layers(model) if hasattr(layer, "as_lora")}
    if layers:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        model = copy.deepcopy(model, shared)
    for name, layer in layers.items():
        place(model, name, layer.as_lora())
    return model


@torch.no_grad()
def lora_like(layer: LoRALinear, A: Tensor, B: Tensor, alpha: float) -> LoRALinear:
    """A plain LoRALinear around the layer's base with A `(r, in_dim)`, B `(out_dim, r)` and its dropout."""
    rest = alpha, layer.lora_dropout.p, torch.Generator(), layer.rank_stabilized  # draws from nobody's
    plain = LoRALinear(layer.base_layer, len(A), *rest)
    plain.lora_A.copy_(A)
    plain.lora_B.copy_(B)
    for name in ("lora_A", "lora_B"):
        getattr(plain, name).requires_grad_(getattr(layer, name).requires_grad)
    return plain

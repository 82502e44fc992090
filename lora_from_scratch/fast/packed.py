"""Frozen weights, kept in bf16, and their matrices laid out once in the order in which a CPU's kernel reads.

A matrix product on a CPU begins by copying its weight into blocks that fit the kernel. In training that
happens anew in every product, because the weight may have changed. A frozen one has not: it is packed once,
and once more transposed, for the product that takes the gradient back to the layer's input. oneDNN, which
comes with PyTorch, packs and multiplies; where PyTorch lacks it, or on a GPU, nothing is packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.surgery import place


def keep_frozen_in_bf16(model: nn.Module) -> nn.Module:
    """Store what does not learn, the head apart, in bf16: half the memory, and no cast of it in every step.

    Autocast rounds the matrices the same way in every step; embeddings and LayerNorm it would leave in fp32.
    What learns stays in fp32. Nothing here undoes it: the weights on disk are the whole ones.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not name.startswith("score."):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


@contextmanager
def packed_layers(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block every `Conv1D` and `nn.Linear` that does not learn, the head apart, is packed.

    At the end the layers return to their places with the weights they had, bit for bit. A weight that is
    packed in its own dtype is unpacked then, one layer after the other, and not kept beside its packed copy:
    that takes no memory where nothing is trained, and the weights' size once more where gradients flow
    through them. A weight that two modules share is left as it is.

    Args:
        dtype: what autocast computes in, torch.float32 without it; a layer kept in bf16 stays in bf16.
    """
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and "score" not in name.split(".")
        and uses[id(module.weight)] == 1
        and _can_be_packed(module, dtype)
    }
    try:
        for name, layer in layers.items():
            packed = Packed(layer, dtype)
            place(model, name, packed)
            if packed.dtype == layer.weight.dtype:
                layer.weight.data = layer.weight.new_empty(0)
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for name, layer in layers.items():
                packed = model.get_submodule(name)
                if isinstance(packed, Packed):
                    packed.give_back(layer)
                    place(model, name, layer)


class Packed(nn.Module):
    """W x + b over packed copies of a frozen layer's W: `(..., in_dim)` -> `(..., out_dim)`."""

    def __init__(self, layer: nn.Linear | Conv1D, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = torch.bfloat16 if layer.weight.dtype == torch.bfloat16 else dtype
        weight = layer.weight.detach().to(self.dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().to(self.dtype)
        self.plain: torch.Tensor | None = weight.T if isinstance(layer, Conv1D) else weight  # until packed
        self.packed: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """W, `(out_dim, in_dim)`."""
        return self.plain if self.packed is None else self.packed.to_dense()

    @property
    def forward_weight(self) -> torch.Tensor:
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.plain.contiguous())
            self.plain = None
        return self.packed

    @cached_property
    def backward_weight(self) -> torch.Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.T.contiguous())

    def give_back(self, layer: nn.Linear | Conv1D) -> None:
        """Put the weight back into the layer, where it was taken out of it."""
        if not layer.weight.numel():
            weight = self.weight
            layer.weight.data = (weight.T if isinstance(layer, Conv1D) else weight).contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x.to(self.dtype), self)


class _Product(torch.autograd.Function):
    """The product and its gradient: y = W x + b, dL/dx = W^T dL/dy. Nothing flows to what is frozen."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, layer: Packed) -> torch.Tensor:
        ctx.layer = layer
        return _multiply(x, layer.forward_weight, layer.bias)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _multiply(dy, ctx.layer.backward_weight, None), None


def _multiply(x: torch.Tensor, packed_weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed_weight, bias, "none", [], "")


def _can_be_packed(layer: nn.Linear | Conv1D, dtype: torch.dtype) -> bool:
    weight = layer.weight
    learns = any(p.requires_grad for p in layer.parameters()) and torch.is_grad_enabled()
    if learns or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    dtypes = {weight.dtype, dtype}
    if torch.bfloat16 in dtypes and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return dtypes <= {torch.float32, torch.bfloat16}

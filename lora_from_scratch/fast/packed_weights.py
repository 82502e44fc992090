"""Frozen weights, kept in bf16, and their matrices laid out once in the order in which a CPU's kernel reads.

A matrix product on a CPU begins by copying its weight into blocks that fit the kernel, each time anew, as
the weight may have changed. A frozen one is packed once, and once more transposed, for the gradient of the
layer's input. oneDNN packs and multiplies; where PyTorch comes without it, or on a GPU, nothing is packed.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.base.fingerprint import is_added
from lora_from_scratch.base.quantised import QuantisedLinear
from lora_from_scratch.core.surgery import place
from lora_from_scratch.fast.freed_memory import give_back_freed


def keep_frozen_in_bf16(model: nn.Module) -> nn.Module:
    """Store the base's weights that do not learn, the head apart, in bf16: half the memory, and no cast in
    every step.

    Autocast rounds the matrices the same way; embeddings and LayerNorm it would leave in fp32, as what learns
    is left here, and what was added to the base. A LayerNorm of which a part learns stays whole, since its
    kernel takes one type. Nothing here undoes it: the weights on disk are the whole ones.
    """
    whole = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.LayerNorm) and any(p.requires_grad for p in module.parameters())
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        kept = parameter.requires_grad or parameter in whole or is_added(name)
        if not kept and not name.startswith("score."):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


@contextmanager
def packed_layers(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block every `Conv1D` and `nn.Linear` that does not learn, the head apart, is packed.

    `dtype` is what autocast computes in, torch.float32 without it; a layer kept in bf16 stays in bf16. A
    weight that two modules share is left as it is, and so is a quantised layer, which a dense copy would make
    useless. At the end the layers return to their places with the weights they had, bit for bit. A weight
    packed in its own dtype is unpacked then, layer by layer, and not kept beside its packed copy once it is
    packed for a gradient too, or none is expected: that takes no memory where nothing is trained, and the
    weights' size once more where gradients flow through them. One that is read `in_place` takes none.
    """
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "score" not in name.split(".")
        if not isinstance(module, QuantisedLinear)
        if uses[id(module.weight)] == 1 and _can_be_packed(module, dtype)
    }
    try:
        for name, layer in layers.items():
            packed = Packed(layer, dtype)
            place(model, name, packed)
            if packed.dtype == layer.weight.dtype and not packed.in_place:
                layer.weight.data = layer.weight.new_empty(0)
            packed.forward_weight  # noqa: B018 - packed now, layer by layer, while little else is held
            if not torch.is_grad_enabled():
                packed.expect_no_gradient()
        give_back_freed()
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for name, layer in layers.items():
                packed = model.get_submodule(name)
                if isinstance(packed, Packed):
                    packed.give_back(layer)
                    place(model, name, layer)
            give_back_freed()


class Packed(nn.Module):
    """W x + b over packed copies of a frozen layer's W: `(..., in_dim)` -> `(..., out_dim)`.

    In fp32 with AVX-512 oneDNN multiplies by W where it lies, `in_place`, in 2 to 4 % more time than by its
    packed copies, and those are spared. With AVX2 it takes 17 %, in bf16 7 %: there W is packed.
    """

    def __init__(self, layer: nn.Linear | Conv1D, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = torch.bfloat16 if layer.weight.dtype == torch.bfloat16 else dtype
        self.bias = None if layer.bias is None else layer.bias.detach().to(self.dtype)
        weight = layer.weight.detach().to(self.dtype)
        self.plain: Tensor | None = weight.T if isinstance(layer, Conv1D) else weight  # until packed twice
        self.awaits_gradient = False  # of an input: a prefix may need one where the tokens below do not
        with_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
        self.in_place = layer.weight.dtype == self.dtype == torch.float32 and with_avx512

    @property
    def weight(self) -> Tensor:
        """W, `(out_dim, in_dim)`, laid out the same way at any time: sums over it depend on that in a bit."""
        return self.plain if self.in_place else self._unpacked.contiguous()

    @property
    def _unpacked(self) -> Tensor:
        return self.forward_weight.to_dense() if self.plain is None else self.plain

    @cached_property
    def forward_weight(self) -> Tensor:
        if self.in_place:
            return self.plain
        return torch.ops.mkldnn._reorder_linear_weight(self.plain.contiguous())

    @cached_property
    def backward_weight(self) -> Tensor:
        if self.in_place:
            return self.plain.T
        packed = torch.ops.mkldnn._reorder_linear_weight(self._unpacked.T.contiguous())
        self.plain = None
        return packed

    def expect_no_gradient(self) -> None:
        """Let go of the plain W, which was kept to be packed a second time, for a gradient."""
        if not self.in_place:
            self.plain = None

    @cached_property
    def zero_bias(self) -> Tensor:
        return torch.zeros(len(self.backward_weight), dtype=self.dtype)

    def give_back(self, layer: nn.Linear | Conv1D) -> None:
        """Put the weight back into the layer, where it was taken out of it."""
        if not layer.weight.numel():
            weight = self._unpacked
            layer.weight.data = (weight.T if isinstance(layer, Conv1D) else weight).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x.to(self.dtype), self)

    def gradient(self, dy: Tensor) -> Tensor:
        """dL/dx = W^T dL/dy, `(..., out_dim)` -> `(..., in_dim)`."""
        # With a bias it is a forward product of this shape, for which oneDNN may have compiled a kernel.
        return torch.ops.mkldnn._linear_pointwise(dy, self.backward_weight, self.zero_bias, "none", [], "")


class _Product(Function):
    """The product and its gradient: y = W x + b, dL/dx = W^T dL/dy. Nothing flows to what is frozen."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layer: Packed) -> Tensor:
        ctx.layer = layer
        y = torch.ops.mkldnn._linear_pointwise(x, layer.forward_weight, layer.bias, "none", [], "")
        layer.awaits_gradient |= ctx.needs_input_grad[0]
        if not layer.awaits_gradient:
            layer.expect_no_gradient()
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.gradient(dy), None


def _can_be_packed(layer: nn.Linear | Conv1D, dtype: torch.dtype) -> bool:
    learns = any(p.requires_grad for p in layer.parameters()) and torch.is_grad_enabled()
    if learns or layer.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return {layer.weight.dtype, dtype} <= _packable()


@cache
def _packable() -> set[torch.dtype]:
    """What oneDNN packs and multiplies here.

    Its operations are private to PyTorch: where a later one has removed or changed them, that is nothing, and
    every layer stays plain.
    """
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.ones(3)
    try:
        bf16 = {torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        product = torch.ops.mkldnn._linear_pointwise(weight, packed, bias, "none", [], "")
        as_known = torch.equal(packed.to_dense(), weight) and torch.equal(product, weight @ weight.T + bias)
    except (AttributeError, RuntimeError, TypeError):
        return set()
    return {torch.float32} | bf16 if as_known else set()

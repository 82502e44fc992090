"""The fast twin of `core.lora.LoRALinear.forward` over a packed W0: the layer as one node of the graph.

    y = W0 x + b + B h,  h = s A (M x)      with M the mask of dropout and s = alpha / r

    dB = dy h^T,  dh = s B^T dy,  dA = dh (M x)^T,  dx = W0^T dy + M (A^T dh)

Autograd over the single operations makes ten nodes, and reads and writes what is as wide as y three times
where once is enough.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx

from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.fast.dropout import scaled_mask
from lora_from_scratch.fast.packed_weights import Packed


@contextmanager
def fused_lora(model: nn.Module) -> Iterator[None]:
    """Within the block the model's LoRA layers over packed ones compute as this file says.

    Layers of other kinds, which compute something else with A and B, stay as they are.
    """
    plain = [layer for _, layer in lora_layers(model) if type(layer) is LoRALinear]
    fused = [layer for layer in plain if isinstance(layer.base_layer, Packed)]
    for layer in fused:
        layer.forward = partial(forward, layer)
    try:
        yield
    finally:
        for layer in fused:
            del layer.forward


def forward(layer: LoRALinear, x: Tensor) -> Tensor:
    """`(..., in_dim)` -> `(..., out_dim)`, as the layer's own."""
    if x.dtype != layer.base_layer.dtype:
        return LoRALinear.forward(layer, x)
    return _Layer.apply(x, layer.lora_A, layer.lora_B, layer)


class _Layer(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, A: Tensor, B: Tensor, layer: LoRALinear) -> Tensor:
        dropout = layer.lora_dropout.p if layer.lora_dropout.training else 0.0
        mask = scaled_mask(x, dropout) if dropout else None
        read = (x if mask is None else x * mask).reshape(-1, x.shape[-1])  # (N, in)
        learned, A, B = A.dtype, A.to(x.dtype), B.to(x.dtype)
        h = (read @ A.T).mul_(layer.scaling)  # (N, r)
        y = layer.base_layer(x)  # (..., out)
        y.view(-1, y.shape[-1]).addmm_(h, B.T)
        of_x, of_A, of_B, _ = ctx.needs_input_grad
        kept = ((read, of_A), (mask, of_x), (A, of_x), (h, of_B), (B, of_x or of_A))
        ctx.save_for_backward(*(tensor if needed else None for tensor, needed in kept))
        ctx.layer, ctx.learned = layer, learned
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        read, mask, A, h, B = ctx.saved_tensors
        of_x, of_A, of_B, _ = ctx.needs_input_grad
        dx = dA = dB = None
        rows = dy.reshape(-1, dy.shape[-1])  # (N, out)
        if of_B:
            dB = (h.T @ rows).T.to(ctx.learned)  # (out, r)
        if of_x or of_A:
            dh = (rows @ B).mul_(ctx.layer.scaling)  # (N, r)
        if of_A:
            dA = (dh.T @ read).to(ctx.learned)  # (r, in)
        if of_x:
            through_A = (dh @ A).view(*dy.shape[:-1], A.shape[1])
            dx = ctx.layer.base_layer.gradient(dy)
            dx = dx.add_(through_A) if mask is None else dx.addcmul_(through_A, mask)
        return dx, dA, dB, None

"""The fast twin of torch's dropout: on a CPU, drawing random bits is most of what dropout costs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as torch_dropout

from lora_from_scratch.core.surgery import lora_layers


class Dropout(nn.Dropout):
    """`dropout` below as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


@contextmanager
def cheap_dropout(model: nn.Module) -> Iterator[None]:
    """Within the block, the dropout before every A of the model is the one of this file."""
    plain = {layer: layer.lora_dropout for _, layer in lora_layers(model)}
    for layer, module in plain.items():
        layer.lora_dropout = Dropout(module.p).train(module.training)
    try:
        yield
    finally:
        for layer, module in plain.items():
            layer.lora_dropout = module.train(layer.training)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero elements with probability p and scale the others to keep the mean (Srivastava et al. 2014)."""
    if not training or p == 0:
        return x
    return x * scaled_mask(x, p) if x.device.type == "cpu" else torch_dropout(x, p)


@torch.no_grad()
def scaled_mask(x: Tensor, p: float) -> Tensor:
    """What dropout multiplies a CPU's x by: 0 with probability p, else 1 / (1 - p); of x's shape and dtype.

    p is rounded to a multiple of 2^-16 (and the scale is that of the rounded p), and each element takes 16
    bits of torch's global generator, where torch's own kernel draws and converts 64.
    """
    dropped = round(p * 2**16)
    if dropped == 2**16:
        return torch.zeros_like(x)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # 4 elements each
    lanes = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over -2^15 .. 2^15 - 1
    keep = torch.ge(lanes, dropped - 2**15, out=torch.empty_like(x))  # 0 or 1, as x
    return keep.mul_(2**16 / (2**16 - dropped))

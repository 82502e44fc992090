"""Dropout with cheap random bits: on a CPU, drawing them is most of what dropout costs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import dropout as torch_dropout

LANES = 4  # 16-bit lanes of one 64-bit draw


class Dropout(nn.Dropout):
    """`dropout` below as a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p, self.training)


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Zero elements with probability p and scale the others so that the mean stays (Srivastava et al. 2014).

    On a CPU p is rounded to a multiple of 2^-16 (and the scale is that of the rounded p), and each element
    takes 16 bits of torch's global generator, where torch's own kernel draws and converts 64.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return torch_dropout(x, p)
    dropped = round(p * 2**16)
    draws = torch.empty(-(-x.numel() // LANES), dtype=torch.int64).random_(-(2**63), None)
    lanes = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over -2^15 .. 2^15 - 1
    keep = torch.ge(lanes, dropped - 2**15, out=torch.empty_like(x, requires_grad=False))  # 0 or 1, as x
    return x * keep.mul_(2**16 / (2**16 - dropped))

"""The layer of PiSSA: LoRA whose A and B start as W0's top singular directions, taken off W0.

Source: Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
Models", arXiv:2404.02948, eq. 2 to 5; the scaling s in it as PEFT has it.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.errors import UserError
from lora_from_scratch.methods.plain_lora import lora_like


class PiSSALinear(LoRALinear):
    """h = (W0 - s B0 A0) x + s B A x,  at first B = B0 = U_r sqrt(S_r / s), A = A0 = sqrt(S_r / s) V_r^T,

    where W0 = U S V^T and s = alpha / r. The first outputs are the bare layer's, but A and B both get a
    gradient at once, along the directions in which W0 does most.

    W0 itself is not changed: s B0 A0 x is taken off beside it, for r (in + out) more numbers to keep, which
    do not learn. So `base_layer` is the untouched one at any time, to the bit, and may be quantised. A0 and
    B0 are buffers that no state_dict holds: W0 has them, and the signs of their vectors do not matter.

    Raises:
        UserError: as `LoRALinear`; and for a rank above the layer's narrower side.
    """

    def __init__(self, base_layer: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer, rank, alpha, dropout, torch.Generator())  # what that draws is replaced
        if rank > (width := min(base_layer.weight.shape)):
            raise UserError(f"--rank {rank}: a layer has {width} singular directions; ask for no more")
        with torch.no_grad():
            weight = base_layer.weight.to(self.lora_A.dtype)
            weight = weight.T if isinstance(base_layer, Conv1D) else weight  # (out, in)
            U, S, V_T = torch.linalg.svd(weight, full_matrices=False)
            root = (S[:rank] / self.scaling).sqrt()  # (r,)
            self.lora_A.copy_(root[:, None] * V_T[:rank])
            self.lora_B.copy_(U[:, :rank] * root)
        self.register_buffer("A0", self.lora_A.detach().clone(), persistent=False)
        self.register_buffer("B0", self.lora_B.detach().clone(), persistent=False)

    def delta_weight(self) -> Tensor:
        """s (B A - B0 A0), in the layout of `base_layer.weight`."""
        delta = self.scaling * (self.lora_B @ self.lora_A - self.B0 @ self.A0)  # (out, in)
        return delta.T if isinstance(self.base_layer, Conv1D) else delta

    def forward(self, x: Tensor) -> Tensor:
        A, B, A0, B0 = (tensor.to(x.dtype) for tensor in (self.lora_A, self.lora_B, self.A0, self.B0))
        learnt = (self.scaling * (self.lora_dropout(x) @ A.T)) @ B.T  # (..., out)
        started = (self.scaling * (x @ A0.T)) @ B0.T  # at the start the same, so that 0 is added
        return self.base_layer(x) + (learnt - started)

    def as_lora(self) -> LoRALinear:
        """One LoRALinear around W0 that computes the same: A' = [A; A0], B' = [B, -B0], 2 r and 2 alpha."""
        A, B = torch.cat([self.lora_A, self.A0]), torch.cat([self.lora_B, -self.B0], dim=1)
        return lora_like(self, A, B, 2 * self.alpha)

"""LoRA for q, k and v apart, inside GPT-2's fused c_attn: an A and a B for each of those that are named."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.errors import UserError
from lora_from_scratch.methods.plain_lora import lora_like
from lora_from_scratch.methods.targets import PARTS, in_order


class PartedLoRALinear(LoRALinear):
    """h_i = W0_i x + s B_i A_i x for each part i that is named, h_i = W0_i x for the others.

    The paper adapts Wq and Wv, each with its own A and B (Hu et al. 2021, section 4.2). GPT-2 keeps Wq, Wk
    and Wv in one c_attn, `(out, in)` one below the other; so stand the A's and B's here, of n parts:

        A = [A_q; A_v]    (n r, C)       B = [B_q; B_v]    (n C, r)       s = alpha / r, or alpha / sqrt(r)

    What comes out is W0 x + s D A x, where D is `block_diagonal`, `(3 C, n r)`. A dropout mask is drawn once
    for all parts, since they read one x.

    Args:
        base_layer: c_attn, from C features to 3 C.
        parts: of q, k and v, in any order.
        rank: r, of each part.

    Raises:
        UserError: as `LoRALinear`; parts that there are not; a layer that is not three times as wide behind.
    """

    def __init__(
        self,
        base_layer: nn.Linear | Conv1D,
        parts: Iterable[str],
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        named = in_order(parts)
        super().__init__(base_layer, len(named) * rank, alpha, dropout, generator)
        out_dim, width = len(self.lora_B), self.lora_A.shape[1]
        if out_dim != 3 * width:
            raise UserError(f"q, k and v are thirds of a layer from C to 3 C, not from {width} to {out_dim}")
        self.parts = named
        self.lora_B = nn.Parameter(self.lora_A.new_zeros(len(self.parts) * width, rank))

    @property
    def rank(self) -> int:
        return self.lora_B.shape[1]

    @property
    def block_diagonal(self) -> Tensor:
        """B for all outputs, `(3 C, n r)`: each part's own block, zeros beside it and where no part is."""
        blocks = dict(zip(self.parts, self.lora_B.chunk(len(self.parts)), strict=True))
        nothing = self.lora_B.new_zeros(self.lora_A.shape[1], 0)
        return torch.block_diag(*(blocks.get(part, nothing) for part in PARTS))

    def delta_weight(self) -> Tensor:
        """s D A, in the layout of `base_layer.weight`; exactly 0 in the rows of what is not named."""
        delta = self.scaling * (self.block_diagonal @ self.lora_A)  # (3 C, C)
        return delta.T if isinstance(self.base_layer, Conv1D) else delta

    def forward(self, x: Tensor) -> Tensor:
        A, D = self.lora_A.to(x.dtype), self.block_diagonal.to(x.dtype)
        h = self.scaling * (self.lora_dropout(x) @ A.T)  # (..., n r)
        return self.base_layer(x) + h @ D.T  # (..., 3 C)

    def as_lora(self) -> LoRALinear:
        """The same in one LoRALinear: rank n r, B block-diagonal, alpha such that s stays."""
        n = len(self.parts)
        alpha = self.alpha * (math.sqrt(n) if self.rank_stabilized else n)
        return lora_like(self, self.lora_A, self.block_diagonal, alpha)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, parts={','.join(self.parts)}"

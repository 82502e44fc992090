"""LoRA, alone in one file: a frozen layer plus a trainable product of two thin matrices.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
Read it from top to bottom; `tests/test_lora.py` holds every sentence below to account.
"""

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.errors import UserError


class LoRALinear(nn.Module):
    """h = W0 x + (alpha / r) B A x                                            (Hu et al. 2021, eq. 3)

    W0 stays frozen; only A and B learn. At the start B = 0, so the wrapped layer computes exactly what the
    bare one did, and training moves away from the pretrained model step by step.

    Args:
        base_layer: the layer that holds W0, an `nn.Linear` or the `Conv1D` of transformers' GPT-2. It is
            kept as it is (composed, not copied), its parameters are frozen, and its mode (train or eval) is
            taken over.
        rank: r, the inner width of the update, at least 1; it adds r * (in_dim + out_dim) parameters.
        alpha: the update is scaled by alpha / r: AdamW's first step is as large at every r (section 4.1).
        dropout: probability of zeroing an input feature on its way into A, in training only.
        generator: where A is drawn from; None draws from torch's global generator.
        rank_stabilized: scale by alpha / sqrt(r) instead (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732).

    Shapes: x `(..., in_dim)` -> `(..., out_dim)`; lora_A `(r, in_dim)`; lora_B `(out_dim, r)`.

    Raises:
        UserError: the base layer is of another type, or rank, alpha or dropout is out of range.
    """

    LARGEST_RANK = 8  # times the layer's wider side: in a square one A and B then hold 16 times what W0 does

    def __init__(
        self,
        base_layer: nn.Linear | Conv1D,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        rank_stabilized: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(base_layer, (nn.Linear, Conv1D)):
            raise UserError(f"LoRA wraps nn.Linear and Conv1D layers, not {type(base_layer).__name__}")
        if rank < 1:
            raise UserError(f"the rank of a LoRA update must be at least 1, not {rank}")
        if not 0 < alpha < math.inf:
            raise UserError(f"alpha must be above 0, not {alpha:g}: the update is scaled by alpha / rank")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), not {dropout:g}")

        in_dim, out_dim = base_layer.weight.shape
        if isinstance(base_layer, nn.Linear):  # Linear stores (out, in), Conv1D (in, out)
            in_dim, out_dim = out_dim, in_dim
        if rank > (most := self.LARGEST_RANK * max(in_dim, out_dim)):
            raise UserError(
                f"rank {rank} is above {most}: A and B would dwarf W0; take a small one, such as 4"
            )
        # A and B learn in at least fp32, whatever W0 is kept in: small steps vanish in bf16's 8 bits.
        dtype = torch.promote_types(base_layer.weight.dtype, torch.float32)
        A = torch.empty(rank, in_dim, dtype=dtype)
        # With both zero neither would ever get a gradient; that B be the zero one is the paper's choice.
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(A.to(base_layer.weight.device))
        self.lora_B = nn.Parameter(self.lora_A.new_zeros(out_dim, rank))
        self.alpha, self.rank_stabilized = alpha, rank_stabilized
        self.lora_dropout = nn.Dropout(dropout)
        self.base_layer = base_layer.requires_grad_(False)
        self.train(base_layer.training)

    @property
    def rank(self) -> int:
        return len(self.lora_A)

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def delta_weight(self) -> torch.Tensor:
        """(alpha / r) B A, in the layout of `base_layer.weight`: Linear `(out, in)`, Conv1D `(in, out)`."""
        delta = self.scaling * (self.lora_B @ self.lora_A)  # (out, in)
        return delta.T if isinstance(self.base_layer, Conv1D) else delta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A first: two thin products cost r * (in + out) per token, where B A in full would cost in * out.
        A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)  # x is bf16 where W0 is
        h = self.scaling * (self.lora_dropout(x) @ A.T)  # (..., r)
        return self.base_layer(x) + h @ B.T  # (..., out)

    @property
    def weight(self) -> torch.Tensor:
        """W0 + (alpha / r) B A, in the layout and dtype of `base_layer.weight`.

        For modules that read a layer's weight instead of calling it, as PyTorch's own Transformer does: they
        compute with the update in it, and gradients reach A and B.
        """
        weight = self.base_layer.weight
        return (weight.to(self.lora_A.dtype) + self.delta_weight()).to(weight.dtype)  # rounded once

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base_layer.bias

    @torch.no_grad()
    def merge(self) -> nn.Linear | Conv1D:
        """The plain base layer, its weight now W0 + (alpha / r) B A: no cost left at inference (section 4.1).

        The base layer is changed in place and returned. The sum is taken in fp32 (or wider) and rounded once.
        """
        self.base_layer.weight.copy_(self.weight)
        return self.base_layer.train(self.training)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}"

"""What was learned, layer by layer: delta W = U diag(S) V^T, its singular value decomposition, beside W0.

Each direction i reads the input along a row of V^T, scales it by S_i and writes along a column of U. All in
float64 and in the paper's orientation, `(out, in)`, whatever the layer stores.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.methods.lora import linear_layers
from lora_from_scratch.train.bar import Bar

SVD = tuple[Tensor, Tensor, Tensor]  # U (out, k), S (k,) descending, V^T (k, in)


@dataclass(frozen=True, eq=False)
class Update:
    """What one layer's weight became, less what it was."""

    name: str  # of the layer, in full
    base: Tensor  # W0 (out, in)
    U: Tensor  # (out, k)
    S: Tensor  # (k,), descending
    Vh: Tensor  # (k, in)
    A: Tensor | None = None  # LoRA's (r, in); None where the whole weight learned

    @property
    def layer(self) -> str:
        """Its name without what all have in common."""
        return self.name.removeprefix("transformer.")

    @property
    def norm(self) -> float:
        """The Frobenius norm of delta W."""
        return self.S.norm().item()

    def kept(self, k: int) -> Tensor:
        """The first k directions of delta W, `(out, in)`: of all matrices of rank k the nearest to it."""
        return (self.U[:, :k] * self.S[:k]) @ self.Vh[:k]


def updates_of(model: nn.Module, base: nn.Module | None = None) -> Iterator[Update]:
    """Those of a model's LoRA layers; of one without them, of its blocks' matrices over those of `base`.

    Nothing where it has neither LoRA layers nor a base to be compared with.
    """
    if layers := dict(lora_layers(model)):
        for name, layer in Bar(layers.items(), desc="layers", unit="layer", leave=False):
            A = layer.lora_A.detach().to("cpu", torch.float64)
            yield Update(name, weight_of(layer.base_layer), *svd_of_update(layer), A)
    elif base is not None:
        for name in Bar(linear_layers(model), desc="layers", unit="layer", leave=False):
            before, after = (weight_of(one.get_submodule(name)) for one in (base, model))
            yield Update(name, before, *torch.linalg.svd(after - before, full_matrices=False))


def svd_of_update(layer: LoRALinear) -> SVD:
    """That of s B A, exactly and without the dense matrix.

    With B = Q_b R_b and A^T = Q_a R_a it is that of the small s R_b R_a^T, turned by Q_b and Q_a.
    """
    B, A = (factor.detach().to("cpu", torch.float64) for factor in (layer.lora_B, layer.lora_A))
    (Qb, Rb), (Qa, Ra) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(layer.scaling * Rb @ Ra.T, full_matrices=False)
    return Qb @ U, S, Vh @ Qa.T


def weight_of(layer: nn.Linear | Conv1D) -> Tensor:
    """A copy of a layer's weight, `(out, in)`."""
    weight = layer.weight.detach().to("cpu", torch.float64, copy=True)
    return weight.T if isinstance(layer, Conv1D) else weight


@torch.no_grad()
def set_weight(layer: nn.Linear | Conv1D, weight: Tensor) -> None:
    """Give a layer a weight, `(out, in)`, rounded once to what it keeps."""
    layer.weight.copy_(weight.T if isinstance(layer, Conv1D) else weight)

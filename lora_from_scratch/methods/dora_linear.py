"""DoRA's layer: LoRA moves the directions of a frozen weight, and their lengths learn apart.

Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353. The method is in
`dora.py`, which is read before torch is; `tests/test_dora.py` holds both to PEFT's.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers, place


class DoRALinear(LoRALinear):
    """h = m (W0 + s B A) x / ||W0 + s B A|| + b                                  (Liu et al. 2024, eq. 5)

    The norm is taken over the inputs, one for each output (the paper draws W as (in, out), and calls them
    columns); s is LoRA's alpha / r. The magnitudes m start at ||W0||, so the layer starts as the bare one.

    With dropout d the layer computes W0 x + b + (m / norm - 1) W0 d(x) + (m / norm) s B A d(x), as PEFT's
    does: what the magnitudes change of W0's product is dropped too. That takes a second product by W0.

    Args:
        lora: the layer whose A, B, scaling, dropout and frozen W0 it takes over.

    Shapes: as `LoRALinear`'s; lora_magnitude_vector `(out_dim,)`.
    """

    def __init__(self, lora: LoRALinear) -> None:
        nn.Module.__init__(self)  # what LoRALinear's own would make is there
        self.lora_A, self.lora_B, self.lora_dropout = lora.lora_A, lora.lora_B, lora.lora_dropout
        self.alpha, self.rank_stabilized, self.base_layer = lora.alpha, lora.rank_stabilized, lora.base_layer
        self.lora_magnitude_vector = nn.Parameter(self.norm())
        self.train(lora.training)

    def direction(self) -> Tensor:
        """W0 + s B A, `(out_dim, in_dim)` whatever the base layer's layout, in A's dtype."""
        weight = self.base_layer.weight.to(self.lora_A.dtype) + self.delta_weight()
        return weight.T if isinstance(self.base_layer, Conv1D) else weight

    @torch.no_grad()
    def norm(self) -> Tensor:
        """The length of each output's row, `(out_dim,)`: a constant to the backward pass (section 4.3)."""
        return torch.linalg.vector_norm(self.direction(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # bf16 has too few bits for what a step moves
            scale = self.lora_magnitude_vector / self.norm()  # (out,)
        frozen, dropped = self.base_layer(x), self.lora_dropout(x)
        product = frozen if dropped is x else self.base_layer(dropped)  # W0 d(x) + b
        if self.bias is not None:
            product = product - self.bias.to(product.dtype)
        A, B = self.lora_A.to(x.dtype), (scale[:, None] * self.lora_B).to(x.dtype)
        h = self.scaling * (dropped @ A.T)  # (..., r)
        return frozen + (scale - 1).to(product.dtype) * product + h @ B.T  # (..., out)

    @property
    def weight(self) -> Tensor:
        """m (W0 + s B A) / ||W0 + s B A||, in the layout and dtype of `base_layer.weight`: what merging puts
        there."""
        weight = (self.lora_magnitude_vector / self.norm())[:, None] * self.direction()
        weight = weight.T if isinstance(self.base_layer, Conv1D) else weight
        return weight.to(self.base_layer.weight.dtype)


def with_magnitudes(model: nn.Module) -> nn.Module:
    """Make every LoRA layer of the model one of DoRA's, in place."""
    for name, layer in list(lora_layers(model)):
        place(model, name, DoRALinear(layer))
    return model

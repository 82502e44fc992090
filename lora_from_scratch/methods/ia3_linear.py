"""(IA)^3's layers: frozen ones, of which learned vectors multiply outputs or inputs. The method: `ia3.py`.

Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", arXiv:2205.05638, section 3.3. `tests/test_ia3.py` holds them to PEFT's.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.surgery import place


class IA3Linear(nn.Module):
    """What the two kinds share: `base_layer` is kept as it is and frozen; every vector starts at ones.

    The vectors stay in at least fp32, and are multiplied by in it: near 1 bf16 has steps of 1/256.
    """

    def __init__(self, base_layer: nn.Linear | Conv1D, **widths: int) -> None:
        super().__init__()
        weight = base_layer.weight
        options = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        for name, width in widths.items():
            self.register_parameter(name, nn.Parameter(torch.ones(width, **options)))
        self.base_layer = base_layer.requires_grad_(False)
        self.train(base_layer.training)

    def merge(self) -> nn.Linear | Conv1D:
        """The plain base layer, changed in place, which computes the same."""
        raise NotImplementedError


class ScaledKeysAndValues(IA3Linear):
    """h = l (W x + b) with l = [1, l_k, l_v], around GPT-2's c_attn, whose outputs are q, k and v.

    Shapes: x `(..., C)` -> `(..., 3 C)`; ia3_k and ia3_v `(C,)`.
    """

    def __init__(self, c_attn: nn.Linear | Conv1D) -> None:
        width = len(c_attn.bias) // 3
        super().__init__(c_attn, ia3_k=width, ia3_v=width)

    @property
    def factors(self) -> Tensor:
        """l, `(3 C,)`."""
        return torch.cat([torch.ones_like(self.ia3_k), self.ia3_k, self.ia3_v])

    def forward(self, x: Tensor) -> Tensor:
        h = self.base_layer(x)
        return (h * self.factors).to(h.dtype)

    @torch.no_grad()
    def merge(self) -> nn.Linear | Conv1D:
        """Of l W and l b: each output's weights and its bias are multiplied."""
        layer, factors = self.base_layer, self.factors
        layer.weight.copy_(layer.weight * (factors if isinstance(layer, Conv1D) else factors[:, None]))
        layer.bias.copy_(layer.bias * factors)
        return layer


class ScaledInner(IA3Linear):
    """h = W (l_ff x) + b, around the second layer of the MLP, whose inputs are the activations within.

    Shapes: x `(..., 4 C)` -> `(..., C)`; ia3_ff `(4 C,)`.
    """

    def __init__(self, c_proj: nn.Linear | Conv1D) -> None:
        super().__init__(c_proj, ia3_ff=c_proj.weight.shape[0 if isinstance(c_proj, Conv1D) else 1])

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer((x * self.ia3_ff).to(x.dtype))

    @torch.no_grad()
    def merge(self) -> nn.Linear | Conv1D:
        """Of W l: the weights of each input are multiplied."""
        layer, factors = self.base_layer, self.ia3_ff
        layer.weight.copy_(layer.weight * (factors[:, None] if isinstance(layer, Conv1D) else factors))
        return layer


def merge_ia3(model: nn.Module) -> nn.Module:
    """Put the plain layers back under their names, the vectors folded in."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, IA3Linear)]:
        place(model, name, layer.merge())
    return model

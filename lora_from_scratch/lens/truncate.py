"""A smaller adapter: of each layer's update the first k directions.

Of all matrices of rank k none is nearer to delta W (Eckart & Young 1936).
"""

import math

import torch
from torch import nn

from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers, place
from lora_from_scratch.lens.measures import energy
from lora_from_scratch.lens.updates import svd_of_update
from lora_from_scratch.methods.plain_lora import lora_like


def truncate(model: nn.Module, rank: int) -> float:
    """Give every LoRA layer of a higher rank this one, in place; returns the share of the norm that is lost.

    Lost is sqrt(sum of the squared singular values that go / sum of all), over all layers. Layers of that
    rank or a lower one stay as they are, bit for bit.
    """
    whole = lost = 0.0
    for name, layer in list(lora_layers(model)):
        sums = energy(svd_of_update(layer)[1])
        whole += sums[-1].item()
        if layer.rank > rank:
            lost += (sums[-1] - sums[min(rank, len(sums) - 1)]).item()
            place(model, name, truncated(layer, rank))
    return math.sqrt(lost / whole) if whole else 0.0


@torch.no_grad()
def truncated(layer: LoRALinear, rank: int) -> LoRALinear:
    """The layer with the first `rank` directions of its update, its scaling s and its dropout as before.

    B = U_k sqrt(S_k / s) and A = sqrt(S_k / s) V_k^T, so that s B A is what is kept. Where S is 0, A is V^T
    alone: with both factors 0 neither would get a gradient, and a file of zeros stands for no LoRA layer.

    A that is frozen stays so (LoRA-FA): what learns goes on to learn, and nothing else.
    """
    U, S, Vh = svd_of_update(layer)
    U, S, Vh = U[:, :rank], S[:rank], Vh[:rank]
    s, k = layer.scaling, len(S)
    root = (S / s).sqrt()
    alpha = s * (math.sqrt(k) if layer.rank_stabilized else k)
    return lora_like(layer, root.where(S > 0, 1.0)[:, None] * Vh, U * root, alpha)

"""Four bits a weight: each is the nearest of 16 numbers, times the largest magnitude of its block of 64.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E. The 16 numbers are quantiles
of the normal distribution, 0 among them: near 0, where most weights are, they lie closest.
"""

import torch
from torch import Tensor, nn

from lora_from_scratch.base.int8 import rounded_rows
from lora_from_scratch.base.quantised import QuantisedLinear

BLOCK, BLOCK_OF_SCALES = 64, 256
POINTS = torch.tensor(
    # As published with the paper's own implementation.
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=torch.float32,
)
MIDPOINTS = ((POINTS[1:] + POINTS[:-1]) / 2).tolist()


class NF4Linear(QuantisedLinear):
    """`codes`, uint8, two weights in each, the first in its upper half, and `scales`, fp32, of each block.

    Blocks run along a row of W and on into the next: 64 inputs of one output where 64 divides in_features.
    The last one is filled up with zeros. 4 + 32 / 64 = 4.5 bits a weight.
    """

    def encode(self, weight: Tensor) -> None:
        blocks = _blocks(weight, BLOCK)
        scales = blocks.abs().amax(dim=1, keepdim=True)
        shares = blocks / scales.where(scales > 0, 1)  # -1 .. 1; a block of zeros stays one
        # The nearest point is the one that so many midpoints lie below; faster here than torch.bucketize.
        codes = sum((shares > midpoint).to(torch.uint8) for midpoint in MIDPOINTS).view(-1, 2)
        self.register_buffer("codes", 16 * codes[:, 0] + codes[:, 1])
        # The two numbers of each byte, as eight bytes that are looked up at once: 0 .. 255 -> two of fp32.
        pairs = torch.cartesian_prod(POINTS, POINTS).view(torch.int64).flatten()
        self.register_buffer("pairs", pairs.to(weight.device), persistent=False)
        self.keep_scales(scales)

    def dequantise(self) -> Tensor:
        numbers = self.pairs.index_select(0, self.codes.int()).view(torch.float32).view(-1, BLOCK)
        weights = numbers.mul_(self.block_scales()).flatten()
        return weights[: self.out_features * self.in_features].view(self.out_features, self.in_features)

    def keep_scales(self, scales: Tensor) -> None:
        """Keep those of all blocks, `(blocks, 1)`."""
        self.register_buffer("scales", scales)

    def block_scales(self) -> Tensor:
        """`(blocks, 1)`, fp32."""
        return self.scales


class DoubleNF4Linear(NF4Linear):
    """The scales are quantised too: less their mean, in blocks of 256, in 8 bits (double quantisation).

    4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits a weight. A weight's code is chosen by the exact scale. The
    paper writes FP8; whole numbers of 8 bits are what implementations take.
    """

    def keep_scales(self, scales: Tensor) -> None:
        # Summed in fp64, so that the mean is the same in fp32 whatever order a device sums in.
        self.register_buffer("mean", scales.double().mean().float())
        codes, steps = rounded_rows(_blocks(scales - self.mean, BLOCK_OF_SCALES))
        self.register_buffer("scale_codes", codes)
        self.register_buffer("scale_steps", steps)

    def block_scales(self) -> Tensor:
        scales = self.scale_codes.float().mul_(self.scale_steps).add_(self.mean).flatten()
        return scales[: 2 * len(self.codes) // BLOCK, None]


def _blocks(numbers: Tensor, size: int) -> Tensor:
    """All numbers in their order, `(blocks, size)`, zeros behind the last one."""
    flat = numbers.flatten()
    return nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)

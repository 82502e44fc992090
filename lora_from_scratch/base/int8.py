"""Eight bits a weight: W is about codes * scales, with one scale for each output.

Symmetric, by the largest magnitude: the codes are whole numbers from -127 to 127, and 0 stays 0. An output's
scale is the largest magnitude of its row of W, over 127.
"""

import torch
from torch import Tensor

from lora_from_scratch.base.quantised import QuantisedLinear

LARGEST = 127


class Int8Linear(QuantisedLinear):
    """`codes`, int8 `(out, in)`, and `scales`, fp32 `(out, 1)`: 8 + 32 / in bits a weight."""

    def encode(self, weight: Tensor) -> None:
        codes, scales = rounded_rows(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def dequantise(self) -> Tensor:
        return self.codes.float().mul_(self.scales)


def rounded_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, int8 `(rows, columns)`, and the scale of each row, `(rows, 1)`; a row of zeros has scale 0."""
    scales = matrix.abs().amax(dim=1, keepdim=True) / LARGEST
    codes = (matrix / scales.where(scales > 0, 1)).round_()
    return codes.clamp_(-LARGEST, LARGEST).to(torch.int8), scales  # clamped where scales are subnormal

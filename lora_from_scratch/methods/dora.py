"""DoRA as a method: LoRA's settings and places, and a magnitude for each output; see `dora_linear.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_from_scratch.errors import UserError
from lora_from_scratch.methods.lora import LoRA, LoRASettings
from lora_from_scratch.methods.targets import parted

if TYPE_CHECKING:
    from torch import Generator, nn


class DoRA(LoRA):
    """W' = m (W0 + s B A) / ||W0 + s B A|| around the target layers, and the head.

    Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353. Beside LoRA's
    parameters `out` more learn for each layer: on GPT-2 small's c_attn 12 * 2304 = 27,648.
    """

    name = "dora"
    summary = "LoRA for directions, the magnitudes learn apart; and the head"
    saved_as = "A DoRA adapter"
    rates = LoRA.rates  # not tuned for it
    by_default = False

    def adapt(
        self, model: nn.Module, settings: LoRASettings, generator: Generator | None = None
    ) -> nn.Module:
        """r (in + out) + out parameters for each target layer learn, and the head.

        UserError if parts of a layer are named: its other outputs would have magnitudes and no update.
        """
        from lora_from_scratch.methods.dora_linear import with_magnitudes

        if named := next((target for target in settings.target_modules if parted(target)[1]), None):
            raise UserError(f"--method dora adapts whole layers: name {parted(named)[0]}, not {named}")
        return with_magnitudes(super().adapt(model, settings, generator))

    def describe(self, settings: LoRASettings) -> str:
        return f"{super().describe(settings)}; a magnitude for each output (DoRA)"

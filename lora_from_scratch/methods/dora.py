"""DoRA as a method: LoRA's settings and places, and a magnitude for each output; see `dora_linear.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_from_scratch.methods.lora import LoRA, LoRASettings
from lora_from_scratch.methods.targets import refuse_parts

if TYPE_CHECKING:
    from torch import Generator, nn


@dataclass(frozen=True, kw_only=True)
class DoRASettings(LoRASettings):
    """What LoRA can be asked, of whole layers: outputs of parts not named would have magnitudes alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_parts(self.target_modules, DoRA.name)


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
    Settings = DoRASettings

    def adapt(
        self, model: nn.Module, settings: DoRASettings, generator: Generator | None = None
    ) -> nn.Module:
        """r (in + out) + out parameters for each target layer learn, and the head."""
        from lora_from_scratch.methods.dora_linear import with_magnitudes

        return with_magnitudes(super().adapt(model, settings, generator))

    def describe(self, settings: DoRASettings) -> str:
        return f"{super().describe(settings)}; a magnitude for each output (DoRA)"

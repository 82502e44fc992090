"""PiSSA as a method: LoRA that starts from W0's own top directions. The layer is `pissa_linear.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_from_scratch.methods.interface import flag
from lora_from_scratch.methods.lora import LoRA, LoRASettings
from lora_from_scratch.methods.targets import refuse_parts

if TYPE_CHECKING:
    from torch import Generator, nn


@dataclass(frozen=True, kw_only=True)
class PiSSASettings(LoRASettings):
    """What LoRA can be asked, of whole layers. No dropout by default: B A does part of what W0 did."""

    dropout: float = flag(0.0, "dropout before A", "P")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_parts(self.target_modules, PiSSA.name)


class PiSSA(LoRA):
    """LoRA around W0 without its top r singular directions, which A and B start as (Meng et al. 2024).

    As many parameters learn as by LoRA. What is saved is a plain LoRA adapter of the untouched base, of twice
    the rank: see `PiSSALinear.as_lora`.
    """

    name = "pissa"
    summary = "LoRA that starts from the layers' top singular directions"
    saved_as = "A PiSSA adapter"
    # LoRA's, not tuned for this start, from which A and B both learn at once: tune them with run.py tune.
    rates = LoRA.rates
    by_default = False
    Settings = PiSSASettings

    def adapt(
        self, model: nn.Module, settings: PiSSASettings, generator: Generator | None = None
    ) -> nn.Module:
        """UserError also where a layer has fewer than r directions."""
        from lora_from_scratch.core.surgery import lora_layers, place
        from lora_from_scratch.methods.pissa_linear import PiSSALinear

        update = settings.rank, settings.alpha, settings.dropout
        super().adapt(model, replace(settings, rank=1), generator)  # of any rank: what is placed is replaced
        for name, layer in list(lora_layers(model)):
            place(model, name, PiSSALinear(layer.base_layer, *update))
        return model

    def describe(self, settings: PiSSASettings) -> str:
        saved = f"saved as plain LoRA of rank {2 * settings.rank}, alpha {2 * settings.alpha:g}"
        return f"{super().describe(settings)}, started as PiSSA; {saved}"

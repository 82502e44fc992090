"""rsLoRA: LoRA that is scaled by alpha / sqrt(r)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_from_scratch.methods.lora import LoRA, LoRASettings

if TYPE_CHECKING:
    from torch import Generator, nn


class RsLoRA(LoRA):
    """h = W0 x + (alpha / sqrt(r)) B A x       (Kalajdzievski 2023, arXiv:2312.03732)

    The paper's argument: with alpha / r gradients shrink as r grows, and a high rank learns as little as a
    low one; with alpha / sqrt(r) their norm does not depend on r. All else is LoRA. (AdamW divides gradients
    by their size: docs/choices.md.)
    """

    name = "rslora"
    summary = "LoRA scaled by alpha / sqrt(rank)"
    saved_as = "An rsLoRA adapter"
    # LoRA's, not tuned for this scaling, which at rank 4 is twice LoRA's: tune them with run.py tune.
    rates = LoRA.rates
    by_default = False

    def adapt(
        self, model: nn.Module, settings: LoRASettings, generator: Generator | None = None
    ) -> nn.Module:
        from lora_from_scratch.core.surgery import lora_layers

        for _, layer in lora_layers(super().adapt(model, settings, generator)):
            layer.rank_stabilized = True
        return model

    def describe(self, settings: LoRASettings) -> str:
        return f"{super().describe(settings)}, scaled by alpha / sqrt(rank)"

"""LoRA+: LoRA whose B learns at a higher rate than its A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_from_scratch.methods.interface import decay_matrices, flag, positive
from lora_from_scratch.methods.lora import LoRA, LoRASettings

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class LoRAPlusSettings(LoRASettings):
    """What LoRA can be asked, and the ratio."""

    lr_ratio: float = flag(16.0, "learning rate of B over --lr, which is that of A and of the head", "RATIO")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(lr_ratio=self.lr_ratio)


class LoRAPlus(LoRA):
    """rate of B = lambda x rate of A            (Hayou et al. 2024, arXiv:2402.12354)

    B starts at zero and A does not. In a wide layer one rate cannot suit both: where A learns well, B hardly
    moves. Weight decay is AdamW's, rate times weight, for B as for all else; so it, too, is lambda times A's.
    The head has A's rate.
    """

    name = "lora-plus"
    summary = "LoRA whose B has a learning rate of its own"
    saved_as = "A LoRA adapter (trained by LoRA+)"
    # Not tuned: run.py tune does that. LoRA's 5e-4 for A would mean, times 16, 8e-3 for B, which does most of
    # the learning at first. This is a quarter of LoRA's, for the head too; B's, 2e-3, is four times LoRA's.
    rates = (1.25e-4, 1.25e-4)
    by_default = False
    Settings = LoRAPlusSettings

    def parameter_groups(
        self, model: nn.Module, settings: LoRAPlusSettings, weight_decay: float
    ) -> list[dict[str, object]]:
        of_b = {name: p for name, p in model.named_parameters() if name.endswith(".lora_B")}
        others = (p for name, p in model.named_parameters() if name not in of_b)
        faster = decay_matrices(of_b.values(), weight_decay)
        return decay_matrices(others, weight_decay) + [{**g, "lr_ratio": settings.lr_ratio} for g in faster]

    def describe(self, settings: LoRAPlusSettings) -> str:
        return f"{super().describe(settings)}, B's learning rate {settings.lr_ratio:g} times A's"

"""No fine-tuning: what the others are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_from_scratch.methods.interface import Method

if TYPE_CHECKING:
    import torch
    from transformers import GPT2ForSequenceClassification


class NoFineTuning(Method):
    name = "none"
    summary = "no fine-tuning"
    trains = False

    def adapt(
        self, model: GPT2ForSequenceClassification, settings: object, generator: torch.Generator | None = None
    ) -> GPT2ForSequenceClassification:
        """Everything frozen, the head as it was drawn."""
        return model.requires_grad_(False)

"""Full fine-tuning: everything learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_from_scratch.methods.interface import Method

if TYPE_CHECKING:
    import torch
    from transformers import GPT2ForSequenceClassification


class Full(Method):
    name = "full"
    summary = "full fine-tuning"
    saved_as = "A fully fine-tuned model"
    # Chosen on the bundled base (benchmarks/choose_learning_rate.py); for bases as wide as GPT-2, what the
    # author of the published table later found better than its 2e-4.
    rates = (3e-4, 5e-5)
    format = "checkpoint"

    def adapt(
        self, model: GPT2ForSequenceClassification, settings: object, generator: torch.Generator | None = None
    ) -> GPT2ForSequenceClassification:
        """All 124,441,344 parameters of a GPT-2 small with two labels."""
        return model.requires_grad_(True)

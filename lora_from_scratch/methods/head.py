"""The classifier head alone, on a frozen model: a linear probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_from_scratch.methods.interface import Method

if TYPE_CHECKING:
    import torch
    from transformers import GPT2ForSequenceClassification


class Head(Method):
    name = "head"
    summary = "the classifier head alone (a linear probe)"
    saved_as = "A classifier head"
    rates = (3e-3, 3e-3)  # chosen on the bundled base, with benchmarks/choose_learning_rate.py
    format = "tensors"

    def adapt(
        self, model: GPT2ForSequenceClassification, settings: object, generator: torch.Generator | None = None
    ) -> GPT2ForSequenceClassification:
        """num_labels * width parameters learn."""
        model.requires_grad_(False).score.requires_grad_(True)
        return model

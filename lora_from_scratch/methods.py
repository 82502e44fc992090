"""The ways of adapting GPT-2 that are compared: each a function from a model to that model, made ready.

All follow one rule: freeze everything, then thaw by structure. What is trained, counted and saved is then
exactly what has `requires_grad`.
"""

from __future__ import annotations

import torch
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.config import RunConfig
from lora_from_scratch.errors import UserError
from lora_from_scratch.prelayer import prelayer
from lora_from_scratch.surgery import inject_lora

# Default learning rates. The first column was chosen on the bundled base with sentences held out of SST-2's
# train split (benchmarks/choose_learning_rate.py). The second is for bases as wide as GPT-2, whose weights
# were not at hand to choose on: full and lora are what the author of the published table later found better
# than its 2e-4, prelayer is that 2e-4, and the head's is that of the first column.
NARROW = 512
LEARNING_RATES = {
    "head": (3e-3, 3e-3),
    "full": (3e-4, 5e-5),
    "lora": (5e-4, 5e-4),
    "prelayer": (3e-4, 2e-4),
}


def default_lr(method: str, width: int) -> float | None:
    """The learning rate for a method on a base of hidden size `width`; None where nothing is trained."""
    narrow, wide = LEARNING_RATES.get(method, (None, None))
    return narrow if width < NARROW else wide


def none(model: GPT2ForSequenceClassification) -> GPT2ForSequenceClassification:
    """No fine-tuning: everything frozen, the head as it was drawn."""
    return model.requires_grad_(False)


def head(model: GPT2ForSequenceClassification) -> GPT2ForSequenceClassification:
    """The classifier head alone: a linear probe, num_labels * width parameters."""
    none(model).score.requires_grad_(True)
    return model


def full(model: GPT2ForSequenceClassification) -> GPT2ForSequenceClassification:
    """Full fine-tuning: everything learns."""
    return model.requires_grad_(True)


def lora(
    model: GPT2ForSequenceClassification,
    target_modules: tuple[str, ...],
    rank: int,
    alpha: float,
    dropout: float,
    generator: torch.Generator | None = None,
) -> GPT2ForSequenceClassification:
    """LoRA around the target layers, and the head (which starts random, so it has to learn).

    GPT-2 fuses Wq, Wk and Wv into c_attn: one rank-r update there shares A among the three, where the paper
    gives Wq and Wv an A each.
    """
    if "score" in target_modules:
        raise UserError("target score is the classifier head, which LoRA trains whole: leave it out")
    return inject_lora(head(model), target_modules, rank, alpha, dropout, generator)


def keep_frozen_in_bf16(model: GPT2ForSequenceClassification) -> GPT2ForSequenceClassification:
    """Store what does not learn, the head apart, in bf16: half the memory, and no cast of it in every step.

    Autocast rounds the matrices the same way in every step; embeddings and LayerNorm it would leave in fp32.
    What learns stays in fp32.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not name.startswith("score."):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def adapt(
    model: GPT2ForSequenceClassification, config: RunConfig, generator: torch.Generator | None = None
) -> GPT2ForSequenceClassification:
    """Make the model ready for `config.method`; the generator draws LoRA's A."""
    if config.method == "lora":
        return lora(model, config.target_modules, config.rank, config.alpha, config.dropout, generator)
    return {"none": none, "head": head, "full": full, "prelayer": prelayer}[config.method](model)

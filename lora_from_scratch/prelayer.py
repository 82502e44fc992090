"""PreLayer: what comes before the blocks learns, the blocks do not."""

from __future__ import annotations

from transformers import GPT2ForSequenceClassification


def prelayer(model: GPT2ForSequenceClassification) -> GPT2ForSequenceClassification:
    """Freeze all but the token embeddings `wte`, the position embeddings `wpe` and the classifier head.

    For GPT-2 small that leaves 50,257 * 768 + 1,024 * 768 + 1,536 = 39,385,344 parameters learning, 31.65 %
    of the model. Few of them move in a step: a row has a gradient only where its token or position occurs.
    """
    model.requires_grad_(False)
    for module in (model.transformer.wte, model.transformer.wpe, model.score):
        module.requires_grad_(True)
    return model

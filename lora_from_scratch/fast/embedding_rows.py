"""Train only the embedding rows that occur in the data; the others are known in closed form.

The gradient of a row whose token never occurs is zero in every step, and so are AdamW's moments of it: all
that happens to it is decay, w <- w (1 - lr_t * weight_decay). Of GPT-2's 50,257 rows SST-2 holds 13,000.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.data.batches import TokenizedExamples


@dataclass
class Occurring:
    """The examples under the ids of the small embeddings, and what the rows left out have to be scaled by."""

    examples: TokenizedExamples
    decay: Mapping[str, float] = field(default_factory=dict)  # by embedding


@contextmanager
def occurring_rows(model: GPT2ForSequenceClassification, examples: TokenizedExamples) -> Iterator[Occurring]:
    """Within the block `wte` and `wpe`, where they learn, hold the rows alone that `examples` need.

    At the end the rows go back to their places, and the others are multiplied by `decay`, which the block has
    to set to what AdamW would have done to them. Frozen embeddings stay as they are.
    """
    gpt2 = model.transformer
    rows = {"wte": examples.token_ids.unique(), "wpe": torch.arange(int(examples.lengths.max()))}
    whole = {name: getattr(gpt2, name) for name in rows if getattr(gpt2, name).weight.requires_grad}
    if "wte" in whole:
        examples = replace(examples, token_ids=torch.searchsorted(rows["wte"], examples.token_ids))
    for name, embedding in whole.items():
        weight = embedding.weight.detach()[rows[name]]
        setattr(gpt2, name, nn.Embedding.from_pretrained(weight, freeze=False))
    occurring = Occurring(examples)
    try:
        yield occurring
    finally:
        for name, embedding in whole.items():
            with torch.no_grad():
                embedding.weight.mul_(occurring.decay.get(name, 1.0))
                embedding.weight[rows[name]] = getattr(gpt2, name).weight
            setattr(gpt2, name, embedding)

"""Train only the embedding rows that occur in the data; the others are known in closed form.

The gradient of a row whose token never occurs is zero in every step, and so are AdamW's moments of it: all
that happens to it is decay, w <- w (1 - lr_t * weight_decay). Of GPT-2's 50,257 rows SST-2 holds 13,000.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.data.batches import TokenizedExamples


@dataclass(frozen=True)
class _Cut:
    """An embedding of which only some rows are trained, in a small one that stands in its place."""

    whole: nn.Embedding
    rows: Tensor  # which of its rows the small one holds
    small: nn.Embedding

    @torch.no_grad()
    def put_back(self, weight: Tensor, decay: float) -> Tensor:
        """The whole weight, in place: the small one's rows where they belong, the others decayed."""
        weight.mul_(decay)
        weight[self.rows] = self.small.weight
        return weight


@dataclass
class Occurring:
    """The examples under the ids of the small embeddings, and what the rows left out have to be scaled by."""

    examples: TokenizedExamples
    decay: Mapping[str, float] = field(default_factory=dict)  # by embedding
    model: GPT2ForSequenceClassification | None = None
    cuts: Mapping[str, _Cut] = field(default_factory=dict)  # by embedding

    @property
    def rows(self) -> dict[str, Tensor]:
        """Which rows there are of what was cut, by the weight's name in the model."""
        return {f"transformer.{name}.weight": cut.rows for name, cut in self.cuts.items()}

    @contextmanager
    def all_rows(self, decay: Mapping[str, float]) -> Iterator[None]:
        """Within the block copies of the embeddings as they would be at the end, were that now, with `decay`.

        Sentences of any tokens can be read then, under the ids of the tokenizer. What trains is put aside for
        as long, and stays as it is.
        """
        for name, cut in self.cuts.items():
            weight = cut.put_back(cut.whole.weight.detach().clone(), decay.get(name, 1.0))
            setattr(self.model.transformer, name, nn.Embedding.from_pretrained(weight))
        try:
            yield
        finally:
            for name, cut in self.cuts.items():
                setattr(self.model.transformer, name, cut.small)


@contextmanager
def occurring_rows(model: GPT2ForSequenceClassification, examples: TokenizedExamples) -> Iterator[Occurring]:
    """Within the block `wte` and `wpe`, where they learn, hold the rows alone that `examples` need.

    At the end the rows go back to their places, and the others are multiplied by `decay`, which the block has
    to set to what AdamW would have done to them. Frozen embeddings stay as they are.
    """
    gpt2 = model.transformer
    rows = {"wte": examples.token_ids.unique(), "wpe": torch.arange(int(examples.lengths.max()))}
    cuts = {}
    for name, needed in rows.items():
        whole = getattr(gpt2, name)
        if whole.weight.requires_grad:
            weight = whole.weight.detach()[needed]
            cuts[name] = _Cut(whole, needed, nn.Embedding.from_pretrained(weight, freeze=False))
    if "wte" in cuts:
        examples = replace(examples, token_ids=torch.searchsorted(rows["wte"], examples.token_ids))
    for name, cut in cuts.items():
        setattr(gpt2, name, cut.small)
    occurring = Occurring(examples, model=model, cuts=cuts)
    try:
        yield occurring
    finally:
        for name, cut in cuts.items():
            cut.put_back(cut.whole.weight.detach(), occurring.decay.get(name, 1.0))
            setattr(gpt2, name, cut.whole)

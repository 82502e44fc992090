"""Train only the embedding rows that occur in the data; the others are known in closed form.

Of frozen embeddings, too, no other row is read, so the others need not be in memory.

The gradient of a row whose token never occurs is zero in every step, and so are AdamW's moments of it: all
that happens to it is decay, w <- w (1 - lr_t * weight_decay). Of GPT-2's 50,257 rows SST-2 holds 13,000.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.data.batches import TokenizedExamples

# From names in the model to weights that take no memory until they are looked at: `Base.weights` in runs/.
Stored = Callable[..., Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True)
class _Cut:
    """An embedding of which only some rows are read, in a small one that stands in its place."""

    whole: nn.Embedding
    rows: Tensor  # which of its rows the small one holds
    small: nn.Embedding

    @property
    def learns(self) -> bool:
        return self.small.weight.requires_grad

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
        """Which rows there are of what was cut and learns, by the weight's name in the model."""
        return {_full(name): cut.rows for name, cut in self.cuts.items() if cut.learns}

    @property
    def spared_bytes(self) -> int:
        """By how much the rows of frozen embeddings are smaller than these."""
        frozen = [cut for cut in self.cuts.values() if not cut.learns]
        return sum(cut.whole.weight.nbytes - cut.small.weight.nbytes for cut in frozen)

    @contextmanager
    def all_rows(self, decay: Mapping[str, float]) -> Iterator[None]:
        """Within the block copies of the embeddings as they would be at the end, were that now, with `decay`.

        Sentences of any tokens can be read then, under the ids of the tokenizer. What trains is put aside for
        as long, and stays as it is.
        """
        for name, cut in self.cuts.items():
            weight = cut.whole.weight.detach()
            if cut.learns:
                weight = cut.put_back(weight.clone(), decay.get(name, 1.0))
            weight = weight.to(cut.small.weight)  # frozen ones may be rounded, and elsewhere
            setattr(self.model.transformer, name, nn.Embedding.from_pretrained(weight))
        try:
            yield
        finally:
            for name, cut in self.cuts.items():
                setattr(self.model.transformer, name, cut.small)


@contextmanager
def occurring_rows(
    model: GPT2ForSequenceClassification, examples: TokenizedExamples, stored: Stored | None = None
) -> Iterator[Occurring]:
    """Within the block `wte` and `wpe` hold the rows alone that `examples` need, where they learn.

    At the end the rows go back to their places, and the others are multiplied by `decay`, which the block has
    to set to what AdamW would have done to them.

    Frozen embeddings stay as they are, but for those that `stored` yields as they are: of these, too, only
    the rows are there, and at the end what `stored` gave stands in their places.
    """
    gpt2 = model.transformer
    rows = {"wte": examples.token_ids.unique(), "wpe": torch.arange(int(examples.lengths.max()))}
    frozen = [_full(name) for name in rows if not getattr(gpt2, name).weight.requires_grad]
    aside = dict(stored(frozen, mapped=True)) if stored else {}
    cuts = {}
    for name, needed in rows.items():
        whole, learns = getattr(gpt2, name), _full(name) not in frozen
        if learns or _full(name) in aside:
            weight = whole.weight.detach()[needed]
            cuts[name] = _Cut(whole, needed, nn.Embedding.from_pretrained(weight, freeze=not learns))
            if not learns:
                whole.weight = nn.Parameter(aside[_full(name)], requires_grad=False)
    if "wte" in cuts:
        examples = replace(examples, token_ids=torch.searchsorted(rows["wte"], examples.token_ids))
    for name, cut in cuts.items():
        setattr(gpt2, name, cut.small)
    occurring = Occurring(examples, model=model, cuts=cuts)
    try:
        yield occurring
    finally:
        for name, cut in cuts.items():
            if cut.learns:
                cut.put_back(cut.whole.weight.detach(), occurring.decay.get(name, 1.0))
            elsewhere = cut.small.weight.device != cut.whole.weight.device
            # Of tensors without memory `to` does nothing only if nobody else knows of them: it swaps them.
            setattr(gpt2, name, cut.whole.to(cut.small.weight.device) if elsewhere else cut.whole)


def _full(name: str) -> str:
    """Of an embedding's weight, in the model."""
    return f"transformer.{name}.weight"

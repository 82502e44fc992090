"""In how many parts a batch is computed: the longest one would decide how much memory a whole run takes.

On a CPU a few hundred tokens at a time take no longer than more of them (benchmarks/NOTES.md). On a GPU,
where that was not measured, a batch stays whole.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers import GPT2ForSequenceClassification

NUMBERS = 512 * 768  # in one activation of a part, tokens times the model's width: of GPT-2 small 512 tokens


@dataclass(frozen=True)
class Parting:
    """How batches are parted."""

    least: int = 1  # parts of each batch, where it has so many sentences
    tokens: int | None = None  # in a part at most, with padding, unless a single sentence has more

    @classmethod
    def of(cls, model: GPT2ForSequenceClassification, least: int) -> "Parting":
        """What fits the model, where it is.

        One that is shared out is left alone: until the last part each process would hold a whole gradient.
        """
        head = model.score.weight
        alone_on_cpu = head.device.type == "cpu" and not hasattr(head, "full_tensor")
        return cls(least, NUMBERS // model.config.n_embd if alone_on_cpu else None)

    def parts(self, lengths: Tensor) -> int:
        """Of a batch of sentences of these lengths, `(B,)` tokens, B at least 1."""
        least = min(self.least, len(lengths))
        if self.tokens is None:
            return least
        sentences = max(1, self.tokens // int(lengths.max()))
        return max(least, -(-len(lengths) // sentences))

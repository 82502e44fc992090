"""Prefix tuning: learned vectors before the tokens of every block, whose weights are all frozen.

Source: Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", and Liu et al. 2021,
"P-Tuning v2", which puts the vectors in every layer as here. What differs from both, and from PEFT: these are
vectors of the model's width at the block's input, of which its own frozen ln_1 and c_attn make keys and
values, where those learn keys and values themselves, twice as many numbers; and the tokens keep their
positions, 0, 1, 2, ..., where theirs begin behind the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_from_scratch.methods.interface import Method, at_least_one, flag

if TYPE_CHECKING:
    from torch import Generator, nn


@dataclass(frozen=True, kw_only=True)
class PrefixSettings:
    """What prefix tuning can be asked."""

    prefix_length: int = flag(5, "learned vectors before each block", "P")
    freeze_head: bool = flag(False, "leave the head as it was drawn: the prefixes alone learn")

    def __post_init__(self) -> None:
        at_least_one(prefix_length=self.prefix_length)


class Prefix(Method):
    """P vectors before each block, seen by every token, and the head.

    For GPT-2 small with P = 5 that leaves 12 * 5 * 768 = 46,080 parameters learning, and 1,536 in the head.
    """

    name = "prefix"
    summary = "learned vectors before every block, and the head"
    saved_as = "Prefixes of every block"
    rates = (1e-2, 1e-2)  # to be tuned
    format = "tensors"
    Settings = PrefixSettings

    def adapt(
        self, model: nn.Module, settings: PrefixSettings, generator: Generator | None = None
    ) -> nn.Module:
        """`block.prefix`, `(P, width)`, for each block; `core/gpt2.py` puts it before the block's tokens."""
        from torch import nn, randn

        model.requires_grad_(False)
        model.score.requires_grad_(not settings.freeze_head)
        size = (settings.prefix_length, model.config.n_embd)
        for block in model.transformer.h:  # N(0, 1): ln_1 takes a vector's scale out, so that any would do
            block.prefix = nn.Parameter(randn(size, generator=generator).to(model.score.weight.device))
        return model

    def describe(self, settings: PrefixSettings) -> str:
        return f"{settings.prefix_length} vectors before each block"

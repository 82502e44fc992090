"""Prefix tuning: learned vectors before the tokens of every block, whose weights are all frozen.

Source: Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", and Liu et al. 2021,
"P-Tuning v2", which has prompts in every layer. PEFT's prefix tuning differs in two ways, so its files are
neither read nor written. It learns keys and values, 2 x width numbers for each block and position; here it is
one vector of that width at the block's input, of which the frozen ln_1 and c_attn make both. And its tokens
take the positions P, P + 1, ...; here they keep theirs, 0, 1, 2, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_from_scratch.errors import UserError
from lora_from_scratch.methods.interface import Method, at_least_one, flag

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PrefixSettings:
    """What prefix tuning can be asked."""

    prefix_length: int = flag(5, "learned vectors before each block", "P")
    freeze_head: bool = flag(False, "leave the head as it was drawn: the prefixes alone learn")

    def __post_init__(self) -> None:
        at_least_one(prefix_length=self.prefix_length)


class Prefix(Method):
    """P vectors before each block, which every token sees and which see nothing themselves, and the head.

    For GPT-2 small with P = 5 that leaves 12 * 5 * 768 = 46,080 parameters learning, and 1,536 in the head.
    """

    name = "prefix"
    summary = "learned vectors before every block, and the head"
    saved_as = "Prefixes of every block"
    # To be tuned: of 3e-3, 1e-2 and 3e-2 on the bundled sentences, one seed each, 1e-2 left the lowest loss.
    rates = (1e-2, 1e-2)
    format = "tensors"
    merges = False
    Settings = PrefixSettings

    def adapt(
        self, model: nn.Module, settings: PrefixSettings, generator: Generator | None = None
    ) -> nn.Module:
        """Give each block its `prefix`, `(P, width)`, which `core/gpt2.py` puts before the block's tokens.

        UserError if P is more than the model has positions.
        """
        from torch import nn

        blocks, positions = model.transformer.h, model.config.n_positions
        if settings.prefix_length > positions:
            asked = f"--prefix-length {settings.prefix_length}"
            raise UserError(f"{asked}: this model has {positions} positions; ask for fewer")
        model.requires_grad_(False)
        model.score.requires_grad_(not settings.freeze_head)
        for block, start in zip(blocks, _inputs(model, settings.prefix_length, generator), strict=True):
            block.prefix = nn.Parameter(start)
            block.register_forward_pre_hook(_refuse)
        return model

    def describe(self, settings: PrefixSettings) -> str:
        head = ", the head frozen as it was drawn" if settings.freeze_head else ""
        return f"{settings.prefix_length} vectors before each block{head}"


def _inputs(model: nn.Module, length: int, generator: Generator | None) -> list[Tensor]:
    """What each block reads of `length` tokens drawn at random, `(length, width)`: where its prefix starts.

    Such vectors are like those that the block knows (Li & Liang 2021, section 7.4, found it to be better than
    noise). They are taken to the scale 1: `ln_1` undoes any, and so one learning rate suits all blocks.
    """
    import torch

    from lora_from_scratch.core.gpt2 import attend, feed_forward

    gpt2, training, read = model.transformer, model.training, []
    tokens = torch.randint(model.config.vocab_size, (1, length), generator=generator).to(model.device)
    gpt2.eval()
    with torch.no_grad():
        x = gpt2.wte(tokens) + gpt2.wpe.weight[:length]  # (1, P, C)
        for block in gpt2.h:
            read.append(torch.nn.functional.layer_norm(x[0], x.shape[2:]).to(model.score.weight.dtype))
            x = x + attend(block.attn, block.ln_1(x), length)
            x = x + feed_forward(block.mlp, block.ln_2(x))
    gpt2.train(training)
    return read


def _refuse(*_: object) -> None:
    why = "transformers' own forward pass knows no prefixes"
    raise UserError(f"{why}: call classify of lora_from_scratch.core.gpt2, or predict of runs.predict")

"""(IA)^3: three vectors in each block multiply keys, values and what is within the MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_from_scratch.methods.interface import Method

if TYPE_CHECKING:
    from torch import Generator, nn


class IA3(Method):
    """softmax(q (l_k k)^T) (l_v v) and W2 (l_ff gelu(W1 x)) in each block, and the head.

    Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning", arXiv:2205.05638, section 3.3; the layers are in `ia3_linear.py`. On GPT-2 small these are
    12 * (768 + 768 + 3072) = 55,296 parameters. PEFT's multiplies all of the fused c_attn, queries too:
    64,512 parameters that mean something else, so its files are neither read nor written.
    """

    name = "ia3"
    summary = "factors of keys, values and inner activations, and the head"
    saved_as = "Factors of keys, values and inner activations ((IA)^3)"
    rates = (3e-3, 3e-3)  # the paper's, with Adafactor; not tuned here
    format = "tensors"
    by_default = False

    def adapt(self, model: nn.Module, settings: object, generator: Generator | None = None) -> nn.Module:
        """Wrap c_attn and the MLP's c_proj of each block."""
        from lora_from_scratch.methods.ia3_linear import ScaledInner, ScaledKeysAndValues

        model.requires_grad_(False)
        model.score.requires_grad_(True)
        for block in model.transformer.h:
            block.attn.c_attn = ScaledKeysAndValues(block.attn.c_attn)
            block.mlp.c_proj = ScaledInner(block.mlp.c_proj)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        from lora_from_scratch.methods.ia3_linear import merge_ia3

        return merge_ia3(model)

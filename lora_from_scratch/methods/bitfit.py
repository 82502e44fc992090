"""BitFit: every bias vector learns, no matrix does, the head apart."""

from lora_from_scratch.methods.interface import Method


class BitFit(Method):
    """h = W0 x + b in every layer, where b alone learns; LayerNorm's biases too; and the head.

    Source: Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
    Masked Language-models", arXiv:2106.10199. GPT-2 small has 12 * 8448 + 768 = 102,144 biases. The causal
    mask, which earlier versions of transformers keep as a buffer called `bias`, is no parameter.
    """

    name = "bitfit"
    summary = "the bias vectors, and the head"
    saved_as = "Bias vectors, tuned (BitFit),"
    rates = (1e-3, 1e-3)  # twice LoRA's, as a place to start from; not tuned here
    format = "tensors"
    by_default = False

    def learns(self, model: object) -> list[object]:
        return [model.score, *(p for name, p in model.named_parameters() if name.endswith(".bias"))]

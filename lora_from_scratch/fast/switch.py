"""Everything of this room, on for a block and off again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.fast.dropout import cheap_dropout
from lora_from_scratch.fast.embedding_rows import Occurring, Stored, occurring_rows
from lora_from_scratch.fast.lora import fused_lora
from lora_from_scratch.fast.packed_weights import keep_frozen_in_bf16, packed_layers

# PyTorch's kernels of attention. cuDNN's, which it prefers on Hopper in bf16 and fp16, is
# not among them: it plans for each shape anew, and sentences have many lengths.
ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def fast_training(
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    precision: torch.dtype,
    stored: Stored | None = None,
) -> Iterator[Occurring]:
    """Within the block the model trains fast on the examples that are yielded, by `fast.gpt2.classify`.

    Frozen weights are packed, and under bf16 kept in bf16 from then on; of the embeddings that learn only the
    rows that occur are there, and `decay` has to be set as `occurring_rows` says, and so of frozen ones that
    are `stored`; dropout draws cheap bits; a LoRA layer over a packed one is one node of the graph.
    """
    rows = occurring_rows(model, examples, stored)
    with sdpa_kernel(ANY_SHAPE), cheap_dropout(model), rows as occurring:
        if precision == torch.bfloat16:
            keep_frozen_in_bf16(model)
        with packed_layers(model, precision), fused_lora(model):
            yield occurring

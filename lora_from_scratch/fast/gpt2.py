"""The fast twin of `core/gpt2.py`: the same logits from less work.

- The last block's output projection and MLP run only at the one position that the head reads (its attention
  too, where `attention.py` computes it): no other position of that block is ever looked at.
- Attention, dropout and GELU are those of this room.
- Over a base kept in bf16 the residual stream is bf16 too; autocast alone keeps it in fp32.
"""

import torch
from torch import Tensor
from transformers import GPT2ForSequenceClassification
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Block

from lora_from_scratch.fast.attention import causal_attention
from lora_from_scratch.fast.dropout import dropout
from lora_from_scratch.fast.gelu import gelu


def classify(model: GPT2ForSequenceClassification, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Logits `(B, num_labels)` of B sentences padded on the right: see `core.gpt2.classify`."""
    gpt2, config = model.transformer, model.config
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    x = gpt2.wte(input_ids) + gpt2.wpe(positions)  # (B, T, C)
    x = x.to(gpt2.ln_f.weight.dtype)  # learning embeddings are fp32, frozen blocks may be bf16
    x = dropout(x, config.embd_pdrop, model.training)
    for block in gpt2.h:
        last = lengths - 1 if block is gpt2.h[-1] else None
        attended = attend(block, x, last)  # (B, T, C), in the last block (B, C)
        if last is not None:
            x = x[torch.arange(len(x), device=x.device), last]  # (B, C)
        x = x + dropout(block.attn.c_proj(attended), config.resid_pdrop, model.training)
        x = x + dropout(feed_forward(block.mlp, block.ln_2(x)), config.resid_pdrop, model.training)
    x = gpt2.ln_f(x)  # (B, C)
    with torch.autocast(x.device.type, enabled=False):  # the head is never rounded
        return model.score(x.to(model.score.weight.dtype))  # (B, num_labels)


def attend(block: GPT2Block, x: Tensor, last: Tensor | None = None) -> Tensor:
    """Attention without its output projection: `(B, T, C)` -> `(B, T, C)`, or `(B, C)` at `last`."""
    attention, prefix = block.attn, getattr(block, "prefix", None)  # (P, C): see methods/prefix.py
    if prefix is not None:
        prefix = attention.c_attn(block.ln_1(prefix.to(x.dtype)))  # (P, 3 C), the same for every row
    p = attention.attn_dropout.p if attention.training else 0.0
    qkv = attention.c_attn(block.ln_1(x))
    return causal_attention(qkv, attention.num_heads, attention.scaling, p, last, prefix)


def feed_forward(mlp: GPT2MLP, x: Tensor) -> Tensor:
    """Two layers with GELU between them, four times as wide inside: `(..., C)` -> `(..., C)`."""
    h, fused = mlp.c_fc(x), type(mlp.act) in (NewGELUActivation, GELUTanh)  # one function, of two names
    return mlp.c_proj(gelu(h) if fused else mlp.act(h))

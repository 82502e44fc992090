"""GPT-2's forward pass, written out: what a classifier computes, and nothing else.

The modules and weights are transformers' own, and are called, so that what surgery placed is what runs.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the blocks are those of
Vaswani et al. 2017 with LayerNorm moved to their inputs.

Two things are left out of transformers' version, and neither changes a logit in fp32:
- the padding mask: padding stands on the right, where a causal mask already hides it from every real token;
- the last block's output projection and MLP, except at the one position that the head reads.
In bf16 the residual stream is rounded too, where autocast around transformers' version keeps it in fp32.
"""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import GPT2ForSequenceClassification
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention

from lora_from_scratch.dropout import dropout

TANH_GELU = (NewGELUActivation, GELUTanh)  # one function, which PyTorch has as one fused kernel


def classify(
    model: GPT2ForSequenceClassification, input_ids: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Logits `(B, num_labels)`, fp32, of B sentences padded on the right to T tokens.

    Args:
        input_ids: `(B, T)`; what stands behind a sentence's end is never read.
        lengths: `(B,)`, how many tokens of each row are real, at least 1.
    """
    gpt2, config = model.transformer, model.config
    rows = torch.arange(len(input_ids), device=input_ids.device)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)

    x = gpt2.wte(input_ids) + gpt2.wpe(positions)  # (B, T, C)
    x = x.to(gpt2.ln_f.weight.dtype)  # learning embeddings are fp32, frozen blocks may be bf16
    x = dropout(x, config.embd_pdrop, model.training)
    for block in gpt2.h:
        attended = attend(block.attn, block.ln_1(x))  # (B, T, C)
        if block is gpt2.h[-1]:
            x, attended = x[rows, lengths - 1], attended[rows, lengths - 1]  # (B, C)
        x = x + dropout(block.attn.c_proj(attended), config.resid_pdrop, model.training)
        x = x + dropout(feed_forward(block.mlp, block.ln_2(x)), config.resid_pdrop, model.training)
    x = gpt2.ln_f(x)  # (B, C)
    with torch.autocast(x.device.type, enabled=False):  # the head is never rounded
        return model.score(x.to(model.score.weight.dtype))  # (B, num_labels)


def attend(attention: GPT2Attention, x: torch.Tensor) -> torch.Tensor:
    """Causal self-attention without its output projection: `(B, T, C)` -> `(B, T, C)`.

    softmax(q k^T / sqrt(D)) v per head of width D, each position looking at itself and what came before.
    """
    B, T, C = x.shape
    qkv = attention.c_attn(x).view(B, T, 3, -1, attention.head_dim)
    heads = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
    if not attention.training:
        q, k, v = heads
        y = scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scaling)
    else:
        q, k, v = heads.flatten(1, 2)  # (B H, T, D) each, laid out anew in one copy
        future = torch.full((T, T), float("-inf"), dtype=q.dtype, device=x.device).triu(1)
        scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=attention.scaling)  # (B H, T, T)
        weights = dropout(scores.softmax(dim=-1), attention.attn_dropout.p, True)
        y = (weights @ v).view(B, -1, T, attention.head_dim)
    return y.transpose(1, 2).reshape(B, T, C)


def feed_forward(mlp: GPT2MLP, x: torch.Tensor) -> torch.Tensor:
    """Two layers with GELU between them, four times as wide inside: `(..., C)` -> `(..., C)`."""
    h = mlp.c_fc(x)
    h = gelu(h, approximate="tanh") if type(mlp.act) in TANH_GELU else mlp.act(h)
    return mlp.c_proj(h)

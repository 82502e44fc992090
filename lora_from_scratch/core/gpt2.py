"""What GPT-2 computes for a classifier, line by line.

The modules and weights are transformers' own, and are called, so that what surgery placed is what runs.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the blocks are those of
Vaswani et al. 2017, "Attention Is All You Need", with LayerNorm moved to their inputs.
"""

import torch
from torch.nn.functional import dropout
from transformers import GPT2ForSequenceClassification
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention


def classify(
    model: GPT2ForSequenceClassification, input_ids: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Logits `(B, num_labels)`, in the head's dtype, of B sentences padded on the right to T tokens.

    There is no padding mask: padding stands on the right, where the causal mask already hides it from every
    real token, and the head reads the last real one.

    Args:
        input_ids: `(B, T)`; what stands behind a sentence's end is never read.
        lengths: `(B,)`, how many tokens of each row are real, at least 1.
    """
    gpt2, config, training = model.transformer, model.config, model.training
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    x = gpt2.wte(input_ids) + gpt2.wpe(positions)  # (B, T, C)
    x = dropout(x, config.embd_pdrop, training)
    for block in gpt2.h:
        prefix = getattr(block, "prefix", None)  # (P, C), where one is learned: see methods/prefix.py
        seen = x if prefix is None else torch.cat([prefix.expand(len(x), -1, -1), x], dim=1)  # (B, P + T, C)
        x = x + dropout(attend(block.attn, block.ln_1(seen), x.shape[1]), config.resid_pdrop, training)
        x = x + dropout(feed_forward(block.mlp, block.ln_2(x)), config.resid_pdrop, training)
    rows = torch.arange(len(x), device=x.device)
    x = gpt2.ln_f(x)[rows, lengths - 1]  # (B, C)
    with torch.autocast(x.device.type, enabled=False):  # the head is never rounded
        return model.score(x.to(model.score.weight.dtype))  # (B, num_labels)


def attend(attention: GPT2Attention, x: torch.Tensor, T: int) -> torch.Tensor:
    """Self-attention of the last T of S positions: `(B, S, C)` -> `(B, T, C)`; c_attn is Wq, Wk and Wv."""
    B, S, C = x.shape
    heads = (B, S, attention.num_heads, -1)
    q, k, v = (part.view(heads).transpose(1, 2) for part in attention.c_attn(x).split(C, dim=2))
    p = attention.attn_dropout.p if attention.training else 0.0
    y = causal_attention(q[:, :, S - T :], k, v, attention.scaling, p)  # (B, H, T, D)
    return attention.c_proj(y.transpose(1, 2).reshape(B, T, C))


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, p: float
) -> torch.Tensor:
    """softmax(scale q k^T) v: the last T of S positions, `(B, H, T, D)`, see themselves and all before."""
    T, S = q.shape[-2], k.shape[-2]
    scores = scale * q @ k.transpose(-2, -1)  # (B, H, T, S)
    future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(diagonal=1 + S - T)
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return dropout(weights, p) @ v


def feed_forward(mlp: GPT2MLP, x: torch.Tensor) -> torch.Tensor:
    """Two layers with GELU between them, four times as wide inside: `(..., C)` -> `(..., C)`."""
    return mlp.c_proj(mlp.act(mlp.c_fc(x)))

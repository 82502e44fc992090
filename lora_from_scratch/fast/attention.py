"""The fast twin of `core.gpt2.causal_attention`: forward and backward, written out for a CPU.

Source: Vaswani et al. 2017, section 3.2.1. PyTorch's fused kernels for a CPU know no dropout, and autograd
over the single operations copies and scales more than there is to compute. Where nothing is dropped, and on
a GPU, PyTorch's kernel does it.
"""

import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn.functional import scaled_dot_product_attention

from lora_from_scratch.fast.dropout import scaled_mask


def causal_attention(
    qkv: Tensor,
    num_heads: int,
    scale: float,
    dropout: float,
    last: Tensor | None = None,
    prefix: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v per head, each position looking at itself and what came before.

    `qkv`, `(B, T, 3 C)`, is queries, keys and values side by side, each of `num_heads` heads; `dropout` the
    probability of zeroing an attention weight, 0 outside training. `prefix`, `(P, 3 C)`, stands before every
    row: its keys and values are seen by all T positions, its queries are not asked. Returns `(B, T, C)`; with
    `last`, `(B,)`, the one position of each row that is asked for, `(B, C)`.
    """
    if dropout and qkv.device.type == "cpu":
        return _Attention.apply(qkv, prefix, num_heads, scale, dropout, last)
    (B, T, width), mask = qkv.shape, None
    q, k, v = qkv.view(B, T, 3, num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
    if prefix is not None:
        P = len(prefix)
        _, *before = prefix.view(P, 3, num_heads, 1, -1).permute(1, 3, 2, 0, 4)  # (1, H, P, D) each
        k, v = (torch.cat([a.expand(B, -1, -1, -1), b], dim=2) for a, b in zip(before, (k, v), strict=True))
        mask = torch.ones(T, P + T, dtype=torch.bool, device=qkv.device).tril(diagonal=P)
    y = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scale)
    y = y.transpose(1, 2).reshape(B, T, width // 3)
    return y if last is None else y[torch.arange(B, device=y.device), last]


class _Attention(Function):
    """With S = scale q k^T, W = softmax(S), M the mask of dropout and y = (W M) v:

    dv = (W M)^T dy,  dW = (dy v^T) M,  dS = W (dW - sum(W dW)),  dq = scale dS k,  dk = scale dS^T q.
    A prefix's dk and dv are summed over the B rows that see it.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        qkv: Tensor,
        prefix: Tensor | None,
        num_heads: int,
        scale: float,
        dropout: float,
        last: Tensor | None,
    ) -> Tensor:
        B, T, width = qkv.shape
        C, D, P = width // 3, width // 3 // num_heads, 0 if prefix is None else len(prefix)
        # Laid out anew in one copy, so that the products below run over (B H) matrices.
        tokens = qkv.view(B, T, 3, num_heads, D).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        if prefix is None:
            q, k, v = tokens.reshape(3, B * num_heads, T, D)
        else:
            before = prefix.view(P, 1, 3, num_heads, D).permute(2, 1, 3, 0, 4)[1:].expand(-1, B, -1, -1, -1)
            k, v = torch.cat([before, tokens[1:]], dim=3).view(2, B * num_heads, P + T, D)
            q = tokens[0].reshape(B * num_heads, T, D)
        asked = torch.arange(P, P + T)[None] if last is None else P + last[:, None]  # (1, T) or (B, 1)
        future = torch.zeros(*asked.shape, P + T, dtype=qkv.dtype)
        # (1, T, P + T) or (B, 1, P + T)
        future.masked_fill_(torch.arange(P + T) > asked[..., None], float("-inf"))
        if last is not None:
            q = q.view(B, num_heads, T, D)[torch.arange(B), :, last].reshape(-1, 1, D)  # (B H, 1, D)
            future = future.repeat_interleave(num_heads, dim=0)  # (B H, 1, P + T)
        weights = torch.baddbmm(future, q, k.transpose(1, 2), alpha=scale).softmax(dim=-1)
        mask = scaled_mask(weights, dropout)
        y = torch.bmm(weights * mask, v).view(B, num_heads, -1, D)
        ctx.save_for_backward(q, k, v, weights, mask, last)
        ctx.scale, ctx.prefix = scale, P
        return y.transpose(1, 2).reshape(B, T, C) if last is None else y.view(B, C)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, mask, last = ctx.saved_tensors
        (BH, S, D), B, P = k.shape, len(dy), ctx.prefix
        dy = dy.view(B, -1, BH // B, D).transpose(1, 2).reshape(BH, -1, D)
        dqkv = torch.empty(3, BH, S, D, dtype=dy.dtype)
        torch.bmm((weights * mask).transpose(1, 2), dy, out=dqkv[2])
        dweights = torch.bmm(dy, v.transpose(1, 2)).mul_(mask)
        dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(ctx.scale)
        torch.bmm(dscores.transpose(1, 2), q, out=dqkv[1])
        if last is None and not P:
            torch.bmm(dscores, k, out=dqkv[0])
        else:  # the other queries were not asked
            dq = dqkv[0].zero_().view(B, -1, S, D)[:, :, P:]  # (B, H, T, D)
            rows, of_asked = torch.arange(B), torch.bmm(dscores, k).view(B, BH // B, -1, D)
            if last is None:
                dq.copy_(of_asked)
            else:
                dq[rows, :, last] = of_asked[:, :, 0]
        dqkv = dqkv.view(3, B, -1, S, D).permute(1, 3, 0, 2, 4)  # (B, S, 3, H, D)
        dprefix = dqkv[:, :P].sum(dim=0).reshape(P, -1) if P else None
        return dqkv[:, P:].reshape(B, S - P, -1), dprefix, None, None, None, None

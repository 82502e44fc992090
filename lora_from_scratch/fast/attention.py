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
    P = 0 if prefix is None else len(prefix)
    if P:
        qkv = torch.cat([prefix.expand(len(qkv), -1, -1), qkv], dim=1)  # (B, P + T, 3 C)
    if dropout and qkv.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):  # what is fp32 below is meant to be
            return _Attention.apply(qkv, num_heads, scale, dropout, last, P)
    B, S, width = qkv.shape
    q, k, v = qkv.view(B, S, 3, num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, S, D) each
    seen = torch.ones(S - P, S, dtype=torch.bool, device=qkv.device).tril(diagonal=P) if P else None
    y = scaled_dot_product_attention(q[:, :, P:], k, v, seen, dropout, is_causal=not P, scale=scale)
    y = y.transpose(1, 2).reshape(B, S - P, width // 3)
    return y if last is None else y[torch.arange(B, device=y.device), last]


class _Attention(Function):
    """With S = scale q k^T, W = softmax(S), M the mask of dropout and y = (W M) v:

    dv = (W M)^T dy,  dW = (dy v^T) M,  dS = W (dW - sum(W dW)),  dq = scale dS k,  dk = scale dS^T q.

    S and W are laid out by keys, `(S, B H, T)`: softmax over the first dimension takes whole vectors, where
    over the last one it takes a row of a dozen numbers at a time.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        qkv: Tensor,
        num_heads: int,
        scale: float,
        dropout: float,
        last: Tensor | None,
        P: int,
    ) -> Tensor:
        """Over `(B, S, 3 C)`; the first P of the S positions ask nothing."""
        B, S, width = qkv.shape
        C, D = width // 3, width // 3 // num_heads
        # Laid out anew in one copy, so that the products below run over (B H) matrices.
        q, k, v = qkv.view(B, S, 3, num_heads, D).permute(2, 0, 3, 1, 4).reshape(3, B * num_heads, S, D)
        asked = torch.arange(P, S)[None] if last is None else P + last[:, None]  # (1, T) or (B, 1)
        future = torch.zeros(S, *asked.shape, dtype=qkv.dtype)
        future.masked_fill_(torch.arange(S)[:, None, None] > asked, float("-inf"))  # (S, 1, T) or (S, B, 1)
        if last is None:
            q = q[:, P:]  # (B H, T, D)
        else:
            future = future.repeat_interleave(num_heads, dim=1)  # (S, B H, 1)
            q = q.view(B, num_heads, S, D)[torch.arange(B), :, P + last].reshape(-1, 1, D)  # (B H, 1, D)
            # For so little oneDNN would compile, and keep, three kernels for each S. MKL has one, in fp32.
            q, k, v = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (q, k, v))
        weights = torch.add(future, _by_keys(k, q), alpha=scale).softmax(dim=0)  # (S, B H, T)
        mask = scaled_mask(weights, dropout)
        y = torch.bmm((weights * mask).permute(1, 2, 0), v).to(qkv.dtype).view(B, num_heads, -1, D)
        ctx.save_for_backward(q, k, v, weights, mask, last)
        ctx.scale, ctx.P = scale, P
        return y.transpose(1, 2).reshape(B, -1, C) if last is None else y.view(B, C)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, mask, last = ctx.saved_tensors
        (BH, S, D), B, P, dtype = k.shape, len(dy), ctx.P, dy.dtype
        dy = dy.to(k.dtype).view(B, -1, BH // B, D).transpose(1, 2).reshape(BH, -1, D)
        dqkv = torch.empty(3, BH, S, D, dtype=dy.dtype)
        torch.bmm((weights * mask).transpose(0, 1), dy, out=dqkv[2])
        dweights = _by_keys(v, dy).mul_(mask)
        dscores = torch._softmax_backward_data(dweights, weights, 0, weights.dtype).mul_(ctx.scale)
        torch.bmm(dscores.transpose(0, 1), q, out=dqkv[1])
        if last is None:
            dqkv[0][:, :P] = 0
            torch.bmm(dscores.permute(1, 2, 0), k, out=dqkv[0][:, P:])
        else:
            asked = dqkv[0].zero_().view(B, -1, S, D)
            asked[torch.arange(B), :, P + last] = torch.bmm(dscores.permute(1, 2, 0), k).view(B, -1, D)
        dqkv = dqkv.view(3, B, -1, S, D).permute(1, 3, 0, 2, 4).reshape(B, S, -1).to(dtype)
        return dqkv, None, None, None, None, None


def _by_keys(keys: Tensor, queries: Tensor) -> Tensor:
    """Each key's products with all queries, `(N, S, D)` and `(N, T, D)` -> `(S, N, T)`."""
    (N, S, _), T = keys.shape, queries.shape[1]
    # In bf16 oneDNN writes in that order at once. In fp32 MKL would leave it to a slow loop.
    products = keys.new_empty(S, N, T).transpose(0, 1) if keys.dtype == torch.bfloat16 else None
    return torch.bmm(keys, queries.transpose(1, 2), out=products).transpose(0, 1)

"""Attention by hand, forward and backward, against float64 autograd over the textbook's operations."""

from __future__ import annotations

import pytest
import torch

from lora_from_scratch.fast.attention import causal_attention

B, T, H, D = 3, 7, 4, 8
LAST = torch.tensor([6, 0, 3])


def textbook(
    qkv: torch.Tensor, scale: float, mask: torch.Tensor | float, last: torch.Tensor | None
) -> torch.Tensor:
    q, k, v = qkv.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
    scores = scale * q @ k.transpose(-1, -2)
    weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf")).softmax(dim=-1)
    if last is not None:
        weights = weights[torch.arange(B), :, last].unsqueeze(2)  # (B, H, 1, T)
    y = ((weights * mask) @ v).transpose(1, 2).reshape(B, -1, H * D)
    return y if last is None else y[:, 0]


def values(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(B, T, 3 * H * D, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


@pytest.mark.parametrize("last", [None, LAST])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_values_and_gradients_are_the_textbooks(monkeypatch, dropout, last):
    """With the mask that dropout drew, so that nothing is left to chance."""
    drawn = []

    def draw(x: torch.Tensor, p: float) -> torch.Tensor:
        drawn.append((torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) >= p) / (1 - p))
        return drawn[-1].to(x.dtype)

    monkeypatch.setattr("lora_from_scratch.fast.attention.scaled_mask", draw)
    qkv, same = values(), values()
    y = causal_attention(qkv, H, 0.3, dropout, last)
    mask = drawn[0].double().permute(1, 2, 0).reshape(B, H, -1, T) if dropout else 1.0  # drawn by keys
    expected = textbook(same, 0.3, mask, last)
    dy = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y.backward(dy)
    expected.backward(dy)
    assert len(drawn) == (dropout > 0)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(qkv.grad, same.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("last", [None, LAST])
def test_in_bf16_they_are_the_textbooks_to_a_few_roundings(monkeypatch, last):
    mask = (
        torch.rand(T, B * H, T if last is None else 1, generator=torch.Generator().manual_seed(1)) > 0.3
    ) / 0.7
    monkeypatch.setattr("lora_from_scratch.fast.attention.scaled_mask", lambda x, p: mask.to(x.dtype))
    qkv = values(torch.bfloat16)
    same = qkv.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # as a training has it
        y = causal_attention(qkv, H, 0.3, 0.3, last)
    expected = textbook(same, 0.3, mask.double().permute(1, 2, 0).reshape(B, H, -1, T), last)
    dy = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    y.backward(dy)
    expected.backward(dy.double())
    for found, exact in ((y, expected), (qkv.grad, same.grad)):
        assert (found.double() - exact).norm() < 2e-2 * exact.norm()


def test_a_weight_is_dropped_as_often_as_asked():
    """Values of one everywhere: y is the sum of the kept weights, its mean one."""
    torch.manual_seed(0)
    many = torch.zeros(64, 16, 3 * 32)
    many[..., 64:] = 1
    y = causal_attention(many, 4, 1.0, 0.5)
    first = y[:, 0].view(64, 4, 8)[..., 0]  # the first position sees itself alone: 0 or 2
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert abs(first.mean().item() - 1) < 5 / 256**0.5
    assert abs(y.mean().item() - 1) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_keeps_the_dtype(dtype):
    qkv = values(dtype)
    torch.manual_seed(0)
    y = causal_attention(qkv, H, 0.3, 0.2, LAST)
    y.sum().backward()
    assert y.dtype == qkv.grad.dtype == dtype
    queries = qkv.grad[..., : H * D].abs().sum(dim=-1)  # (B, T): one query a row was asked
    assert (queries.argmax(dim=1) == LAST).all() and (queries > 0).sum() <= B

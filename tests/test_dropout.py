"""Dropout drops as often as it says, independently, keeps the mean, and repeats with the seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_from_scratch import inject_lora
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.fast.dropout import Dropout, cheap_dropout, dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_how_many_fall_and_what_the_others_become(p, dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(1000, 1003, dtype=dtype), p, True)
    assert y.dtype == dtype
    kept = y != 0
    n = y.numel()
    assert abs(kept.double().mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5 + 2**-17
    assert y[kept].unique().tolist() == [
        pytest.approx(1 / (1 - p), rel=1e-2 if dtype == torch.bfloat16 else 1e-3)
    ]
    for dim in (0, 1):  # no row and no column falls together
        share = kept.double().mean(dim)
        assert (share - (1 - p)).abs().max() < 6 * (p * (1 - p) / 1000) ** 0.5


def test_every_lane_is_its_own():
    """Neighbours share a 64-bit draw: their correlation is nil all the same, in any of the four places."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5, True) != 0).double().view(-1, 4)
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / 100_000**0.5
    assert (kept.mean(0) - 0.5).abs().max() < 5 * 0.5 / 100_000**0.5


def test_the_gradient_is_that_of_what_was_kept():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    y = dropout(x, 0.3, True)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y != 0, y / x, 0.0).detach(), rtol=1e-5, atol=1e-7)
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_seeds_and_the_ways_to_do_nothing():
    x = torch.randn(33)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(dropout(x, 0.5, True))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert dropout(x, 0.5, False) is x and dropout(x, 0.0, True) is x


def test_a_probability_next_to_one_drops_everything():
    assert not dropout(torch.ones(50), 0.999995, True).any()


def test_a_mode_that_is_set_within_the_block_holds_for_the_plain_dropout_behind_it(tiny_gpt2):
    inject_lora(tiny_gpt2.train(), ["c_attn"], rank=2, alpha=4, dropout=0.5)
    with cheap_dropout(tiny_gpt2):
        assert type(next(layer for _, layer in lora_layers(tiny_gpt2)).lora_dropout) is Dropout
        tiny_gpt2.eval()
    for _, layer in lora_layers(tiny_gpt2):
        assert type(layer.lora_dropout) is nn.Dropout and not layer.lora_dropout.training

"""LoRALinear against hand-computed matrices and dense algebra, for both kinds of base layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import LoRALinear, UserError


def make_base(kind: type, in_dim: int, out_dim: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Linear(in_dim, out_dim) if kind is nn.Linear else Conv1D(out_dim, in_dim)
    nn.init.normal_(base.weight)
    nn.init.normal_(base.bias)
    return base.to(dtype)


def make_lora(kind: type, rank: int = 3, alpha: float = 12, dtype: torch.dtype = torch.float64, **options):
    """A layer from 5 to 7 features whose B is off zero."""
    layer = LoRALinear(make_base(kind, 5, 7, dtype), rank, alpha, **options)
    nn.init.normal_(layer.lora_B)
    return layer


def dense_weight(layer: LoRALinear) -> torch.Tensor:
    """W0 as (out, in), whatever the base stores: the reference does not go through delta_weight."""
    weight = layer.base_layer.weight
    return weight if isinstance(layer.base_layer, nn.Linear) else weight.T


both_kinds = pytest.mark.parametrize("kind", [nn.Linear, Conv1D])


@both_kinds
def test_forward_by_hand(kind):
    # W0 = [[1, 2], [3, 4]], b = (10, 20); A = [[1, -1]], B = [[2], [5]], alpha / r = 3.
    # x = (1, 2): W0 x + b = (15, 31); A x = -1; (alpha/r) B A x = (-6, -15); h = (9, 16).
    base = nn.Linear(2, 2) if kind is nn.Linear else Conv1D(2, 2)
    W0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    base.weight.data = W0.clone() if kind is nn.Linear else W0.T.clone()
    base.bias.data = torch.tensor([10.0, 20.0])
    layer = LoRALinear(base, rank=1, alpha=3)
    layer.lora_A.data = torch.tensor([[1.0, -1.0]])
    layer.lora_B.data = torch.tensor([[2.0], [5.0]])
    x = torch.tensor([1.0, 2.0])
    assert layer(x).tolist() == [9.0, 16.0]
    # (alpha/r) B A = 3 * [[2, -2], [5, -5]]
    delta = torch.tensor([[6.0, -6.0], [15.0, -15.0]])
    assert torch.equal(layer.delta_weight(), delta if kind is nn.Linear else delta.T)
    plain = layer.merge()
    assert plain is base
    assert torch.equal(plain.weight, W0 + delta if kind is nn.Linear else (W0 + delta).T)
    assert plain(x).tolist() == [9.0, 16.0]


@both_kinds
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_forward_equals_dense_algebra(kind, shape):
    layer, x = make_lora(kind), torch.randn(shape, dtype=torch.float64)
    W = dense_weight(layer) + 12 / 3 * layer.lora_B @ layer.lora_A
    expected = linear(x, W, layer.base_layer.bias)
    assert layer(x).shape == (*shape[:-1], 7)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@both_kinds
def test_gradients_equal_dense_algebra(kind):
    layer, x = make_lora(kind), torch.randn(4, 5, dtype=torch.float64)
    target = torch.randn(4, 7, dtype=torch.float64)
    (layer(x) * target).sum().backward()
    # With L = sum(h * T): dL/dW = T^T x, so dL/dB = s (T^T x) A^T and dL/dA = s B^T (T^T x).
    dW = target.T @ x
    torch.testing.assert_close(layer.lora_B.grad, 4 * dW @ layer.lora_A.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.lora_A.grad, 4 * layer.lora_B.T @ dW, rtol=1e-12, atol=1e-12)
    assert layer.base_layer.weight.grad is None and layer.base_layer.bias.grad is None


@both_kinds
def test_a_new_layer_changes_nothing_and_can_learn(kind):
    base = make_base(kind, 5, 7)
    x = torch.randn(4, 5, dtype=torch.float64)
    before = base(x)
    layer = LoRALinear(base, rank=3, alpha=12)
    assert torch.equal(layer(x), before)
    layer(x).sum().backward()
    assert layer.lora_B.grad.abs().min() > 0  # B moves first: A is random
    assert torch.equal(layer.lora_A.grad, torch.zeros_like(layer.lora_A))  # A waits for B


@both_kinds
def test_rank_alpha_and_scaling_cannot_disagree(kind):
    layer = make_lora(kind, rank=3, alpha=12)
    layer.alpha = 6
    assert (layer.rank, layer.scaling) == (3, 2)
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = linear(x, dense_weight(layer) + 2 * layer.lora_B @ layer.lora_A, layer.base_layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@both_kinds
def test_weight_and_bias_are_those_that_it_computes_with(kind):
    layer, x = make_lora(kind), torch.randn(4, 5, dtype=torch.float64)
    weight = layer.weight if kind is nn.Linear else layer.weight.T
    torch.testing.assert_close(linear(x, weight, layer.bias), layer(x), rtol=1e-12, atol=1e-12)
    layer.weight.sum().backward()
    assert layer.lora_A.grad is not None and layer.base_layer.weight.grad is None
    assert layer.weight.shape == layer.base_layer.weight.shape and "weight" not in layer.state_dict()


def test_a_is_drawn_kaiming_uniform():
    # a = sqrt(5): gain^2 = 2 / (1 + 5), bound = sqrt(3) * gain / sqrt(in) = 1 / sqrt(in)
    layer = LoRALinear(nn.Linear(400, 8), rank=100, alpha=1, generator=torch.Generator().manual_seed(0))
    assert layer.lora_A.abs().max() <= 1 / 400**0.5
    assert layer.lora_A.std().item() == pytest.approx((1 / 400**0.5) / 3**0.5, rel=0.01)
    assert not layer.lora_B.any()


def test_a_is_drawn_from_its_generator_alone():
    def draw(global_seed: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        base = nn.Linear(5, 7)
        torch.manual_seed(global_seed)
        layer = LoRALinear(base, 3, 1, generator=torch.Generator().manual_seed(seed))
        return layer.lora_A, torch.rand(1)

    A, following = draw(0, 1)
    assert torch.equal(draw(5, 1)[0], A)
    assert not torch.equal(draw(0, 2)[0], A)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), following)  # the global stream has not moved


@both_kinds
def test_only_a_and_b_learn(kind):
    layer = make_lora(kind)
    learning = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert learning == {"lora_A", "lora_B"}
    assert layer.lora_A.shape == (3, 5) and layer.lora_B.shape == (7, 3)


@both_kinds
def test_merge_in_bf16_rounds_once(kind):
    layer = make_lora(kind, dtype=torch.bfloat16)
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    exact = layer.base_layer.weight.double() + layer.delta_weight().double()
    merged = layer.merge().weight
    assert merged.dtype == torch.bfloat16
    # bf16 keeps 8 significant bits: one rounding is off by at most 2^-8 of the value
    torch.testing.assert_close(merged.double(), exact, rtol=2**-8, atol=0)


def test_dropout_touches_the_update_alone_and_only_in_training():
    base = nn.Linear(5, 5, bias=False)
    layer = LoRALinear(base, rank=5, alpha=15, dropout=0.5)  # scaling 3
    layer.lora_A.data = layer.lora_B.data = torch.eye(5)  # so the update is 3 * dropout(x)
    x = torch.ones(2000, 5)
    layer.eval()
    torch.testing.assert_close(layer(x) - base(x), 3 * x)
    layer.train()
    update = layer(x) - base(x)
    dropped, doubled = update.abs() < 1e-5, (update - 6).abs() < 1e-5
    assert (dropped | doubled).all()
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank of a LoRA update must be at least 1, not 0"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"alpha": float("nan")}, "alpha must be above 0"),
        ({"alpha": float("inf")}, "alpha must be above 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"base_layer": nn.Embedding(3, 3)}, "wraps nn.Linear and Conv1D layers, not Embedding"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(UserError, match=message):
        LoRALinear(**{"base_layer": nn.Linear(2, 2), "rank": 1, "alpha": 1.0, **options})


def test_rank_stabilized_scaling_is_alpha_over_the_root_of_r():
    layer = LoRALinear(nn.Linear(6, 5), rank=4, alpha=6, rank_stabilized=True)
    assert layer.scaling == 3
    nn.init.normal_(layer.lora_B)
    torch.testing.assert_close(layer.delta_weight(), 3 * layer.lora_B @ layer.lora_A)


@pytest.mark.parametrize("rank", [49, 10**6, 10**15])
def test_a_rank_that_dwarfs_the_layer_is_refused_before_memory_is_taken(rank):
    LoRALinear(nn.Linear(6, 5), rank=48, alpha=1)
    with pytest.raises(UserError, match=f"rank {rank} is above 48: A and B would dwarf W0"):
        LoRALinear(nn.Linear(6, 5), rank=rank, alpha=1)

"""GELU is GPT-2's; its derivative is that of it in fp32, and in bf16 as near to it as the module says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import gelu as torch_gelu
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.fast import gelu as module
from lora_from_scratch.fast import gpt2
from lora_from_scratch.fast.gelu import WIDTH, gelu

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 products on this CPU"
)
WIDE = torch.cat([torch.linspace(-12, 12, 999, dtype=torch.float64), torch.zeros(25, dtype=torch.float64)])


def kernel(x: torch.Tensor) -> torch.Tensor:
    return torch_gelu(x, approximate="tanh")


def both(function: Callable, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and derivative, as float64."""
    x = x.detach().requires_grad_()
    y = function(x)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.dtype == slope.dtype == x.dtype
    return y.detach().double(), slope.double()


def test_in_fp32_value_and_derivative_are_as_near_as_a_few_roundings():
    expected = both(kernel, WIDE)
    for found, exact in zip(both(gelu, WIDE.float()), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=2e-6, atol=2e-6)
    with torch.no_grad():
        torch.testing.assert_close(gelu(WIDE.float()).double(), expected[0], rtol=2e-6, atol=2e-6)


@needs_bf16
@pytest.mark.parametrize("shape", [(1024,), (64, 16), (2, 4, 128)])
def test_in_bf16_the_value_is_the_tanh_forms_to_the_rounding(shape):
    x = WIDE.bfloat16().view(shape)
    y, exact = gelu(x).double(), kernel(x.double())
    assert ((y - exact).abs() <= exact.abs() * 2**-8 + 2e-7).all()
    assert (y.view(-1) == kernel(x).double().view(-1)).double().mean() > 0.99


@needs_bf16
def test_in_bf16_the_derivative_is_off_by_less_than_bf16_rounds_a_number_near_one():
    x = WIDE.bfloat16()
    exact, erf = both(kernel, x.double())[1], both(torch_gelu, x.double())[1]
    assert (exact - erf).abs().max() < 8.7e-4 < 2**-8
    _, found = both(gelu, x)
    assert ((found - erf).abs() <= erf.abs() * 2**-8 + 1e-6).all()

    # Beside what rounding does anyway that is little: of normal inputs the error grows by 4 %.
    x = torch.randn(2**18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = both(kernel, x)[1]
    ours, kernels = (
        (both(function, x.bfloat16())[1] - exact).square().mean().sqrt() for function in (gelu, kernel)
    )
    assert ours < 1.06 * kernels


@needs_bf16
@pytest.mark.parametrize("lies", ["in rows of another width", "transposed"])
def test_what_the_product_does_not_take_goes_to_pytorchs_kernel(lies):
    x = torch.randn(48, 2 * WIDTH).bfloat16()
    x = x[:, : WIDTH + 3].contiguous() if lies == "in rows of another width" else x.T
    assert all(map(torch.equal, both(gelu, x), both(kernel, x)))


def test_other_kinds_of_tensor_do_too():
    for x in (
        torch.tensor(0.5).bfloat16(),
        torch.randn(3, 16).double(),
        torch.randn(3, 16).half(),
        torch.randn(3, 16, device="meta"),
    ):
        y = gelu(x)
        assert y.dtype == x.dtype and (x.is_meta or torch.equal(y, kernel(x)))
    module._as_known.cache_clear()
    with FakeTensorMode():
        assert gelu(torch.randn(3, 16).bfloat16()).shape == (3, 16)
    assert module._as_known.cache_info().currsize == 0, "nothing was learned from a tensor without numbers"


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "relu"])
def test_the_fast_pass_asks_for_it_under_both_of_its_names_and_no_other(name, monkeypatch):
    model = GPT2ForSequenceClassification(tiny_config(activation_function=name))
    asked = []
    monkeypatch.setattr(gpt2, "gelu", lambda x: asked.append(x.shape) or gelu(x))
    gpt2.classify(model, torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    assert len(asked) == (0 if name == "relu" else model.config.n_layer)


LATER = {  # what a later PyTorch may do to the operation
    "removed": None,
    "takes other arguments": lambda one, other: one,
    "fails": lambda *given: torch.ones(2) @ torch.ones(3),
    "gives something else": lambda x, *rest: x,
}


@needs_bf16
@pytest.mark.parametrize("later", LATER)
def test_without_the_private_operation_pytorchs_kernel_does_it(later, monkeypatch):
    x = torch.randn(3, 16).bfloat16()
    known = {"_is_mkldnn_bf16_supported": lambda: True}
    there = {"_linear_pointwise": LATER[later]} if LATER[later] else {}
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**known, **there))
    module._as_known.cache_clear()
    try:
        assert all(map(torch.equal, both(gelu, x), both(kernel, x)))
    finally:
        module._as_known.cache_clear()

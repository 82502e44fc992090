"""The LoRA layer as one node computes what LoRALinear computes, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lora_from_scratch import RunConfig, adapt
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.fast import lora as module
from lora_from_scratch.fast.dropout import cheap_dropout
from lora_from_scratch.fast.gpt2 import classify
from lora_from_scratch.fast.lora import fused_lora
from lora_from_scratch.fast.packed_weights import Packed, packed_layers
from lora_from_scratch.fast.switch import fast_training

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
IN, OUT, RANK = 24, 40, 3


def made(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> LoRALinear:
    """Around a packed layer, with a B that is not zero."""
    draw = torch.Generator().manual_seed(0)
    base = nn.Linear(IN, OUT)
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.5, generator=draw)
    layer = LoRALinear(base.to(dtype), RANK, alpha=7.0, dropout=dropout, generator=draw)
    nn.init.normal_(layer.lora_B, generator=draw)
    layer.base_layer = Packed(base, dtype)
    return layer


def exact_base(layer: LoRALinear) -> nn.Linear:
    """The frozen layer with its rounded numbers in fp32."""
    base = nn.Linear(IN, OUT).requires_grad_(False)
    base.weight.data, base.bias.data = layer.base_layer.weight.float(), layer.bias.float()
    return base


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("learns", ["x A B", "A B", "x B", "B", "x A"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(5,), (2, 7), (), (0,), (0, 3)])
def test_value_and_gradients_are_those_of_float64(learns, dropout, shape, monkeypatch):
    """By autograd over the equation, with the mask that was drawn."""
    mask = (drawn(*shape, IN, seed=2) > -0.3).double() / (1 - dropout) if dropout else 1.0
    monkeypatch.setattr(module, "scaled_mask", lambda x, p: mask.to(x.dtype) if p == dropout else None)
    layer, x, dy = made(dropout), drawn(*shape, IN), drawn(*shape, OUT, seed=3)
    W, b = layer.base_layer.weight.double(), layer.bias.detach().double()
    tensors = {"x": x, "A": layer.lora_A, "B": layer.lora_B}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in learns.split())
    wide = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in tensors.items()}
    expected = wide["x"] @ W.T + b + 7 / RANK * ((wide["x"] * mask) @ wide["A"].T) @ wide["B"].T
    y = module.forward(layer, x)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    y.backward(dy)
    expected.backward(dy.double())
    for name, tensor in tensors.items():
        if name in learns.split():
            torch.testing.assert_close(tensor.grad.double(), wide[name].grad, rtol=1e-5, atol=2e-5, msg=name)
        else:
            assert tensor.grad is None


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 products on this CPU")
def test_in_bf16_it_is_as_near_as_the_layer_itself_and_what_learns_gets_fp32():
    exact, dy = made(dtype=torch.bfloat16), drawn(64, OUT, seed=3)
    exact.base_layer = Packed(exact_base(exact), torch.float32)
    results = {}
    for how, forward in (("fused", module.forward), ("plain", LoRALinear.forward)):
        layer, x = made(dtype=torch.bfloat16), drawn(64, IN).bfloat16().requires_grad_()
        y = forward(layer, x)
        y.backward(dy.bfloat16())
        assert (y.dtype, x.grad.dtype) == (torch.bfloat16, torch.bfloat16)
        assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32
        results[how] = (y, x.grad, layer.lora_A.grad, layer.lora_B.grad)
    x = drawn(64, IN).bfloat16().float().requires_grad_()
    y = LoRALinear.forward(exact, x)
    y.backward(dy.bfloat16().float())
    for fused, plain, wide in zip(
        *results.values(), (y, x.grad, exact.lora_A.grad, exact.lora_B.grad), strict=True
    ):
        ours, theirs = ((of.float() - wide).detach().norm() for of in (fused, plain))
        assert ours < 1.1 * theirs


def test_it_draws_the_mask_that_the_layer_would_draw(tiny_gpt2):
    """So a training is the same whichever computes it, but for rounding."""
    adapt(tiny_gpt2, RunConfig(method="lora", dropout=0.5)).train()
    ids, lengths = torch.randint(1, 50, (4, 9)), torch.tensor([9, 3, 1, 7])
    logits = []
    for _, layer in lora_layers(tiny_gpt2):
        nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(1))
    for fused in (True, False):
        model = copy.deepcopy(tiny_gpt2)
        with cheap_dropout(model), packed_layers(model, torch.float32):
            torch.manual_seed(0)
            if fused:
                with fused_lora(model):
                    logits.append(classify(model, ids, lengths))
            else:
                logits.append(classify(model, ids, lengths))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "rslora", "lora-plus", "lora-fa", "pissa", "dora"])
def test_layers_that_compute_something_else_stay_as_they_are(tiny_gpt2, method):
    adapt(tiny_gpt2, RunConfig(method=method))
    layers = [layer for _, layer in lora_layers(tiny_gpt2)]
    with fused_lora(tiny_gpt2):
        assert not any("forward" in vars(layer) for layer in layers), "none of them is packed"
    with pytest.raises(KeyboardInterrupt), packed_layers(tiny_gpt2, torch.float32), fused_lora(tiny_gpt2):
        assert [("forward" in vars(layer)) for layer in layers] == [method not in ("pissa", "dora")] * 2
        raise KeyboardInterrupt
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_fast_training_takes_it(tiny_gpt2, tiny_examples):
    adapt(tiny_gpt2, RunConfig(method="lora"))
    layers = [layer for _, layer in lora_layers(tiny_gpt2)]
    with fast_training(tiny_gpt2, tiny_examples, torch.float32):
        assert all("forward" in vars(layer) for layer in layers)

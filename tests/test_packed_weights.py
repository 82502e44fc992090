"""Packed layers compute what the plain ones compute, forward and backward, and leave nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import randomize_lora, tiny_config
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import RunConfig, adapt
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.fast.gpt2 import classify
from lora_from_scratch.fast.packed_weights import Packed, _packable, keep_frozen_in_bf16, packed_layers
from lora_from_scratch.train.training import Course, train

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
IDS = torch.randint(1, 50, (5, 12), generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([1, 12, 7, 12, 3])


def layer(kind: str, dtype: torch.dtype = torch.float32) -> nn.Linear | Conv1D:
    torch.manual_seed(0)
    made = Conv1D(36, 24) if kind == "conv1d" else nn.Linear(24, 36, bias=kind == "linear")
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("kind", ["conv1d", "linear", "linear without bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (3, 5, 24), (0, 24)])
def test_product_and_gradient_are_the_plain_layers(kind, dtype, shape):
    """Against float64: as near as one rounding of the result, whatever the layout."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bf16 products on this CPU")
    plain = layer(kind, dtype)
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = Packed(plain, dtype)(x)
    (y.float() ** 2).sum().backward()
    exact = copy.deepcopy(plain).double()
    x64 = x.detach().double().requires_grad_()
    expected = exact(x64)
    expected.backward(2 * y.detach().double())
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-5}
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.double(), expected, **tolerance)
    torch.testing.assert_close(x.grad.double(), x64.grad, **tolerance)


def test_gradients_that_do_not_lie_in_order():
    packed = Packed(layer("linear"), torch.float32)
    x = torch.randn(24, 3, 5).permute(1, 2, 0).requires_grad_()
    y = packed(x)
    torch.testing.assert_close(y, layer("linear")(x), rtol=1e-5, atol=1e-5)
    y.sum().backward()  # its gradient is one number, expanded
    torch.testing.assert_close(x.grad, layer("linear").weight.sum(0).expand(3, 5, 24), rtol=1e-5, atol=1e-5)


def assert_the_same_over_packed(
    model: nn.Module, reference: Callable, sentences: tuple[torch.Tensor, torch.Tensor], rtol: float
) -> None:
    """Logits and gradients of the fast pass over packed layers are those of the reference without."""
    plain, labels = copy.deepcopy(model), torch.tensor([0, 1, 1, 0, 1])
    expected = reference(plain, *sentences)
    cross_entropy(expected, labels).backward()
    with packed_layers(model, torch.float32):
        found = classify(model, *sentences)
        cross_entropy(found, labels).backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=rtol, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["lora", "prelayer", "prefix", "head", "dora", "lora-fa", "ia3"])
def test_logits_and_gradients_of_a_model(tiny_gpt2, method):
    still = {"dropout": 0.0} if method in ("lora", "dora", "lora-fa") else {}
    adapt(tiny_gpt2, RunConfig(method=method, **still))
    randomize_lora(tiny_gpt2)
    with packed_layers(tiny_gpt2, torch.float32):
        assert sum(isinstance(module, Packed) for module in tiny_gpt2.modules()) == 8
    assert_the_same_over_packed(tiny_gpt2, classify, (IDS, LENGTHS), rtol=1e-5)


def test_what_learns_is_packed_only_where_no_gradient_is_taken(tiny_gpt2):
    adapt(tiny_gpt2, RunConfig(method="full"))
    with packed_layers(tiny_gpt2, torch.float32):
        assert not any(isinstance(module, Packed) for module in tiny_gpt2.modules())
    with torch.no_grad(), packed_layers(tiny_gpt2, torch.float32):
        assert sum(isinstance(module, Packed) for module in tiny_gpt2.modules()) == 8
        assert type(tiny_gpt2.score) is nn.Linear


def test_other_precisions_are_left_alone(tiny_gpt2):
    tiny_gpt2.requires_grad_(False)
    for model, dtype in (
        (tiny_gpt2, torch.float16),
        (copy.deepcopy(tiny_gpt2).double(), torch.float32),
        (copy.deepcopy(tiny_gpt2).to("meta"), torch.float32),
    ):
        with packed_layers(model, dtype):
            assert not any(isinstance(module, Packed) for module in model.modules())


def test_a_layer_kept_in_bf16_stays_in_bf16_and_autocast_lowers_the_others():
    config = tiny_config()
    for kept, dtype, expected in (
        (False, torch.float32, torch.float32),
        (False, torch.bfloat16, torch.bfloat16),
        (True, torch.float32, torch.bfloat16),
        (True, torch.bfloat16, torch.bfloat16),
    ):
        if expected == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            continue
        model = GPT2ForSequenceClassification(config).requires_grad_(False)
        if kept:
            keep_frozen_in_bf16(model)
        with packed_layers(model, dtype):
            packed = model.transformer.h[0].mlp.c_fc
            assert packed(torch.randn(2, 16)).dtype == expected


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("cpu", ["AVX2", "AVX512"])
@pytest.mark.parametrize(
    ("kept", "dtype"), [(False, torch.float32), (True, torch.bfloat16), (False, torch.bfloat16)]
)
def test_every_layer_returns_to_its_place_even_after_an_error(tiny_gpt2, ran, cpu, kept, dtype, monkeypatch):
    """In fp32, kept in bf16, and in fp32 under an autocast to bf16, whose packed copy is a rounded one."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bf16 products on this CPU")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    adapt(tiny_gpt2, RunConfig(rank=2))
    if kept:
        keep_frozen_in_bf16(tiny_gpt2)
    before = dict(tiny_gpt2.named_modules())
    weights = {name: tensor.clone() for name, tensor in tiny_gpt2.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), packed_layers(tiny_gpt2, dtype):
        assert isinstance(tiny_gpt2.transformer.h[0].attn.c_attn, LoRALinear)
        packed = tiny_gpt2.transformer.h[0].attn.c_attn.base_layer
        assert isinstance(packed, Packed)
        if ran:
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                classify(tiny_gpt2, IDS, LENGTHS).sum().backward()
        # Once W is packed twice, or is known not to be, no plain copy stands beside.
        in_place = cpu == "AVX512" and not kept and dtype == torch.float32
        assert packed.in_place == in_place and (packed.plain is None) == (ran and not in_place)
        emptied = before["transformer.h.1.mlp.c_fc"].weight.numel() == 0
        assert emptied == (not in_place and (kept or dtype == torch.float32))
        raise KeyboardInterrupt
    assert dict(tiny_gpt2.named_modules()) == before
    for name, tensor in tiny_gpt2.state_dict().items():
        assert torch.equal(tensor, weights[name]) and tensor.stride() == weights[name].stride()
        assert tensor.dtype == weights[name].dtype


def test_a_shared_weight_and_a_layer_whose_bias_learns_are_left_alone():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(9, 4), "tied": nn.Linear(4, 9), "biased": nn.Linear(4, 4)}
    )
    model["tied"].weight = model["embedding"].weight
    model.requires_grad_(False)["biased"].bias.requires_grad_(True)
    with packed_layers(model, torch.float32):
        assert not any(isinstance(module, Packed) for module in model.modules())
    with torch.no_grad(), packed_layers(model, torch.float32):
        assert isinstance(model["biased"], Packed) and type(model["tied"]) is nn.Linear


class UnpackedOtherwise(torch.Tensor):
    def to_dense(self):
        return self + 1


LATER = {  # what a later PyTorch may do to an operation
    "removed": None,
    "takes other arguments": lambda one, other: one,
    "fails": lambda *given: torch.ones(2) @ torch.ones(3),
    "gives something else": lambda tensor, *rest: (tensor + len(rest)).as_subclass(UnpackedOtherwise),
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("name", ["_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported"])
def test_training_goes_on_unpacked_where_a_private_operation_is_not_what_it_was(
    tiny_gpt2, tiny_examples, monkeypatch, name, later
):
    def trained(packed: bool) -> list[float]:
        torch.manual_seed(0)
        model = adapt(copy.deepcopy(tiny_gpt2), RunConfig(rank=2))
        options = {"epochs": 1, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.1, "precision": torch.float32}
        draw = torch.Generator().manual_seed(0)
        with packed_layers(model, torch.float32):
            assert any(isinstance(module, Packed) for module in model.modules()) == packed
            course = Course(**options, generator=draw, forward=classify)
            return [row["loss"] for row in train(model, tiny_examples, course).metrics]

    expected = trained(packed=True)
    known = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    there = {one: getattr(torch.ops.mkldnn, one) for one in known} | {name: LATER[later]}
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**{k: op for k, op in there.items() if op}))
    _packable.cache_clear()
    try:
        assert trained(packed=False) == pytest.approx(expected, rel=1e-4)
    finally:
        _packable.cache_clear()


def test_weights_that_served_in_inference_mode_can_still_be_trained(tiny_gpt2):
    """Tensors made in inference mode know no gradients: none of them may stay in the model."""
    expected = copy.deepcopy(tiny_gpt2)
    with torch.inference_mode(), packed_layers(tiny_gpt2, torch.float32):
        classify(tiny_gpt2, IDS, LENGTHS)
    assert not any(p.is_inference() for p in tiny_gpt2.parameters())
    for model in (tiny_gpt2, expected):
        classify(model, IDS, LENGTHS).sum().backward()
    for ours, theirs in zip(tiny_gpt2.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs) and torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", ["conv1d", "linear"])
def test_in_place_computes_the_same_bits_as_packed_and_copies_nothing(kind, monkeypatch):
    torch.manual_seed(1)
    x, results = torch.randn(5, 24), []
    for cpu in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda cpu=cpu: cpu)
        plain, own = layer(kind), x.clone().requires_grad_()
        packed = Packed(plain, torch.float32)
        y = packed(own)
        (y**2).sum().backward()
        results.append((y, own.grad))
        copies = [packed.forward_weight, packed.backward_weight]
        assert [copy.is_mkldnn for copy in copies] == [cpu == "AVX2"] * 2
        if cpu == "AVX512":
            assert {copy.data_ptr() for copy in copies} == {plain.weight.data_ptr()}
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("ran", [False, True])
def test_where_no_gradient_flows_no_plain_weight_waits_for_one(tiny_gpt2, ran, monkeypatch):
    """Neither where none is taken at all, nor below what learns once a first pass has shown that."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    adapt(tiny_gpt2, RunConfig(method="head"))
    with torch.set_grad_enabled(ran), packed_layers(tiny_gpt2, torch.float32):
        if ran:
            classify(tiny_gpt2, IDS, LENGTHS)
        packed = [module for module in tiny_gpt2.modules() if isinstance(module, Packed)]
        assert len(packed) == 8 and all(module.plain is None for module in packed)


def test_a_plain_weight_waits_where_one_of_two_inputs_has_a_gradient(tiny_gpt2, monkeypatch):
    """In the first block a prefix learns, and the tokens beside it do not."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    adapt(tiny_gpt2, RunConfig(method="prefix"))
    with packed_layers(tiny_gpt2, torch.float32):
        classify(tiny_gpt2, IDS, LENGTHS)
        assert tiny_gpt2.transformer.h[0].attn.c_attn.plain is not None


@pytest.mark.parametrize("kind", ["conv1d", "linear"])
def test_the_weight_lies_the_same_way_before_and_after_it_is_packed_twice(kind):
    packed = Packed(layer(kind, torch.bfloat16), torch.bfloat16)
    before = packed.weight
    packed(torch.randn(2, 24).bfloat16().requires_grad_()).sum().backward()
    after = packed.weight
    assert packed.plain is None and torch.equal(before, after) and before.stride() == after.stride()


def test_forward_is_packed_at_once_and_backward_where_a_gradient_flows(tiny_gpt2, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    adapt(tiny_gpt2, RunConfig(method="lora"))
    with packed_layers(tiny_gpt2, torch.float32):
        packed = [module for module in tiny_gpt2.modules() if isinstance(module, Packed)]
        assert len(packed) == 8 and all("forward_weight" in vars(module) for module in packed)
        assert not any("backward_weight" in vars(module) for module in packed)
        randomize_lora(tiny_gpt2)
        classify(tiny_gpt2, IDS, LENGTHS).sum().backward()
        first = tiny_gpt2.transformer.h[0].attn.c_attn.base_layer
        assert [module for module in packed if "backward_weight" not in vars(module)] == [first]

"""DoRA against PEFT's: step for step, file for file, merge for merge; and against torch's own weight norm."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from conftest import randomize_lora
from plain_loop import ours_trained, theirs_trained
from test_against_peft import TARGET_SETS, base_model, in_peft_terms, logits
from test_packed_weights import assert_the_same_over_packed
from torch import nn
from transformers import GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import RunConfig, UserError, adapt, load_adapter, merge_lora, merged, save_adapter
from lora_from_scratch.base.precisions import rounded
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import inject_each, lora_layers
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.packed_weights import keep_frozen_in_bf16, packed_layers
from lora_from_scratch.formats import peft as our_peft
from lora_from_scratch.methods.dora_linear import DoRALinear, with_magnitudes
from lora_from_scratch.train.training import Course, train

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of PEFT, about transformers
    pytest.mark.filterwarnings("ignore:.*does not say on which base"),
]
IDS = torch.randint(1, 50, (5, 12), generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([1, 12, 7, 12, 3])


def dora(targets: tuple[str, ...] = ("attn.c_attn",), dropout: float = 0.0) -> nn.Module:
    """Ours in float64, every tensor that learns moved off its start; alpha is not r."""
    asked = RunConfig(method="dora", rank=3, alpha=8, dropout=dropout, target_modules=targets)
    return perturbed(adapt(base_model().double(), asked))


def perturbed(model: nn.Module, std: float = 0.1) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def in_peft(ours: nn.Module, targets: tuple[str, ...], dropout: float = 0.0) -> peft.PeftModel:
    """PEFT's DoRA with the numbers of ours."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules=list(targets),
        fan_in_fan_out=True,
        use_dora=True,
    )
    theirs = peft.get_peft_model(base_model().double(), config).double()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                theirs.get_parameter(named_by_peft(name)).copy_(parameter)
    return theirs


def named_by_peft(name: str) -> str:
    return in_peft_terms(name).replace("_magnitude_vector", "_magnitude_vector.default.weight")


def layer(kind: str) -> DoRALinear:
    """In float64, 5 or 6 inputs and 6 outputs, dropout 0.5."""
    torch.manual_seed(0)
    base = {
        "linear": lambda: nn.Linear(5, 6),
        "linear without bias": lambda: nn.Linear(5, 6, bias=False),
        "conv1d": lambda: Conv1D(6, 5),
        "square conv1d": lambda: Conv1D(6, 6),
    }[kind]()
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    return DoRALinear(LoRALinear(base.double(), rank=2, alpha=5, dropout=0.5))


KINDS = pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d", "square conv1d"])


@KINDS
def test_the_weight_is_torchs_weight_norm_of_the_moved_weight(kind):
    """`_weight_norm` is what nn.utils.parametrizations.weight_norm computes: g v / ||v|| by rows."""
    ours = perturbed(layer(kind), std=0.5).eval()
    base = ours.base_layer
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight  # (out, in)
    moved = weight + 5 / 2 * ours.lora_B @ ours.lora_A
    assert ours.lora_magnitude_vector.shape == (6,)
    expected = torch._weight_norm(moved, ours.lora_magnitude_vector[:, None], 0)
    got = ours.weight.T if isinstance(base, Conv1D) else ours.weight
    assert ours.weight.shape == base.weight.shape
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert (got - moved).abs().max() > 0.1
    x = torch.randn(3, 4, weight.shape[1], dtype=torch.float64)
    y = nn.functional.linear(x, expected, base.bias)
    torch.testing.assert_close(ours(x), y, rtol=1e-12, atol=1e-12)
    plain = ours.merge()
    assert plain is base and type(plain) in (nn.Linear, Conv1D)
    torch.testing.assert_close(plain(x), y, rtol=1e-12, atol=1e-12)


@KINDS
def test_it_starts_as_the_bare_layer_bit_for_bit(kind):
    ours = layer(kind)
    weight = ours.base_layer.weight
    lengths = weight.norm(dim=0 if isinstance(ours.base_layer, Conv1D) else 1)
    torch.testing.assert_close(ours.lora_magnitude_vector, lengths, rtol=1e-12, atol=0)
    x = torch.randn(7, 6 if kind == "square conv1d" else 5, dtype=torch.float64)
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), ours.base_layer(x))
    assert torch.equal(ours.weight, weight)


def test_no_gradient_flows_through_the_norm():
    """Section 4.3: with the norm a constant, dL/dA and dL/dB are LoRA's, times m / norm for each output."""
    ours = perturbed(layer("conv1d")).eval()
    scale = ours.lora_magnitude_vector.detach() / ours.norm()
    x, g = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    ours(x).backward(g)
    scaled, A, B = g * scale, ours.lora_A.detach(), ours.lora_B.detach()
    torch.testing.assert_close(ours.lora_B.grad, 2.5 * scaled.T @ (x @ A.T), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.lora_A.grad, 2.5 * B.T @ scaled.T @ x, rtol=1e-12, atol=1e-12)
    rows = x @ ours.direction().detach().T / ours.norm()
    torch.testing.assert_close(ours.lora_magnitude_vector.grad, (g * rows).sum(0), rtol=1e-12, atol=1e-12)


class Halves(nn.Module):
    """A dropout without chance: the first half of the features is dropped, the others doubled."""

    p = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(x)
        mask[..., x.shape[-1] // 2 :] = 2
        return x * mask if self.training else x


@pytest.mark.parametrize(("targets", "dropout"), [(TARGET_SETS[0], False), (TARGET_SETS[1], True)])
def test_fifty_steps_are_pefts(targets, dropout, tiny_examples: TokenizedExamples):
    """In float64, of the same numbers. With dropout W0's product is dropped too, in the same places."""
    ours = dora(targets)
    theirs = in_peft(ours, targets)
    if dropout:
        for name, one in lora_layers(ours):
            one.lora_dropout = Halves()
            theirs.get_submodule(f"base_model.model.{name}").lora_dropout["default"] = Halves()
    start = ours_trained(ours, tiny_examples)
    learning = [p for p in theirs.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in learning if p.ndim == n] for n in (2, 1))
    theirs_trained(theirs, matrices, vectors, tiny_examples)

    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            expected = theirs.get_parameter(named_by_peft(name))
            torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-12, msg=name)
            assert not torch.allclose(parameter, start[name], atol=1e-2), name


def test_after_a_step_it_is_not_lora(tiny_examples):
    """The same A, B, head and batch: the second step's gradients are of another function."""
    found = {}
    for method in ("lora", "dora"):
        asked = RunConfig(method=method, rank=3, alpha=8, dropout=0.0)
        model = adapt(base_model().double(), asked, torch.Generator().manual_seed(0))
        randomize_lora(model)
        course = {"epochs": 1, "batch_size": 48, "lr": 1e-2, "weight_decay": 0.0}
        order = torch.Generator().manual_seed(0)
        train(model, tiny_examples, Course(**course, precision=torch.float32, generator=order))
        found[method] = model
    first, second = (logits(model) for model in found.values())
    assert (first - second).abs().max() > 1e-3
    magnitudes = [p for n, p in found["dora"].named_parameters() if n.endswith("magnitude_vector")]
    start = with_magnitudes(adapt(base_model().double(), RunConfig(rank=3)))
    before = [p for n, p in start.named_parameters() if n.endswith("magnitude_vector")]
    assert all(not torch.equal(p, b) for p, b in zip(magnitudes, before, strict=True))


@pytest.mark.parametrize("targets", TARGET_SETS)
def test_files_go_both_ways_and_merged_weights_are_pefts(tmp_path, targets):
    """The square `c_proj` among them: transposed wrongly it would fit, and compute something else."""
    ours, base = dora(targets, dropout=0.5).eval(), base_model().double()
    expected = logits(ours)
    assert (expected - logits(base)).abs().max() > 0.05
    save_adapter(ours, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["use_dora"] is True and (config["r"], config["lora_alpha"]) == (3, 8)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "ours"))
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=1e-9)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    back = load_adapter(copy.deepcopy(base), tmp_path / "theirs")
    assert all(type(one) is DoRALinear for _, one in lora_layers(back))
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=1e-9)
    same = load_adapter(copy.deepcopy(base), tmp_path / "ours")
    assert torch.equal(logits(same), expected)
    assert {n for n, p in same.named_parameters() if p.requires_grad} == {
        n for n, p in ours.named_parameters() if p.requires_grad
    }
    plain, unloaded = merge_lora(back).state_dict(), theirs.merge_and_unload().state_dict()
    assert plain.keys() == unloaded.keys() == base.state_dict().keys()
    for name, tensor in unloaded.items():
        torch.testing.assert_close(plain[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("targets", TARGET_SETS)
def test_the_merged_checkpoint_computes_the_same_in_transformers(tmp_path, targets):
    ours = dora(targets).float()
    expected = logits(ours)
    merge_lora(ours).save_pretrained(tmp_path)
    plain = GPT2ForSequenceClassification.from_pretrained(tmp_path)
    assert (expected - logits(base_model())).abs().max() > 0.05
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-5)


def test_merging_for_a_while_gives_every_bit_back():
    ours = dora(TARGET_SETS[1]).float()
    before, expected = {n: t.clone() for n, t in ours.state_dict().items()}, logits(ours)
    with merged(ours):
        assert not list(lora_layers(ours))
        torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-5)
    after = ours.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())
    assert torch.equal(logits(ours), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_over_packed_weights_it_is_the_same(dropout):
    """Forward and gradients of the fast pass in fp32; with a dropout, too, that has no chance in it."""
    ours = dora(TARGET_SETS[1]).float().train(dropout > 0)
    for _, one in lora_layers(ours):
        one.lora_dropout = Halves().train(dropout > 0)
    assert_the_same_over_packed(ours, plain_classify, (IDS, LENGTHS), rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_in_bf16_it_keeps_its_types_and_stays_near(packed, monkeypatch):
    """The norm is computed in fp32, outside autocast; what runs on is bf16, as behind the bare layer."""
    ours = dora(TARGET_SETS[1]).float()
    exact, norm, seen = fast_classify(ours, IDS, LENGTHS), DoRALinear.norm, []

    def watched(layer: DoRALinear) -> torch.Tensor:
        seen.append((norm(layer).dtype, torch.is_autocast_enabled("cpu")))
        return norm(layer)

    monkeypatch.setattr(DoRALinear, "norm", watched)
    for _, one in lora_layers(ours):
        one.register_forward_hook(lambda layer, _, y: seen.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        plain = fast_classify(ours, IDS, LENGTHS)
        keep_frozen_in_bf16(ours)
        assert all(p.dtype == torch.float32 for n, p in ours.named_parameters() if ".lora_" in n)
        if packed:
            with packed_layers(ours, torch.bfloat16):
                lowered = fast_classify(ours, IDS, LENGTHS)
        else:
            lowered = fast_classify(ours, IDS, LENGTHS)
    assert set(seen) == {(torch.float32, False), torch.bfloat16}
    rounding = (plain - exact).abs().max()
    assert (lowered - exact).abs().max() < 4 * rounding + 0.02


def test_layers_of_two_kinds_fit_no_file(tmp_path):
    ours = adapt(base_model(), RunConfig(rank=2))
    ours.transformer.h[1].attn.c_attn = DoRALinear(ours.transformer.h[1].attn.c_attn)
    with pytest.raises(UserError, match="some LoRA layers are DoRA's and some not"):
        save_adapter(ours, tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_rank_stabilized_scaling_and_patterns_stay(tmp_path):
    names = [f"transformer.h.{i}.attn.c_proj" for i in range(2)]
    updates = [{"rank": r, "alpha": 5, "rank_stabilized": True} for r in (2, 3)]
    ours = inject_each(base_model().double(), dict(zip(names, updates, strict=True)), ["score"])
    perturbed(with_magnitudes(ours)).eval()
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base_model().double(), str(tmp_path))
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=1e-9)
    assert torch.equal(logits(load_adapter(base_model().double(), tmp_path)), logits(ours))


def test_a_file_says_whose_it_is_by_its_tensors(tmp_path):
    """As PEFT writes it: the magnitudes without `.weight`, A and B with it."""
    save_adapter(dora(), tmp_path)
    tensors, _ = our_peft.read_tensors(Path(tmp_path) / our_peft.WEIGHTS)
    names = {key.rpartition("c_attn.")[2] for key in tensors if "c_attn" in key}
    assert names == {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"}


def test_on_a_quantised_base_it_computes_as_on_the_rounded_one():
    asked = RunConfig(method="dora", rank=3, alpha=8, base_precision="nf4")
    kept = adapt(base_model(), asked, torch.Generator().manual_seed(0))
    dense = asked.way.adapt(rounded(base_model(), "nf4"), asked.settings, torch.Generator().manual_seed(0))
    expected = logits(perturbed(dense).eval())
    torch.testing.assert_close(logits(perturbed(kept).eval()), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(merge_lora(dense)), expected, rtol=0, atol=1e-5)


def test_parts_of_a_layer_are_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match=r"attn.c_attn:q,v: --method dora takes whole layers; leave"):
        RunConfig(method="dora", target_modules=("attn.c_attn:q,v",))

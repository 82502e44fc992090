"""rsLoRA, LoRA+ and PiSSA against PEFT; q, k and v apart against three linear layers, adapted by PEFT.

Throughout, alpha is not r; c_attn is not square and attn.c_proj is; all that learns is moved first; and what
files and merging give is compared with dense algebra. PiSSA's A and B are known up to the signs of singular
vectors, so their product is compared.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from small_runs import ready, trained, with_all_checkpoints, write_base, write_sentences
from test_against_peft import base_model, in_peft_terms, logits
from test_cli import fails
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import LoRALinear, RunConfig, UserError, adapt, load_adapter, merge_lora, save_adapter
from lora_from_scratch.base.fingerprint import fingerprints, weights_fingerprint
from lora_from_scratch.base.precisions import quantise, rounded
from lora_from_scratch.cli import commands
from lora_from_scratch.cli import main as cli
from lora_from_scratch.cli.flags import command_parser
from lora_from_scratch.compare import going
from lora_from_scratch.compare.accounting import account_model
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.core.surgery import lora_layers, merged
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.packed_weights import packed_layers
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.methods import METHODS
from lora_from_scratch.methods.parted_lora import PartedLoRALinear
from lora_from_scratch.methods.pissa_linear import PiSSALinear
from lora_from_scratch.report import page
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.train.checkpoints import Checkpoints, read
from lora_from_scratch.train.log import Training
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.training import Course, train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers

RANK, ALPHA, LR, STEPS, DECAY = 3, 8, 2e-3, 50, 0.1
BOTH = ("attn.c_attn", "attn.c_proj")
CASES = {
    "rslora": {"method": "rslora", "target_modules": BOTH},
    "lora-plus": {"method": "lora-plus", "target_modules": BOTH},
    "pissa": {"method": "pissa", "target_modules": BOTH},
    "q, v": {"method": "lora", "target_modules": ("attn.c_attn:q,v", "attn.c_proj")},
    "q, k, v": {"method": "lora", "target_modules": ("attn.c_attn:v,k,q",)},
    "k, by rslora": {"method": "rslora", "target_modules": ("c_attn:k",)},
    "k, v, by rslora": {"method": "rslora", "target_modules": ("attn.c_attn:k,v", "attn.c_proj")},
    "q, v, by lora-plus": {"method": "lora-plus", "target_modules": ("attn.c_attn:q,v",)},
}
EACH = pytest.mark.parametrize("case", CASES)


def perturbed(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return model


def adapted(case: str, base: nn.Module | None = None) -> GPT2ForSequenceClassification:
    """In float64, all that learns off its start."""
    asked = RunConfig(rank=RANK, alpha=ALPHA, dropout=0.0, **CASES[case])
    draw = torch.Generator().manual_seed(2)
    return perturbed(adapt(base or base_model().double(), asked, draw).double())


def in_peft(model: nn.Module, targets: Iterable[str] = BOTH, **own: object) -> peft.PeftModel:
    asked = {"task_type": "SEQ_CLS", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(targets)}
    return peft.get_peft_model(model, peft.LoraConfig(**asked, **own))


def dense(layer: LoRALinear, scaling: float) -> Tensor:
    """W, `(out, in)`, by the equation of the layer's kind."""
    W, A, B = layer.base_layer.weight.T.clone(), layer.lora_A, layer.lora_B
    if isinstance(layer, PartedLoRALinear):
        width = W.shape[1]
        for i, part in enumerate(layer.parts):
            own = B[i * width : (i + 1) * width] @ A[i * RANK : (i + 1) * RANK]
            W["qkv".index(part) * width :][:width] += scaling * own
        return W
    W = W + scaling * B @ A
    return W - scaling * layer.B0 @ layer.A0 if isinstance(layer, PiSSALinear) else W


def denses(model: nn.Module, case: str) -> dict[str, Tensor]:
    scaling = ALPHA / (math.sqrt(RANK) if CASES[case]["method"] == "rslora" else RANK)
    with torch.no_grad():
        return {name: dense(layer, scaling) for name, layer in lora_layers(model)}


def in_one_batch(model: nn.Module, examples: TokenizedExamples, groups: list | None = None) -> Training:
    options = {"epochs": STEPS, "batch_size": len(examples), "lr": LR, "weight_decay": DECAY}
    options |= {"precision": torch.float32, "generator": torch.Generator().manual_seed(0), "groups": groups}
    return train(model, examples, Course(**options))


def by_a_plain_loop(model: nn.Module, examples: TokenizedExamples, optimizer: torch.optim.Optimizer) -> None:
    """The same training with transformers' own forward pass."""
    padded = nn.utils.rnn.pad_sequence(examples.token_ids.split(examples.lengths.tolist()), batch_first=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    learning = [p for p in model.parameters() if p.requires_grad]
    model.train()
    for step in range(STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / STEPS)
        scores = model(input_ids=padded, attention_mask=(padded != 0).long()).logits
        cross_entropy(scores, examples.labels).backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), LR, weight_decay=DECAY)


def groups_of(model: nn.Module, method: str, **own: object) -> list[dict[str, object]]:
    config = RunConfig(method=method, **own)
    return config.way.parameter_groups(model, config.settings, DECAY)


@pytest.mark.parametrize("method", ["rslora", "lora-plus"])
def test_fifty_steps_give_pefts_weights(method, tiny_examples):
    """In float64 from the same A, B and head; of LoRA+ by PEFT's own optimizer."""
    ours, start = adapted(method), adapted(method).state_dict()
    theirs = in_peft(base_model(), use_rslora=method == "rslora", fan_in_fan_out=True).double()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                theirs.get_parameter(in_peft_terms(name)).copy_(parameter)
    log = in_one_batch(ours, tiny_examples, groups_of(ours, method))
    if method == "lora-plus":
        options = {"lr": LR, "loraplus_lr_ratio": 16.0, "loraplus_weight_decay": DECAY}
        optimizer = create_loraplus_optimizer(theirs, torch.optim.AdamW, **options)
    else:
        optimizer = adamw(theirs)
    by_a_plain_loop(theirs, tiny_examples, optimizer)
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            expected = theirs.get_parameter(in_peft_terms(name))
            torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-12)
            assert (parameter - start[name]).abs().max() > 1e-2, name
    assert [row["lr"] for row in log.metrics] == pytest.approx([LR * (1 - i / STEPS) for i in range(STEPS)])


def test_of_lora_plus_b_alone_has_the_ratio():
    model = adapted("q, v, by lora-plus")
    slow, fast = groups_of(model, "lora-plus", lr_ratio=4.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in fast["params"]} == {"lora_B"}
    assert {names[id(p)].rpartition(".")[2] for p in slow["params"]} == {"lora_A", "weight"}
    assert "score.weight" in {names[id(p)] for p in slow["params"]}
    optimizer = make_optimizer([slow, fast], 0.5)
    schedule = make_schedule(optimizer, 2)
    assert schedule.get_last_lr() == [0.5, 2.0] and optimizer.defaults["lr"] == 0.5
    assert [group["weight_decay"] for group in optimizer.param_groups] == [DECAY, DECAY]
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.25, 1.0]


def test_rslora_is_lora_scaled_by_the_root_of_the_rank():
    for rank in (1, 4, 9):
        asked = {"rank": rank, "alpha": 6.0, "target_modules": ("mlp.c_fc",)}
        for method, root in (("lora", rank), ("rslora", math.sqrt(rank))):
            model = adapt(base_model(), RunConfig(method=method, **asked))
            assert [layer.scaling for _, layer in lora_layers(model)] == [6 / root] * 2


def test_a_step_on_b_moves_h_by_the_scaling_squared_times_what_a_reads():
    """Plain gradient descent; norm(A x)^2 is a sum over A's rows, which here all read as much of x.

    So the step is as large at each rank by alpha / sqrt(r), and falls as 1 / r by alpha / r.
    """
    torch.manual_seed(0)
    x, g, row, lr, moved = torch.randn(256), torch.randn(48), torch.randn(256) / 16, 0.01, {}
    for rank, stabilized in ((4, False), (64, False), (4, True), (64, True)):
        layer = LoRALinear(nn.Linear(256, 48), rank, alpha=8, rank_stabilized=stabilized)
        layer.lora_A.data.copy_(row)
        (layer(x) @ g).backward()
        with torch.no_grad():
            before, read = layer(x), layer.lora_A @ x
            layer.lora_B -= lr * layer.lora_B.grad
            step = layer(x) - before
        torch.testing.assert_close(step, -lr * layer.scaling**2 * (read @ read) * g, rtol=1e-4, atol=1e-4)
        moved[rank, stabilized] = step.norm().item()
    assert moved[64, True] == pytest.approx(moved[4, True], rel=1e-4)
    assert moved[64, False] == pytest.approx(moved[4, False] * 4 / 64, rel=1e-4)


def test_pissa_starts_from_the_top_singular_directions_as_pefts_does():
    """B A and what is left of W0, for a square layer and one that is not; by NumPy's SVD too."""
    base = base_model()
    ours = adapt(copy.deepcopy(base), RunConfig(rank=RANK, alpha=ALPHA, **CASES["pissa"]))
    theirs = in_peft(copy.deepcopy(base), init_lora_weights="pissa", fan_in_fan_out=True)
    layers = dict(lora_layers(ours))
    assert len(layers) == 4 and all(type(layer) is PiSSALinear for layer in layers.values())
    for name, layer in layers.items():
        other = theirs.get_submodule(f"base_model.model.{name}")
        expected = other.lora_B["default"].weight @ other.lora_A["default"].weight
        torch.testing.assert_close(layer.lora_B @ layer.lora_A, expected, rtol=0, atol=1e-5)
        W0 = base.get_submodule(name).weight
        assert layer.scaling == ALPHA / RANK and torch.equal(layer.base_layer.weight, W0)
        left = W0.T - layer.scaling * layer.B0 @ layer.A0
        torch.testing.assert_close(left.T, other.base_layer.weight, rtol=0, atol=1e-5)
        of_whole, of_left = (numpy.linalg.svd(w.detach().numpy(), compute_uv=False) for w in (W0, left))
        assert of_left == pytest.approx([*of_whole[RANK:], 0, 0, 0], abs=1e-5)
        balance = layer.lora_A.norm(dim=1) - layer.lora_B.norm(dim=0)  # each has the root of S / s
        assert balance.abs().max() < 1e-5


def test_pissa_begins_at_the_bare_model_to_the_bit_and_both_factors_learn():
    base = base_model()
    ours = adapt(copy.deepcopy(base), RunConfig(**CASES["pissa"]))
    assert torch.equal(logits(ours), logits(base))
    ours(input_ids=torch.arange(1, 25).view(3, 8)).logits.sum().backward()
    for _, layer in lora_layers(ours):
        assert layer.lora_A.grad.abs().max() > 0 and layer.lora_B.grad.abs().max() > 0
        assert layer.base_layer.weight.grad is None


def test_fifty_steps_of_pissa_move_w_as_pefts_do(tiny_examples):
    """In float64, from what PEFT starts with, one of whose directions has the other sign here."""
    torch.manual_seed(3)
    theirs = in_peft(base_model(), init_lora_weights="pissa", fan_in_fan_out=True).double()
    ours = adapt(base_model(), RunConfig(rank=RANK, alpha=ALPHA, **CASES["pissa"])).double()
    pairs = [(theirs.get_submodule(f"base_model.model.{name}"), layer) for name, layer in lora_layers(ours)]
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        for other, layer in pairs:
            A, B = other.lora_A["default"].weight, other.lora_B["default"].weight
            layer.base_layer.weight.copy_(other.base_layer.weight + ALPHA / RANK * (B @ A).T)
            layer.A0.copy_(sign[:, None] * A)
            layer.B0.copy_(B * sign)
            A.add_(0.05 * torch.randn_like(A))
            B.add_(0.05 * torch.randn_like(B))
            layer.lora_A.copy_(sign[:, None] * A)
            layer.lora_B.copy_(B * sign)
        theirs.get_parameter(in_peft_terms("score.weight")).copy_(perturbed(ours.score).weight)
    start = denses(ours, "pissa")
    in_one_batch(ours, tiny_examples, groups_of(ours, "pissa"))
    by_a_plain_loop(theirs, tiny_examples, adamw(theirs))
    expected = theirs.merge_and_unload()
    for (name, W), before in zip(denses(ours, "pissa").items(), start.values(), strict=True):
        torch.testing.assert_close(W.T, expected.get_submodule(name).weight, rtol=1e-9, atol=1e-10)
        assert (W - before).abs().max() > 1e-2


class Apart(nn.Module):
    """c_attn as three layers."""

    def __init__(self, fused: Conv1D) -> None:
        super().__init__()
        for name, weight, bias in zip("qkv", fused.weight.chunk(3, dim=1), fused.bias.chunk(3), strict=True):
            linear = nn.Linear(*weight.shape)
            linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
            setattr(self, name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def _parts_of(layer: LoRALinear, names: list[str]) -> Iterable[tuple[str, Tensor, Tensor]]:
    return zip(names, *(t.chunk(len(names)) for t in (layer.lora_A, layer.lora_B)), strict=True)


@pytest.mark.parametrize(("parts", "method"), [("q,v", "lora"), ("k", "lora"), ("q,k,v", "rslora")])
def test_fifty_steps_are_those_of_three_layers_that_peft_adapts(parts, method, tiny_examples):
    own = {"method": method, "target_modules": (f"attn.c_attn:{parts}",)}
    ours = perturbed(adapt(base_model().double(), RunConfig(rank=RANK, alpha=ALPHA, dropout=0.0, **own)))
    apart, names = base_model().double(), parts.split(",")
    for block in apart.transformer.h:
        block.attn.c_attn = Apart(block.attn.c_attn)
    targets = [f"c_attn.{name}" for name in names]
    theirs = in_peft(apart, targets, use_rslora=method == "rslora").double()

    def pairs() -> Iterable[tuple[Tensor, Tensor]]:
        for i, (_, layer) in enumerate(lora_layers(ours)):
            for part, A, B in _parts_of(layer, names):
                other = theirs.base_model.model.transformer.h[i].attn.c_attn.get_submodule(part)
                yield A, other.lora_A["default"].weight
                yield B, other.lora_B["default"].weight
        yield ours.score.weight, theirs.get_parameter(in_peft_terms("score.weight"))

    with torch.no_grad():
        for here, there in pairs():
            there.copy_(here)
    start = [here.detach().clone() for here, _ in pairs()]
    in_one_batch(ours, tiny_examples)
    by_a_plain_loop(theirs, tiny_examples, adamw(theirs))
    for (here, there), before in zip(pairs(), start, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-12)
        assert (here - before).abs().max() > 1e-2


@EACH
def test_what_is_saved_is_plain_lora_for_peft_and_back(tmp_path, case):
    base = base_model().double()
    ours = adapted(case, copy.deepcopy(base))
    expected, weights = logits(ours), denses(ours, case)
    assert (expected - logits(base)).abs().max() > 0.01
    save_adapter(ours, tmp_path)
    assert torch.equal(logits(ours), expected), "saving leaves the model as it is"

    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=1e-10)
    back = load_adapter(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=1e-10)
    assert all(type(layer) is LoRALinear for _, layer in lora_layers(back))
    with theirs.disable_adapter():  # the head is the base's then, too
        assert torch.equal(logits(theirs), logits(base))
    by_us, by_peft, itself = merge_lora(back), theirs.merge_and_unload(), merge_lora(ours)
    for name, W in weights.items():
        for whole in (by_us, by_peft, itself):
            merged_layer = whole.get_submodule(name)
            assert type(merged_layer) is Conv1D
            torch.testing.assert_close(merged_layer.weight, W.T, rtol=0, atol=1e-10)


@EACH
def test_rank_and_alpha_in_the_files_are_those_of_all_parts(tmp_path, case):
    save_adapter(adapted(case), tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    said = [values[key] for key in ("r", "lora_alpha", "target_modules")]
    assert values.get("use_rslora", False) == ("rslora" in case)
    patterns = values.get("rank_pattern", {}), values.get("alpha_pattern", {})
    root = math.sqrt(2)
    assert (
        said
        == {
            "rslora": [3, 8, sorted(BOTH)],
            "lora-plus": [3, 8, sorted(BOTH)],
            "pissa": [6, 16, sorted(BOTH)],
            "q, v": [6, 16, sorted(BOTH)],
            "q, k, v": [9, 24, ["attn.c_attn"]],
            "k, by rslora": [3, 8, ["attn.c_attn"]],
            "k, v, by rslora": [6, 8 * root, sorted(BOTH)],
            "q, v, by lora-plus": [6, 16, ["attn.c_attn"]],
        }[case]
    )
    projections = [rf"^transformer\.h\.{i}\.attn\.c_proj" for i in (0, 1)]
    mixed = case in ("q, v", "k, v, by rslora")
    assert patterns == ((dict.fromkeys(projections, 3), dict.fromkeys(projections, 8)) if mixed else ({}, {}))


@EACH
def test_the_base_stays_as_it_was_and_its_fingerprint(case):
    base = base_model().double()
    ours = adapted(case, copy.deepcopy(base))
    assert weights_fingerprint(ours, ["score.weight"]) == weights_fingerprint(base, ["score.weight"])
    assert fingerprints(ours, None, ["score.weight"]) == fingerprints(base, None, ["score.weight"])
    before, weights = {name: t.clone() for name, t in ours.state_dict().items()}, denses(ours, case)
    with merged(ours) as plain:
        for name, W in weights.items():
            torch.testing.assert_close(plain.get_submodule(name).weight, W.T, rtol=0, atol=1e-12)
    after = ours.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    for name, layer in lora_layers(ours):
        assert torch.equal(layer.base_layer.weight, base.get_submodule(name).weight)


@pytest.mark.parametrize("parts", ["q,v", "q", "v,k"])
def test_what_is_not_named_is_exactly_w0(parts):
    base = base_model()
    ours = perturbed(adapt(copy.deepcopy(base), RunConfig(target_modules=(f"attn.c_attn:{parts}",))))
    left = [i for i, part in enumerate("qkv") if part not in parts]
    x = torch.randn(4, 16)
    for name, layer in lora_layers(ours):
        bare = base.get_submodule(name)
        delta = layer.delta_weight().chunk(3, dim=1)
        y, untouched = layer(x).chunk(3, dim=1), bare(x).chunk(3, dim=1)
        merged_weight = layer.merge().weight.chunk(3, dim=1)
        for i in range(3):
            assert delta[i].any() == (i not in left)
            assert torch.equal(y[i], untouched[i]) == (i in left)
            assert torch.equal(merged_weight[i], bare.weight.chunk(3, dim=1)[i]) == (i in left)


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_both_layers_take_either_kind_of_base(kind):
    """The merged weight against their outputs: a Linear stores the transpose of what a Conv1D does."""
    torch.manual_seed(0)
    x = torch.randn(7, 4, dtype=torch.float64)
    for make in (
        lambda base: PartedLoRALinear(base, "vq", RANK, ALPHA),
        lambda b: PiSSALinear(b, RANK, ALPHA),
    ):
        base = (nn.Linear(4, 12) if kind is nn.Linear else Conv1D(12, 4)).double()
        nn.init.normal_(base.weight)
        layer = perturbed(make(base))
        y = layer(x)
        assert (y - base(x)).abs().max() > 0.01
        torch.testing.assert_close(layer.merge()(x), y, rtol=1e-12, atol=1e-12)
        assert f"rank={RANK}, alpha={ALPHA}" in repr(layer)


def test_dropout_is_before_a_alone():
    """What PiSSA takes off W0 is taken off whole."""
    torch.manual_seed(0)
    base, x = nn.Linear(12, 36, bias=False), torch.ones(50, 12)
    for layer in (PartedLoRALinear(base, "kq", 2, 6, dropout=0.5), PiSSALinear(base, 2, 6, dropout=0.5)):
        perturbed(layer)
        seen = []
        layer.lora_dropout.register_forward_hook(lambda _, given, out, seen=seen: seen.append(out))
        y = layer.train()(x)
        (dropped,) = seen
        B = layer.block_diagonal if isinstance(layer, PartedLoRALinear) else layer.lora_B
        expected = base(x) + 3 * dropped @ layer.lora_A.T @ B.T
        if isinstance(layer, PiSSALinear):
            expected -= 3 * x @ layer.A0.T @ layer.B0.T
        assert 0 < (dropped == 0).sum() < dropped.numel()
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


IDS, LENGTHS = torch.arange(1, 25).view(3, 8), torch.tensor([3, 8, 5])


def logits_and_gradients(model: nn.Module, forward: object) -> list[Tensor]:
    found = forward(model, IDS, LENGTHS)
    cross_entropy(found, LENGTHS % 2).backward()
    return [found.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


@EACH
def test_fast_and_plain_compute_the_same(case):
    model = adapted(case, base_model()).float()
    plain = logits_and_gradients(copy.deepcopy(model), plain_classify)
    with packed_layers(model, torch.float32):
        fast = logits_and_gradients(model, fast_classify)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["pissa", "q, v"])
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_on_a_quantised_base_it_is_that_of_the_rounded_one(case, precision):
    """But for the signs of singular vectors, which the layout of W0 decides."""
    found = []
    for form in (quantise, rounded):
        asked = RunConfig(rank=RANK, alpha=ALPHA, dropout=0.0, **CASES[case])
        model = adapt(form(base_model(), precision), asked, torch.Generator().manual_seed(2))
        with torch.no_grad():
            for _, layer in lora_layers(model):
                layer.lora_A.mul_(1.3)
                if not isinstance(layer, PiSSALinear):
                    layer.lora_B.fill_(0.05)
        logits, *gradients = logits_and_gradients(model, plain_classify)
        found.append([logits, *(gradient.abs() for gradient in gradients)])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


@EACH
def test_memory_is_accounted_without_the_tensors(case):
    asked = RunConfig(**{"dropout": 0.0, **CASES[case]})
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(base_model().config)
    sizes = account_model(adapt(model, asked), 4, 8)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes["gradients"] == 4 * learning and sizes["moments"] == 8 * learning
    assert sizes["activations"] > 0


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "lora-plus"},
        {"method": "pissa", "dropout": 0.1},
        {"method": "rslora", "target_modules": ("attn.c_attn:q,v",)},
    ],
)
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path, asked):
    whole, paths = with_all_checkpoints(tmp_path, **asked)
    rates = [row["lr"] for row in json.loads(whole.metrics)]
    lr = METHODS[asked["method"]].default_lr(16)
    assert rates == pytest.approx([lr * (1 - i / 8) for i in range(8)])
    for path in paths[2::3]:
        on = trained(ready(**asked), Checkpoints(path.parent / "on", {}, 10**6, read(path)[1]))
        assert on == whole


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("sources")
    base, reviews = write_base(folder / "base"), write_sentences(folder / "reviews.csv")
    return ["--model", str(base), "--dataset", str(reviews), "--device", "cpu", "--precision", "fp32"]


FLAGS = {
    "rslora": "--method rslora --rank 2",
    "lora-plus": "--method lora-plus --lr-ratio 8",
    "pissa": "--method pissa --rank 2",
    "apart": "--method lora --target-modules attn.c_attn:v,q mlp.c_fc --rank 2",
}
SAID = {
    "rslora": "LoRA around attn.c_attn: rank 2, alpha 16, dropout 0.05, scaled by alpha / sqrt(rank)",
    "lora-plus": "rank 4, alpha 16, dropout 0.05, B's learning rate 8 times A's",
    "pissa": "rank 2, alpha 16, dropout 0, started as PiSSA; saved as plain LoRA of rank 4, alpha 32",
    "apart": "LoRA around attn.c_attn:q,v, mlp.c_fc: rank 2, alpha 16, dropout 0.05 "
    "(of each part by itself; PEFT's files hold attn.c_attn:q,v stacked to rank 4, and an alpha that keeps "
    "the scaling)",
}


@pytest.mark.filterwarnings("ignore:.*were trained on")
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", FLAGS)
def test_from_flags_to_files_and_whatever_is_done_with_them(tmp_path, sources, monkeypatch, capsys, name):
    """Trained, told, predicted with, evaluated, merged, and read by PEFT."""
    monkeypatch.setattr(commands, "_probe", lambda: ["so good", "so so dull <|endoftext|>"])
    run = str(tmp_path / "run")
    quick = ["--epochs", "2", "--batch-size", "4", "--lr", "1e-2", "--output-dir", run]
    assert cli.main([*sources, *FLAGS[name].split(), *quick]) == 0
    card, record = (Path(run, file).read_text() for file in ("README.md", "results.json"))
    assert SAID[name] in card and "PeftModel.from_pretrained" in card
    model = load_adapted(Path(run))
    assert all(type(layer) is LoRALinear for _, layer in lora_layers(model.model))
    capsys.readouterr()
    out = ["--output-dir", str(tmp_path / "out")]
    assert cli.main(["evaluate", "--adapter", run, *sources[2:], *out]) == 0
    again = json.loads((tmp_path / "out" / "results.json").read_text())["evaluation"]
    texts = [line.rpartition(",")[0] for line in Path(sources[3]).read_text().splitlines()[1:]]
    found = [p.probability for p in predict(model, texts)]
    assert len(texts) == 16 and again["probabilities"] == pytest.approx(found, abs=2e-6)
    held_out = [p.probability for p in predict(model, load_dataset(sources[3]).validation.sentences)]
    assert json.loads(record)["evaluation"]["probabilities"] == pytest.approx(held_out, abs=2e-6)
    assert cli.main(["verify", "--adapter", run]) == 0
    assert cli.main(["merge", "--adapter", run, "--out", str(tmp_path / "merged")]) == 0
    whole = predict(load_adapted(tmp_path / "merged"), ["so good", "dull"])
    answers = predict(model, ["so good", "dull"])
    assert [p.probability for p in whole] == pytest.approx([p.probability for p in answers], abs=1e-6)


def test_all_are_rows_of_a_comparison(tmp_path, sources, capsys, monkeypatch):
    monkeypatch.setattr(page, "write_comparison", lambda found, folder: [])
    monkeypatch.setattr(going, "account", lambda prepared: {})
    methods = ["--methods", "lora", "rslora", "lora-plus", "pissa", "--seeds", "0"]
    few = ["--max-steps", "1", "--rank", "2", "--output-dir", str(tmp_path)]
    assert cli.main(["compare", *sources, *methods, *few]) == 0
    (dataset,) = json.loads((tmp_path / "results.json").read_text())["datasets"]
    assert [row["label"] for row in dataset["variants"]] == ["lora", "rslora", "lora-plus", "pissa"]
    assert {row["trainable_parameters"] for row in dataset["variants"]} == {2 * 2 * (16 + 48) + 32}
    apart = "--methods lora rslora --target-modules attn.c_attn:v,q attn.c_attn,mlp.c_fc --seeds 0 --dry-run"
    assert cli.main(["compare", *sources, *apart.split(), "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "lora, target modules attn.c_attn:q,v; lora, target modules attn.c_attn+mlp.c_fc; rslora" in said


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("lora", {"LoRA A and B": 2 * 4 * (16 + 48)}),
        ("dora", {"LoRA A and B": 2 * 4 * (16 + 48), "DoRA's magnitudes": 2 * 48}),
        ("ia3", {"(IA)^3's vectors": 2 * (16 + 16 + 64)}),
    ],
)
def test_a_dry_run_counts_what_is_added_by_its_name(sources, capsys, method, parts):
    assert cli.main([*sources, "--method", method, "--dry-run"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    counted = {row[0]: tuple(row[1:]) for row in rows if row}
    assert {part: counted[part] for part in parts} == {part: (str(n), str(n)) for part, n in parts.items()}
    assert counted["blocks"][1] == "0"


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("attn.c_attn:q,v", ("attn.c_attn:q,v",)),
        ("attn.c_attn:q,k,v,mlp.c_fc", ("attn.c_attn:q,k,v", "mlp.c_fc")),
        ("mlp.c_fc,attn.c_attn:k", ("mlp.c_fc", "attn.c_attn:k")),
        ("c_attn:q,c_proj,v.c_fc", ("c_attn:q", "c_proj", "v.c_fc")),
        ("attn.c_attn,mlp.c_fc", ("attn.c_attn", "mlp.c_fc")),
    ],
)
def test_in_a_list_parted_by_commas_a_part_belongs_to_what_stands_before_it(word, parts):
    for command in ("compare", "tune"):
        flags = command_parser(command).parse_args(["--target-modules", word, "all-linear"])
        assert flags.target_modules == [parts, ("all-linear",)]


@pytest.mark.parametrize(
    ("targets", "same"),
    [(("attn.c_attn:v,q",), ("attn.c_attn:q,v",)), (("c_attn:v", "mlp.c_fc"), ("c_attn:v", "mlp.c_fc"))],
)
def test_parts_have_one_order_so_that_one_setting_has_one_name(targets, same):
    assert RunConfig(target_modules=targets) == RunConfig(target_modules=same)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--target-modules attn.c_attn:x", "'x' are no parts of c_attn: name q, k or v, each once"),
        ("--target-modules attn.c_attn:q,q", "'q,q' are no parts of c_attn"),
        ("--target-modules attn.c_attn:", "'' are no parts of c_attn"),
        ("--target-modules mlp.c_fc:q", "--target-modules mlp.c_fc:q: only c_attn is q, k and v in one"),
        ("--target-modules c_attn:q attn.c_attn:v", "--target-modules names attn.c_attn twice"),
        ("--target-modules attn.c_attn c_attn:v", "--target-modules names c_attn twice"),
        ("--target-modules all-linear attn.c_attn:v", "all-linear names every layer: leave the others out"),
        ("--target-modules h.9.attn.c_attn:v", "target module 'h.9.attn.c_attn' matches nothing"),
        (
            "--method pissa --target-modules attn.c_attn:q",
            "--method pissa takes whole layers; leave the colon",
        ),
        ("--method pissa --rank 17", "--rank 17: a layer has 16 singular directions; ask for no more"),
        ("--method lora-plus --lr-ratio 0", "--lr-ratio must be a positive number, not 0"),
        (
            "compare --methods lora pissa --target-modules attn.c_attn:q,v",
            "--method pissa takes whole layers",
        ),
        ("compare --methods lora dora --target-modules attn.c_attn:q,v", "--method dora takes whole layers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, tmp_path, monkeypatch, sources, flags, message):
    monkeypatch.chdir(tmp_path)
    command, *rest = flags.split()
    arguments = ["compare", *sources, *rest] if command == "compare" else [*sources, *flags.split()]
    assert message in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_layer_that_is_no_c_attn_has_no_parts():
    with pytest.raises(UserError, match="q, k and v are thirds of a layer from C to 3 C, not from 4 to 8"):
        PartedLoRALinear(Conv1D(8, 4), "q", 1, 2)
    with pytest.raises(UserError, match="'' are no parts"):
        PartedLoRALinear(Conv1D(12, 4), (), 1, 2)

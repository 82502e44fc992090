"""What each method lets learn: by count on GPT-2's real shape, by name, and by what moves in training."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import test_explain
import test_gpt2
import torch
from conftest import tiny_config
from small_runs import write_base
from test_cli import BUNDLED, fails
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, UserError, adapt, methods
from lora_from_scratch.base.precisions import base_precision
from lora_from_scratch.cli import commands
from lora_from_scratch.cli import main as cli
from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.formats.table import format_named
from lora_from_scratch.methods import METHODS
from lora_from_scratch.methods.interface import Method, check, flag
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.train.measure import count_parameters
from lora_from_scratch.train.training import Course, train

TOKENS = torch.arange(1, 13).view(2, 6), torch.tensor([6, 4])


def gpt2_small() -> GPT2ForSequenceClassification:
    """GPT-2 small with two labels, without memory behind its parameters."""
    with torch.device("meta"):
        return GPT2ForSequenceClassification(GPT2Config(num_labels=2))


@pytest.mark.parametrize(
    ("options", "adapter", "head", "total"),
    [
        ({"method": "none"}, 0, 0, 124_441_344),
        ({"method": "head"}, 0, 1_536, 124_441_344),
        ({"method": "full"}, 124_439_808, 1_536, 124_441_344),
        ({"method": "lora", "rank": 1}, 36_864, 1_536, 124_478_208),
        ({"method": "lora", "rank": 4}, 147_456, 1_536, 124_588_800),
        ({"method": "lora", "rank": 64}, 2_359_296, 1_536, 126_800_640),
        ({"method": "rslora", "rank": 4}, 147_456, 1_536, 124_588_800),
        ({"method": "lora-plus", "rank": 4}, 147_456, 1_536, 124_588_800),
        ({"method": "pissa", "rank": 4}, 147_456, 1_536, 124_588_800),
        # q and v: 12 * 2 * 4 * (768 + 768), as the paper has it; all three: 12 * 3 * 4 * (768 + 768)
        ({"target_modules": ("attn.c_attn:q,v",)}, 147_456, 1_536, 124_588_800),
        ({"target_modules": ("attn.c_attn:q,k,v",)}, 221_184, 1_536, 124_662_528),
        ({"method": "rslora", "target_modules": ("attn.c_attn:k",)}, 73_728, 1_536, 124_515_072),
        # mlp.c_proj: 12 * 4 * (3072 + 768)
        ({"method": "lora", "target_modules": ("mlp.c_proj",)}, 184_320, 1_536, 124_625_664),
        ({"method": "prelayer"}, 39_383_808, 1_536, 124_441_344),
        ({"method": "prefix"}, 46_080, 1_536, 124_487_424),
        ({"method": "prefix", "freeze_head": True}, 46_080, 0, 124_487_424),
        ({"method": "prefix", "prefix_length": 7}, 64_512, 1_536, 124_505_856),
        ({"method": "dora", "rank": 4}, 147_456 + 12 * 2_304, 1_536, 124_616_448),
        ({"method": "dora", "target_modules": ("attn.c_proj",)}, 12 * (4 * 1_536 + 768), 1_536, 124_524_288),
        ({"method": "lora-fa", "rank": 4}, 12 * 4 * 2_304, 1_536, 124_588_800),
        ({"method": "bitfit"}, 102_144, 1_536, 124_441_344),
        ({"method": "ia3"}, 55_296, 1_536, 124_496_640),
    ],
)
def test_counts_on_gpt2_small(options, adapter, head, total):
    count = count_parameters(adapt(gpt2_small(), RunConfig(**options)))
    assert (count.adapter, count.head, count.total) == (adapter, head, total)
    assert count.trainable == adapter + head
    assert count.share == (adapter + head) / total


@pytest.mark.parametrize("first", ["lora", "dora", "ia3", "prefix"])
def test_what_a_method_added_is_in_no_others_way(tiny_gpt2, first):
    """Files hold one method's tensors, so the other's would be lost without a word."""
    adapt(tiny_gpt2, RunConfig(method=first))
    learning = [(name, p.requires_grad) for name, p in tiny_gpt2.named_parameters()]
    for second in METHODS:
        with pytest.raises(UserError, match=r"this model was adapted before, and has transformer\.h\.0\."):
            adapt(tiny_gpt2, RunConfig(method=second))
    assert [(name, p.requires_grad) for name, p in tiny_gpt2.named_parameters()] == learning
    if METHODS[first].merges:
        adapt(METHODS[first].merge(tiny_gpt2), RunConfig(method="head"))


def as_it_is(model: GPT2ForSequenceClassification) -> list[object]:
    """Which modules and tensors it holds, what they are and compute, and which learn."""
    modules = [(name, id(m), m.training, len(m._forward_pre_hooks)) for name, m in model.named_modules()]
    tensors = [(name, id(p), p.requires_grad, p.tolist()) for name, p in model.named_parameters()]
    return [modules, tensors, base_precision(model), classify(model, *TOKENS).tolist()]


class Halfway(Method):
    """Changes the model, and then finds that it cannot."""

    name, summary, saved_as, rates, format = "halfway", "stops", "Nothing", (1e-3, 1e-3), "tensors"

    def adapt(self, model: nn.Module, settings: object, generator: object = None) -> nn.Module:
        model.requires_grad_(False).eval()
        model.score = nn.Linear(16, 2)
        raise UserError("nothing of this kind")


WIDE = {"target_modules": ("c_attn", "attn.c_proj"), "rank": 200}  # too much for the second alone
REFUSED = [
    (method, WIDE, "rank 200 is above 128") for method in ("lora", "rslora", "lora-plus", "dora", "lora-fa")
]
REFUSED += [
    ("lora", {"target_modules": ("c_attn", "nothing")}, "'nothing' matches nothing"),
    ("lora", {"target_modules": ("c_attn:q,v",), "rank": 200}, "rank 400 is above 384"),
    ("pissa", {"target_modules": ("c_attn", "c_proj"), "rank": 17}, "a layer has 16 singular directions"),
    ("pissa", WIDE, "a layer has 16 singular directions"),
    ("prefix", {"prefix_length": 33}, "this model has 32 positions"),
    ("halfway", {}, "nothing of this kind"),
]


@pytest.mark.parametrize("precision", ["float", "nf4"])
@pytest.mark.parametrize(("method", "settings", "message"), REFUSED)
def test_a_method_that_refuses_leaves_the_model_as_it_was(
    tiny_gpt2, monkeypatch, method, settings, message, precision
):
    monkeypatch.setitem(METHODS, "halfway", Halfway())
    model = tiny_gpt2
    model.transformer.wte.requires_grad_(False)
    before, draws = as_it_is(model), torch.get_rng_state()
    with pytest.raises(UserError, match=message):
        adapt(model, RunConfig(method=method, base_precision=precision, **settings))
    assert as_it_is(model) == before and torch.equal(torch.get_rng_state(), draws)


IN_LORA = ("c_attn.lora_A", "c_attn.lora_B")
LEARNS = {
    "none": lambda name: False,
    "head": lambda name: name == "score.weight",
    "full": lambda name: True,
    **{
        method: lambda name: name == "score.weight" or name.endswith(IN_LORA)
        for method in ("lora", "rslora", "lora-plus", "pissa")
    },
    "prelayer": lambda name: name in ("score.weight", "transformer.wte.weight", "transformer.wpe.weight"),
    "prefix": lambda name: name == "score.weight" or name.endswith(".prefix"),
    "dora": lambda name: name == "score.weight" or ".c_attn.lora_" in name,
    "lora-fa": lambda name: name == "score.weight" or name.endswith("c_attn.lora_B"),
    "bitfit": lambda name: name == "score.weight" or name.endswith(".bias"),
    "ia3": lambda name: name == "score.weight" or ".ia3_" in name,
}


@pytest.mark.parametrize("method", METHODS)
def test_exactly_the_expected_tensors_move(method, tiny_gpt2, tiny_examples):
    """Those of `LEARNS`; of a method that is not in it those that it says itself.

    Nor does its `adapt` change what it leaves frozen: fast training reads that from the base's files again.
    """
    loaded = {name: tensor.clone() for name, tensor in tiny_gpt2.state_dict().items()}
    model = adapt(tiny_gpt2, RunConfig(method=method))
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    learns = LEARNS.get(method, learning.__contains__)
    assert learning == {n for n, _ in model.named_parameters() if learns(n)}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if method != "none":
        options = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.01, "precision": torch.float32}
        train(model, tiny_examples, Course(**options, generator=torch.Generator().manual_seed(0)))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if learns(name)}
    for name, tensor in model.state_dict().items():
        whole = loaded.get(name.replace(".base_layer.", "."), tensor)  # itself, where the method added it
        assert learns(name) or torch.equal(tensor, whole), name


def test_a_method_starts_from_a_clean_slate(tiny_gpt2):
    """Whatever learned before, the next method decides anew."""
    for method in ("full", "head", "prelayer", "none"):
        adapt(tiny_gpt2, RunConfig(method=method))
        learning = {n for n, p in tiny_gpt2.named_parameters() if p.requires_grad}
        assert learning == {n for n, _ in tiny_gpt2.named_parameters() if LEARNS[method](n)}


def test_lora_refuses_to_wrap_the_head_that_it_trains_whole(tiny_gpt2):
    with pytest.raises(UserError, match="score is the classifier head"):
        adapt(tiny_gpt2, RunConfig(target_modules=("attn.c_attn", "score")))


def test_default_learning_rates_are_those_that_were_chosen():
    """On the bundled base's width on held-out sentences, on GPT-2's as methods/ says."""
    chosen = {
        "none": (None, None),
        "head": (3e-3, 3e-3),
        "full": (3e-4, 5e-5),
        "lora": (5e-4, 5e-4),
        "rslora": (5e-4, 5e-4),
        "lora-plus": (1.25e-4, 1.25e-4),
        "pissa": (5e-4, 5e-4),
        "prelayer": (3e-4, 2e-4),
        "prefix": (1e-2, 1e-2),
        "dora": (5e-4, 5e-4),
        "lora-fa": (5e-4, 5e-4),
        "bitfit": (1e-3, 1e-3),
        "ia3": (3e-3, 3e-3),
    }
    assert chosen == {name: (METHODS[name].default_lr(256), METHODS[name].default_lr(768)) for name in chosen}
    assert tiny_config().n_embd < 512


def from_the_page() -> type[Method]:
    """The method that docs/adding-a-method.md gives as its example: LayerNorm's weights, and the head."""
    page = Path(__file__).parents[1] / "docs" / "adding-a-method.md"
    defined: dict[str, type[Method]] = {}
    exec(page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], defined)
    return defined["LayerNorms"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("few_sentences", "tiny_bundle", "undrawn")
def test_a_method_of_ones_own_is_one_class_and_one_line(tmp_path, monkeypatch, capsys):
    """It trains, is saved, comes back, predicts, is evaluated, merges, and has a card."""
    monkeypatch.setitem(METHODS, "layernorms", check(from_the_page()()))
    monkeypatch.setattr(
        commands, "_probe", lambda: ["a fine film", "it ends <|endoftext|>"]
    )  # merge's sentences
    run = ["--method", "layernorms", "--limit-train", "64", "--max-steps", "4", "--output-dir"]
    assert cli.main([*BUNDLED, *run, str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["adapter_parameters"] == (2 * 2 + 1) * 16 and record["head_parameters"] == 32
    adapted = load_adapted(tmp_path / "run")
    assert adapted.model.transformer.h[0].ln_1.weight.requires_grad
    assert not adapted.model.transformer.h[0].ln_1.bias.requires_grad
    assert record["trainable_parameters"] == sum(
        p.numel() for p in adapted.model.parameters() if p.requires_grad
    )
    probability = predict(adapted, ["a fine film"])[0].probability
    assert 0.5 <= probability < 1
    card = (tmp_path / "run" / "README.md").read_text()
    assert "LayerNorm weights, tuned, for mini-gpt2" in card and "merge --adapter ." in card
    flags = ["--dataset", "bundled", "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    assert cli.main(["evaluate", "--adapter", str(tmp_path / "run"), *flags]) == 0
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["evaluation"]["predictions"] == record["evaluation"]["predictions"]
    assert cli.main(["merge", "--adapter", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
    merged = load_adapted(tmp_path / "merged")
    assert predict(merged, ["a fine film"])[0].probability == pytest.approx(probability, abs=1e-6)
    assert "not in the format that PEFT reads" in fails(capsys, "verify", "--adapter", str(tmp_path / "run"))


def test_the_method_of_the_page_passes_what_every_method_has_to(
    tiny_gpt2, tiny_examples, monkeypatch, tmp_path, capsys
):
    """The tests that run on whatever is in the table."""
    monkeypatch.setitem(METHODS, "layernorms", check(from_the_page()()))
    test_exactly_the_expected_tensors_move("layernorms", copy.deepcopy(tiny_gpt2), tiny_examples)
    test_gpt2.test_a_frozen_base_in_bf16_gives_what_autocast_gives(tiny_gpt2, "layernorms")
    write_base(tmp_path / "base")
    adapted = test_explain.on_disk(tmp_path, "layernorms")
    (tmp_path / "layernorms").mkdir()
    format_named(METHODS["layernorms"].format).save(adapted, tmp_path / "layernorms")
    test_explain.test_it_explains_what_every_method_leaves(tmp_path, "layernorms", capsys, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": None}, "trains, but has no default learning rates"),
        ({"format": None}, "trains, but has no format"),
        ({"format": "pickle"}, "trains, but has no format"),
        ({"saved_as": ""}, "trains, but has no format"),
        ({"summary": ""}, "needs a summary"),
        ({"name": ""}, "needs a name"),
    ],
)
def test_a_method_that_leaves_something_out_is_refused_when_it_is_registered(changes, message):
    before = dict(METHODS)
    with pytest.raises(TypeError, match=message):
        methods.register(type("Half", (from_the_page(),), changes)())
    assert before == METHODS


@pytest.mark.parametrize("weight", ["transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"])
def test_a_method_that_changes_what_it_leaves_frozen_is_noticed(
    tiny_gpt2, tiny_examples, monkeypatch, weight
):
    class Shrunk(from_the_page()):
        def learns(self, model: GPT2ForSequenceClassification) -> list[object]:
            model.get_parameter(weight).data.mul_(0.5)
            return super().learns(model)

    monkeypatch.setitem(METHODS, "layernorms", check(Shrunk()))
    with pytest.raises(AssertionError, match=weight):
        test_exactly_the_expected_tensors_move("layernorms", tiny_gpt2, tiny_examples)


@pytest.mark.usefixtures("few_sentences", "tiny_bundle")
def test_a_method_has_flags_of_its_own_and_no_others(capsys, monkeypatch):
    with pytest.raises(UserError, match="--rank is no flag of --method full: it belongs to lora"):
        RunConfig(method="full", rank=4)
    assert cli.main([*BUNDLED, "--method", "full", "--rank", "4", "--dry-run"]) == 0
    assert "warning: --rank is no flag of --method full, and left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="--magic is no flag of --method lora, nor of any other"):
        RunConfig(magic=1)

    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        depth: int = flag(3, "how deep", "D")

    monkeypatch.setitem(
        METHODS, "deep", check(type("Deep", (from_the_page(),), {"name": "deep", "Settings": Settings})())
    )
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "of deep:\n  --depth D" in shown
    assert "of lora, rslora, lora-plus, pissa, dora, lora-fa:\n  --rank R" in shown  # all whom it belongs to
    config = RunConfig(method="deep", depth=5)
    assert config.settings.depth == 5 and config.default_folder() == "runs/deep-depth-5"
    assert config.as_dict()["depth"] == 5

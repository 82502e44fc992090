"""Adapters as PEFT writes them, and as people publish them: the same logits as PEFT gives, or a refusal.

(What training and merging give is in test_against_peft.py; what damage is refused, in test_adapter.py.)
"""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from conftest import tiny_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_adapter import configure, unchanged
from torch import nn
from transformers import AutoTokenizer, GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, UserError, adapt, inject_lora, load_adapter, merge_lora, save_adapter
from lora_from_scratch.base.load import BUNDLED_MODEL, load_model, load_tokenizer
from lora_from_scratch.core.surgery import inject_each, lora_layers
from lora_from_scratch.formats import peft as our_peft
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.formats.peft_config import INITIALISATIONS, REFUSED

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of PEFT, about transformers
    pytest.mark.filterwarnings("ignore:.*does not say on which base"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape"),  # of PEFT, about its own lora_bias
]
INPUT_IDS = torch.arange(1, 25).view(3, 8)
ALL = ["c_attn", "c_proj", "c_fc"]


@pytest.fixture(scope="module")
def base() -> GPT2ForSequenceClassification:
    """Three blocks, in float64, where rounding hides nothing; nobody may change it."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(n_layer=3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.double().eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits


def by_peft(base: nn.Module, folder: Path, **settings: object) -> torch.Tensor:
    """Let PEFT write an adapter with weights that matter; returns the logits that PEFT reads from it."""
    asked = {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 8, "lora_dropout": 0.5, "fan_in_fan_out": True}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**{**asked, **settings}))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(str(folder))
    return read_by_peft(base, folder)


def read_by_peft(base: nn.Module, folder: Path) -> torch.Tensor:
    return logits(peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval())


def read_here(base: nn.Module, folder: Path) -> nn.Module:
    return load_adapter(copy.deepcopy(base), folder)


def as_published(folder: Path) -> None:
    """`modules_to_save` is null in every GPT-2 classifier's adapter that was found."""
    configure(folder, modules_to_save=None)


SHAPES = {
    "null modules": {"target_modules": ["c_attn"]},
    "rslora": {"target_modules": ["c_attn", "c_fc"], "use_rslora": True},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"c_fc": 5, r"h\.0\.attn\.c_attn": 1, r".*\.2\.mlp\.c_proj": 2},
        "alpha_pattern": {"^transformer.h.1.attn.c_attn": 32, "mlp.c_proj": 2, "c_proj": 64},
    },
    "layers": {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [0, 2], "layers_pattern": "h"},
    "excluded": {"target_modules": ALL, "exclude_modules": ["mlp.c_proj", "transformer.h.1.attn.c_attn"]},
    "regular expression": {"target_modules": r".*\.[02]\.(attn\.c_attn|mlp\.c_proj)"},
    # Variants of these.
    "rslora with patterns": {
        "target_modules": ["c_attn", "mlp.c_proj"],
        "use_rslora": True,
        "rank_pattern": {"c_attn": 1},
        "alpha_pattern": {"h.1.mlp.c_proj": 3},
    },
    "dora": {"target_modules": ALL, "use_dora": True},
    "dora, rslora and patterns": {
        "target_modules": ["c_attn", "attn.c_proj"],
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"c_attn": 1},
        "alpha_pattern": {"h.1.attn.c_proj": 3},
    },
    "rslora, one rank": {"target_modules": ["attn.c_proj"], "use_rslora": True, "r": 4},
    "the first pattern counts": {"target_modules": ALL, "rank_pattern": {"attn.c_proj": 2, "c_proj": 4}},
    "layer 0 as a number": {"target_modules": ["c_attn"], "layers_to_transform": 0},
    "layer 1 by any pattern": {"target_modules": ALL, "layers_to_transform": [1]},
    "layers by several patterns": {
        "target_modules": ["c_proj"],
        "layers_to_transform": 2,
        "layers_pattern": ["layers", "h"],
    },
    "no layers": {"target_modules": ["c_attn"], "layers_to_transform": []},
    "a full name passes the layers": {
        "target_modules": ["transformer.h.2.attn.c_attn", "c_fc"],
        "layers_to_transform": [0],
    },
    "layers by no pattern": {"target_modules": ALL, "layers_to_transform": [1], "layers_pattern": ""},
    "excluded by a regular expression": {"target_modules": ALL, "exclude_modules": r".*\.(1|2)\..*c_proj"},
    "all linear layers": {"target_modules": "all-linear"},
    "all linear layers but one kind": {"target_modules": "ALL-LINEAR", "exclude_modules": ["c_fc"]},
    "no target modules": {},
    "saved modules with dots": {"target_modules": ["c_attn"], "modules_to_save": ["h.0.ln_1", "ln_f"]},
    "a saved module takes a target out": {"target_modules": ["c_fc"], "modules_to_save": ["h.1.mlp"]},
    "a suffix without its dot": {"target_modules": ["c_attn"], "modules_to_save": ["n_f"], "task_type": None},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_logits_are_pefts_both_ways(base, tmp_path, shape):
    expected = by_peft(base, tmp_path / "theirs", **SHAPES[shape])
    if shape == "null modules":
        as_published(tmp_path / "theirs")
    assert (expected - logits(base)).abs().max() > 0.01
    ours = read_here(base, tmp_path / "theirs")
    assert not ours.training and all(layer.lora_dropout.p == 0.5 for _, layer in lora_layers(ours))
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-10)
    save_adapter(ours, tmp_path / "ours")
    torch.testing.assert_close(read_by_peft(base, tmp_path / "ours"), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits(read_here(base, tmp_path / "ours")), expected, rtol=0, atol=1e-10)


def drop(*keys: str) -> object:
    return lambda values: {key: value for key, value in values.items() if key not in keys}


NULLS = [
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "lora_alpha",
    "r",
    "lora_dropout",
    "bias",
]
NULLS += ["use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "loftq_config", "target_modules"]
EDITS = {
    "missing keys": drop(
        "r", "lora_alpha", "bias", "fan_in_fan_out", "rank_pattern", "use_rslora", "use_dora"
    ),
    "only what names it": lambda values: {"peft_type": "LORA", "task_type": "SEQ_CLS"},
    "null keys": lambda values: {**values, **dict.fromkeys(NULLS)},
    "neutral values": lambda values: {
        **values,
        "layer_replication": [],
        "target_parameters": None,
        "bias": "none",
    },
    "fan_in_fan_out as for a Linear": lambda values: {**values, "fan_in_fan_out": False},
    "no task": lambda values: {**values, "task_type": None, "modules_to_save": ["score"]},
    "no task, no modules": lambda values: {**values, "task_type": None, "modules_to_save": None},
    "another first value": lambda values: {**values, "init_lora_weights": "gaussian"},
    "modules named from the outside": lambda values: {
        **values,
        "modules_to_save": ["base_model.model.score"],
    },
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_people_leave_out_or_empty_is_pefts_default(base, tmp_path, edit):
    expected = by_peft(base, tmp_path, r=8, lora_dropout=0.0)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(EDITS[edit](json.loads(path.read_text()))))
    torch.testing.assert_close(logits(read_here(base, tmp_path)), expected, rtol=0, atol=1e-10)


def test_a_byte_order_mark_is_no_error(base, tmp_path):
    expected = by_peft(base, tmp_path, target_modules=["c_attn"])
    path = tmp_path / "adapter_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    torch.testing.assert_close(logits(read_here(base, tmp_path)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"of_a_later_version": {"x": [1]}}, "of_a_later_version"),
        ({"runtime_config": {"ephemeral_gpu_offload": True}}, "runtime_config"),
        (
            {"zeta": 1, "loftq_config": {"bits": 4}, "eva_config": {"rho": 2.0}},
            "eva_config, loftq_config, zeta",
        ),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, "a, b, c and 2 more"),
        ({"rank_pattern": {"c_atn": 2, "c_attn": 3}, "a": 1}, "a, rank_pattern c_atn"),
        ({"alpha_pattern": {"h.7.attn.c_attn": 2}}, "alpha_pattern h.7.attn.c_attn"),
    ],
)
def test_keys_that_change_no_logits_are_passed_over_in_one_warning(base, tmp_path, keys, named):
    expected = by_peft(base, tmp_path, target_modules=["c_attn"])
    configure(tmp_path, **keys)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ours = read_here(base, tmp_path)
    (passed_over,) = [str(one.message) for one in seen if "passed over" in str(one.message)]
    assert f"logits: {named};" in passed_over
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "all"),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]),
        ("lora_bias", True),
        ("target_parameters", ["mlp.c_fc.weight"]),
        ("megatron_config", {"a": 1}),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1, 2]),
        ("velora_config", {"num_groups": 1}),
        ("arrow_config", {"top_k": 1}),
        ("ensure_weight_tying", True),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"k": 1}),
        ("use_bdlora", {"nblocks": 1}),
    ],
)
def test_what_changes_the_result_and_is_not_implemented_is_refused_by_its_key(base, tmp_path, key, value):
    by_peft(base, tmp_path, target_modules=["c_attn"])
    configure(tmp_path, **{key: value})
    with (
        unchanged(base),
        pytest.raises(UserError, match=rf"adapter_config.json: {key} = .* is not implemented"),
    ):
        load_adapter(base, tmp_path)


def test_the_page_names_every_option_that_is_refused():
    """And no other, each of which is one of PEFT's."""
    page = (Path(__file__).parents[1] / "docs" / "loading.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.M)
    assert {option for option, _ in rows} == {*REFUSED, "init_lora_weights"} and len(rows) == len(REFUSED) + 1
    assert {option for option, _ in rows} <= {field.name for field in fields(peft.LoraConfig)}
    starts = set(re.findall("`(.*?)`", dict(rows)["init_lora_weights"]))
    assert starts == {start for start in INITIALISATIONS if isinstance(start, str)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": True}, "r = True is of the wrong kind"),
        ({"r": 0}, "r = 0 is of the wrong kind"),
        ({"r": 3.0}, "r = 3.0 is of the wrong kind"),
        ({"r": 10**400}, "r = 1000.* is of the wrong kind"),
        ({"lora_alpha": 10**400}, "lora_alpha = 1000.* is of the wrong kind"),
        ({"lora_alpha": math.nan}, "lora_alpha = nan is of the wrong kind: it has to be a number above 0"),
        (
            {"alpha_pattern": {"c_attn": math.inf}},
            "alpha_pattern = .* is of the wrong kind: it has to be a table of numbers above 0",
        ),
        ({"lora_alpha": -1}, "lora_alpha = -1 is of the wrong kind: it has to be a number above 0"),
        (
            {"lora_dropout": 1.5},
            "lora_dropout = 1.5 is of the wrong kind: it has to be a number from 0 to below 1",
        ),
        ({"target_modules": {"c_attn": 1}}, "target_modules = .* is of the wrong kind"),
        ({"target_modules": [1]}, "target_modules = .* is of the wrong kind"),
        ({"target_modules": []}, r"target_modules \[\] matches nothing"),
        ({"modules_to_save": "score"}, "modules_to_save = 'score' is of the wrong kind"),
        ({"layers_to_transform": True}, "layers_to_transform = True is of the wrong kind"),
        ({"rank_pattern": {"c_attn": "3"}}, "rank_pattern = .* is of the wrong kind"),
        ({"use_rslora": 1}, "use_rslora = 1 is of the wrong kind"),
        ({"use_dora": 1}, "use_dora = 1 is of the wrong kind"),
        ({"use_dora": True}, "h.0.attn.c_attn.lora_magnitude_vector is missing"),
        ({"layers_pattern": "h"}, "layers_pattern needs layers_to_transform"),
        ({"target_modules": ".*c_attn", "layers_to_transform": 1}, "needs a list of target_modules"),
        ({"target_modules": "("}, "target_modules '\\(' is no regular expression"),
        ({"exclude_modules": "*.c_fc"}, "exclude_modules '\\*.c_fc' is no regular expression"),
        ({"rank_pattern": {"*": 3}}, "rank_pattern '\\*' is no regular expression"),
        ({"alpha_pattern": {"[": 3}}, "alpha_pattern '\\[' is no regular expression"),
        (
            {"layers_to_transform": 0, "layers_pattern": "(?P<idx>h)"},
            "layers_pattern .* is no regular expression",
        ),
        ({"target_modules": "a{99999999999}"}, "is no regular expression"),
        ({"layers_to_transform": [0]}, "unexpected tensor .*h.1.attn.c_attn.lora_A"),
        ({"exclude_modules": ["h.0.attn.c_attn"]}, "unexpected tensor .*h.0.attn.c_attn.lora_A"),
        (
            {"rank_pattern": {"h.1.attn.c_attn": 2}},
            r"h.1.attn.c_attn.lora_A.weight is \(3, 16\), expected \(2, 16",
        ),
        ({"modules_to_save": ["h.0.ln_1"]}, "h.0.ln_1.weight is missing"),
        ({"modules_to_save": ["n_2"]}, "h.0.ln_2.weight is missing"),  # PEFT's suffixes need no dot
    ],
)
def test_what_peft_cannot_read_either_or_does_not_fit_is_refused(base, tmp_path, changes, message):
    by_peft(base, tmp_path, target_modules=["c_attn"])
    configure(tmp_path, **changes)
    with unchanged(base), pytest.raises(UserError, match=message):
        load_adapter(base, tmp_path)


@pytest.mark.parametrize(
    ("settings", "variant"),
    [
        ({"use_dora": True}, "lora_magnitude_vector is DoRA's, and use_dora not true"),
        ({"lora_bias": True}, "belongs to lora_bias"),
        ({"bias": "lora_only"}, "unexpected tensor .*c_attn.*bias"),
        ({"target_modules": ["wte"], "fan_in_fan_out": False}, "belongs to LoRA around embeddings"),
    ],
)
def test_tensors_of_variants_are_refused_though_the_key_was_lost(base, tmp_path, settings, variant):
    by_peft(base, tmp_path, **{"target_modules": ["c_attn"], **settings})
    configure(tmp_path, use_dora=False, lora_bias=False, bias="none", target_modules=["c_attn"])
    with unchanged(base), pytest.raises(UserError, match=variant):
        load_adapter(base, tmp_path)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_update_overflows_by_the_scaling_that_it_has(base, tmp_path, use_rslora):
    by_peft(base, tmp_path, target_modules=["c_attn"], r=4, use_rslora=use_rslora)
    path = tmp_path / "adapter_model.safetensors"
    filled = load_file(path)
    for name, tensor in filled.items():  # a row of B A then sums up to 1.28e38, times 2 or 4
        if ".lora_" in name:
            tensor.fill_(1 if ".lora_A" in name else 2e36)
    save_file(filled, path)
    overflows = pytest.raises(UserError, match=r"h\.0\.attn\.c_attn is not finite in fp32")
    with unchanged(base), overflows if use_rslora else nullcontext():
        load_adapter(copy.deepcopy(base), tmp_path)


def test_the_two_lines_that_convert_a_pickle_work(base, tmp_path, monkeypatch):
    expected = by_peft(base, tmp_path, target_modules=["c_attn"])
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with unchanged(base), pytest.raises(UserError, match="is a pickle, never opened here") as refused:
        load_adapter(base, tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(str(refused.value).split("never opened here: ")[1], {"torch": torch, "safetensors": safetensors})
    torch.testing.assert_close(logits(read_here(base, tmp_path)), expected, rtol=0, atol=1e-10)


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), **{f"base_model.model.{n}": t for n, t in tensors.items()}}, path)


def test_embeddings_that_travel_along_are_loaded_as_peft_does_or_were_resized(base, tmp_path):
    by_peft(base, tmp_path, target_modules=["c_attn"])
    add_tensors(tmp_path, **{"transformer.wte.weight": torch.randn(50, 16)})
    expected = read_by_peft(base, tmp_path)
    torch.testing.assert_close(logits(read_here(base, tmp_path)), expected, rtol=0, atol=1e-10)
    add_tensors(tmp_path, **{"transformer.wte.weight": torch.randn(53, 16)})
    with (
        unchanged(base),
        pytest.raises(UserError, match="embeddings were resized to 53 tokens, the base has 50"),
    ):
        load_adapter(base, tmp_path)
    resized = copy.deepcopy(base)
    resized.resize_token_embeddings(53, mean_resizing=False)
    expected = read_by_peft(resized, tmp_path)
    torch.testing.assert_close(logits(read_here(resized, tmp_path)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_floating_point_types_are_pefts(base, tmp_path, dtype):
    by_peft(base, tmp_path, target_modules=["c_attn"])
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    expected = read_by_peft(base, tmp_path)
    torch.testing.assert_close(logits(read_here(base, tmp_path)), expected, rtol=0, atol=1e-10)


UPDATES = {
    "ranks and alphas": [{"rank": 2, "alpha": 8}, {"rank": 2, "alpha": 3.5}, {"rank": 5, "alpha": 8}],
    "all rank-stabilized": [{"rank": r, "alpha": 8, "rank_stabilized": True} for r in (2, 2, 3)],
    "some rank-stabilized": [{"rank": 3, "alpha": 8, "rank_stabilized": i == 1} for i in range(3)],
}


@pytest.mark.parametrize("updates", UPDATES)
def test_layers_that_differ_are_written_with_patterns(base, tmp_path, updates):
    names = [f"transformer.h.{i}.attn.c_attn" for i in range(3)]
    ours = inject_each(copy.deepcopy(base), dict(zip(names, UPDATES[updates], strict=True)), ["score"])
    draw = torch.Generator().manual_seed(1)
    for _, layer in lora_layers(ours):
        nn.init.normal_(layer.lora_B, generator=draw)
    save_adapter(ours, tmp_path)
    torch.testing.assert_close(read_by_peft(base, tmp_path), logits(ours), rtol=0, atol=1e-10)
    back = read_here(base, tmp_path)
    assert torch.equal(logits(back), logits(ours))
    scalings = [[layer.scaling for _, layer in lora_layers(model)] for model in (back, ours)]
    assert scalings[0] == pytest.approx(scalings[1], rel=1e-12)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if updates == "ranks and alphas":
        assert config["rank_pattern"] == {r"^transformer\.h\.2\.attn\.c_attn": 5}
        assert config["alpha_pattern"] == {r"^transformer\.h\.1\.attn\.c_attn": 3.5}
    assert config.get("use_rslora", False) == (updates == "all rank-stabilized")


def test_what_pefts_format_cannot_say_is_refused(base, tmp_path):
    ours = inject_lora(copy.deepcopy(base), ["c_attn"], rank=2, alpha=4)
    ours.transformer.h[0].attn.c_attn.base_layer.bias.requires_grad_(True)
    with pytest.raises(UserError, match="has LoRA: PEFT saves one of the two"):
        save_adapter(ours, tmp_path)
    ours = inject_lora(copy.deepcopy(base), ["c_attn"], rank=2, alpha=4)
    ours.temperature = nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="temperature learns outside any module"):
        save_adapter(ours, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "added"), [("ia3", "attn.c_attn.ia3_k"), ("prefix", "prefix")])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_another_method_added_is_not_left_out_in_silence(base, tmp_path, method, added, frozen):
    """Beside LoRA too, whose file would load without it."""
    ours = adapt(copy.deepcopy(base), RunConfig(method=method))
    if frozen:
        inject_lora(ours, ["mlp.c_fc"], rank=2, alpha=4)
    told = rf"transformer\.h\.0\.{added} is none of LoRA's, .* of lora_from_scratch.formats.tensors writes it"
    with pytest.raises(UserError, match=told):
        save_adapter(ours, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_second_head_that_is_frozen_is_not_asked_for(tmp_path):
    """PEFT knows a sequence classifier by either name, and saves both."""
    names = ("layer", "score", "classifier")
    base = nn.Sequential(OrderedDict((name, nn.Linear(4, 4)) for name in names))
    ours = inject_lora(copy.deepcopy(base), ["layer"], rank=2, alpha=4, modules_to_save=["score"])
    nn.init.normal_(ours.layer.lora_B)
    nn.init.normal_(ours.score.weight)
    save_adapter(ours, tmp_path)
    x = torch.randn(3, 4)
    for back in (load_adapter(copy.deepcopy(base), tmp_path), peft.PeftModel.from_pretrained(base, tmp_path)):
        torch.testing.assert_close(back(x), ours(x), rtol=1e-5, atol=1e-6)


def test_a_prefix_of_a_users_own_model_is_part_of_its_base(tmp_path):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.prefix = nn.ModuleDict({"a": nn.Linear(4, 4)}), nn.Parameter(torch.ones(2, 4))

    model, other = Own(), Own()
    other.load_state_dict(model.state_dict())
    save_adapter(inject_lora(nn.ModuleDict({"own": model}), ["a"], rank=2, alpha=4), tmp_path)
    load_adapter(nn.ModuleDict({"own": copy.deepcopy(other)}), tmp_path)
    nn.init.zeros_(other.prefix)
    with pytest.raises(UserError, match="a base with other weights"):
        load_adapter(nn.ModuleDict({"own": other}), tmp_path)


class Named(nn.Module):
    """A user's own model, in which layers are called `base_layer` as the one within a LoRALinear is."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "own"}  # PEFT reads it
        self.inner = nn.ModuleDict({"base_layer": nn.Linear(6, 6), "other": nn.Linear(6, 6)})
        self.base_layer, self.top = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner["other"](self.inner["base_layer"](x).tanh()).tanh()
        return self.top(self.base_layer(x).tanh())


@pytest.mark.parametrize(
    ("targets", "whole"),
    [
        (["base_layer"], ["top"]),
        (["inner.base_layer", "other"], ["top"]),
        (["other"], ["inner.base_layer", "top"]),
    ],
)
def test_layers_of_a_users_own_that_are_called_base_layer(tmp_path, targets, whole):
    torch.manual_seed(0)
    base, x = Named(), torch.randn(3, 6)
    ours = inject_lora(copy.deepcopy(base), targets, rank=2, alpha=6, modules_to_save=whole)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    expected = ours(x)
    save_adapter(ours, tmp_path)
    back = load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.equal(back(x), expected) and not torch.allclose(base(x), expected, atol=0.01)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(theirs(x), expected, rtol=1e-5, atol=1e-6)
    merge_lora(back)
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in base.named_parameters()]
    torch.testing.assert_close(back(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_what_would_leave_no_layer_for_lora_is_not_written(base, tmp_path, method):
    """Neither PEFT nor `load_adapter` would read it."""
    with pytest.raises(UserError, match="no layer is left for the LoRA that PEFT's format needs"):
        save_adapter(adapt(copy.deepcopy(base), RunConfig(method=method)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_module_of_which_a_part_learned_is_written_whole(base, tmp_path):
    ours = inject_lora(copy.deepcopy(base), ["c_attn"], rank=2, alpha=4)
    ours.transformer.ln_f.bias.requires_grad_(True)
    nn.init.normal_(ours.transformer.ln_f.bias)
    save_adapter(ours, tmp_path)
    torch.testing.assert_close(read_by_peft(base, tmp_path), logits(ours), rtol=0, atol=1e-10)
    assert torch.equal(logits(read_here(base, tmp_path)), logits(ours))


@pytest.fixture(scope="module")
def on_bundled(tmp_path_factory) -> tuple[Adapted, Path]:
    """An adapter on the bundled base as a run leaves it, and its folder."""
    tokenizer = load_tokenizer("bundled")
    model = adapt(load_model("bundled", ["bad", "good"], tokenizer.pad_token_id), RunConfig(rank=4)).eval()
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("bundled")
    our_peft.save(adapted := Adapted(model, tokenizer, "bundled"), folder)
    return adapted, folder


def test_pefts_auto_class_opens_our_files_as_they_are(on_bundled):
    adapted, folder = on_bundled
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(folder)).eval()
    torch.testing.assert_close(logits(theirs), logits(adapted.model), rtol=0, atol=1e-6)
    name = theirs.peft_config["default"].base_model_name_or_path
    assert AutoTokenizer.from_pretrained(name).get_vocab() == adapted.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "name",
    [
        "bundled",
        str(BUNDLED_MODEL),
        "/another/machine/lora_from_scratch/bundled/mini-gpt2",
        "C:\\Users\\me\\lora_from_scratch\\bundled\\mini-gpt2\\",
    ],
)
def test_the_bundled_base_is_known_wherever_it_was_installed(on_bundled, tmp_path, name):
    adapted, folder = on_bundled
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    configure(tmp_path, base_model_name_or_path=name)
    back = load_adapted(tmp_path)
    assert back.base_name == "bundled" and back.label_names == ["bad", "good"]
    assert torch.equal(logits(back.model), logits(adapted.model))


def test_a_revision_of_the_base_is_not_taken_for_the_main_one(on_bundled, tmp_path):
    """The base of that name has other weights then; one that is given may be the right one."""
    adapted, folder = on_bundled
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    configure(tmp_path, revision="v2")
    with pytest.raises(UserError, match="revision 'v2' of its base is not looked for here: download that"):
        load_adapted(tmp_path)
    for revision, name in (("v2", "bundled"), ("main", None), ("", None)):
        configure(tmp_path, revision=revision)
        assert torch.equal(logits(load_adapted(tmp_path, name).model), logits(adapted.model))
    configure(tmp_path, revision=2)
    with pytest.raises(UserError, match="revision = 2 is of the wrong kind"):
        load_adapted(tmp_path)


def test_equal_contents_give_equal_bytes(on_bundled, tmp_path):
    adapted, folder = on_bundled
    weights = (folder / "adapter_model.safetensors").read_bytes()
    for i in range(5):  # a hash map's order would differ in one of them
        our_peft.save(adapted, tmp_path / str(i))
        assert (tmp_path / str(i) / "adapter_model.safetensors").read_bytes() == weights
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt" and json.loads(file.metadata()["labels"]) == ["bad", "good"]
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert [*header["__metadata__"]] == sorted(header["__metadata__"])

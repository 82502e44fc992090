"""The glass box: what it shows is what is computed, and its text, page and mistakes are clear."""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

import peft
import pytest
import torch
from browser import views
from conftest import randomize_lora, tiny_config
from small_runs import write_base
from test_cli import fails
from test_page import Page
from torch.nn.functional import cross_entropy, layer_norm
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, UserError, adapt, merge_lora
from lora_from_scratch.base.load import display_name, load_tokenizer
from lora_from_scratch.cli import main as cli
from lora_from_scratch.cli.flags import command_parser, run_parser
from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.core.surgery import inject_lora, lora_layers
from lora_from_scratch.formats import checkpoint
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.formats.table import format_named
from lora_from_scratch.lens.glass_box import glass_box
from lora_from_scratch.methods import METHODS
from lora_from_scratch.methods.lora import LoRA
from lora_from_scratch.report import explain_page, explained
from lora_from_scratch.runs.execute import train_prepared
from lora_from_scratch.runs.prepare import prepare

TEXT = "a warm , funny film"
KEPT = [name for name, method in METHODS.items() if method.trains]
ALL_LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@cache
def bundled_tokenizer():
    return load_tokenizer("bundled")


def adapted_by(method: str, **settings: object) -> Adapted:
    """A tiny base of random weights, adapted; every B is off zero."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(vocab_size=8192, initializer_range=0.2)).eval()
    model.config.id2label = {0: "negative", 1: "positive"}
    adapt(model, RunConfig(method=method, **settings), torch.Generator().manual_seed(1))
    randomize_lora(model)
    return Adapted(model, bundled_tokenizer(), None, method)


def in_float64(**settings: object) -> Adapted:
    adapted = adapted_by("lora", **{"rank": 3, "alpha": 5.0, **settings})
    adapted.model.double()
    return adapted


def tokens_of(text: str) -> torch.Tensor:
    return torch.tensor([bundled_tokenizer()(text).input_ids])


def by_name(rows: list[dict]) -> dict[str, dict]:
    return {row["name"]: row for row in rows}


def norm(tensor: torch.Tensor) -> float:
    return tensor.detach().double().pow(2).sum().sqrt().item()


def near(value: object) -> object:
    return pytest.approx(value, rel=1e-9, abs=0)


def theirs(model: GPT2ForSequenceClassification, label: int) -> tuple[object, torch.Tensor]:
    """transformers' own pass over the text, and the loss, with every gradient taken."""
    model = copy.deepcopy(model)
    model.config._attn_implementation = "eager"
    out = model.transformer(tokens_of(TEXT), output_hidden_states=True, output_attentions=True)
    for hidden in out.hidden_states:
        if hidden.requires_grad:
            hidden.retain_grad()
    logits = model.score(out.hidden_states[-1][:, -1])
    loss = cross_entropy(logits, torch.tensor([label]))
    loss.backward()
    return out, loss


@pytest.mark.parametrize("method", KEPT)
def test_what_is_watched_is_what_is_computed(method):
    """The logits are those of `classify` bit for bit, and nothing stays: no hook, no gradient."""
    adapted = adapted_by(method)
    model, before = adapted.model, {n: t.clone() for n, t in adapted.model.state_dict().items()}
    ids = tokens_of(TEXT)
    with torch.no_grad():
        expected = classify(model, ids, torch.tensor([ids.shape[1]]))[0]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    box = glass_box(adapted, f" {TEXT} ")
    assert [row["logit"] for row in box["labels"]] == expected.tolist()
    assert [row["probability"] for row in box["labels"]] == near(expected.double().softmax(0).tolist())
    assert glass_box(adapted, TEXT) == box
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert json.loads(json.dumps(box)) == box


def test_tokens_are_the_tokenizers_and_their_places():
    box = glass_box(adapted_by("lora"), TEXT)
    assert [row["id"] for row in box["tokens"]] == tokens_of(TEXT)[0].tolist()
    assert "".join(row["token"] for row in box["tokens"]) == f" {TEXT}"
    assert [row["position"] for row in box["tokens"]] == list(range(len(box["tokens"])))


@pytest.mark.parametrize("target_modules", [("attn.c_attn",), ALL_LINEAR])
def test_every_norm_is_that_of_transformers_own_pass(target_modules):
    """The residual stream, the attention weights, and their gradients; in float64."""
    adapted = in_float64(target_modules=target_modules)
    out, loss = theirs(adapted.model, 1)
    box = glass_box(adapted, TEXT, "positive")
    lines = by_name(box["forward"])
    assert box["loss"] == near(loss.item())
    for name, hidden in zip(("h.0.x", "h.1.x", "ln_f"), out.hidden_states, strict=True):
        assert lines[name]["norm"] == near(norm(hidden)) and lines[name]["shape"] == list(hidden.shape)
        gradient = None if hidden.grad is None else near(norm(hidden.grad))
        assert lines[name]["gradient"] == gradient
    assert lines["h.0.x"]["gradient"] is None and lines["h.1.x"]["gradient"] is not None
    assert lines["last"]["norm"] == near(norm(out.hidden_states[-1][:, -1]))
    for block, weights in enumerate(out.attentions):
        line = lines[f"h.{block}.attn.weights"]
        assert line["norm"] == near(norm(weights)) and line["shape"] == list(weights.shape)
    assert {line["dtype"] for line in lines.values()} == {"float64"}


def test_every_line_of_a_block_by_dense_algebra():
    adapted = in_float64(target_modules=ALL_LINEAR)
    model, lines = adapted.model, by_name(glass_box(adapted, TEXT)["forward"])
    block, ids, seen = model.transformer.h[0], tokens_of(TEXT), {}

    def product(layer, x: torch.Tensor, name: str) -> torch.Tensor:
        seen[f"{name}.base_layer"] = x @ layer.base_layer.weight + layer.base_layer.bias
        seen[f"{name}.update"] = 5 / 3 * torch.einsum("btc,rc,or->bto", x, layer.lora_A, layer.lora_B)
        seen[name] = seen[f"{name}.base_layer"] + seen[f"{name}.update"]
        return seen[name]

    seen["wte"], seen["wpe"] = model.transformer.wte.weight[ids], model.transformer.wpe.weight[: ids.shape[1]]
    seen["h.0.x"] = x = seen["wte"] + seen["wpe"]
    seen["h.0.ln_1"] = y = layer_norm(x, (16,), block.ln_1.weight, block.ln_1.bias)
    qkv = product(block.attn.c_attn, y, "h.0.attn.c_attn")
    q, k, v = (qkv[..., 16 * i : 16 * (i + 1)].reshape(1, -1, 2, 8).transpose(1, 2) for i in range(3))
    seen |= {f"h.0.attn.c_attn.{letter}": part for letter, part in zip("qkv", (q, k, v), strict=True)}
    scores = q @ k.mT / 8**0.5
    mask = torch.ones_like(scores, dtype=torch.bool).triu(1)
    seen["h.0.attn.weights"] = weights = scores.masked_fill(mask, -torch.inf).softmax(-1)
    seen["h.0.attn.y"] = y = (weights @ v).transpose(1, 2).reshape(1, -1, 16)
    seen["h.0.x + attention"] = x = x + product(block.attn.c_proj, y, "h.0.attn.c_proj")
    seen["h.0.ln_2"] = y = layer_norm(x, (16,), block.ln_2.weight, block.ln_2.bias)
    inner = product(block.mlp.c_fc, y, "h.0.mlp.c_fc")
    seen["h.0.mlp.act"] = y = torch.nn.functional.gelu(inner, approximate="tanh")
    seen["h.1.x"] = x + product(block.mlp.c_proj, y, "h.0.mlp.c_proj")
    for name, tensor in seen.items():
        assert lines[name]["norm"] == near(norm(tensor)), name
        assert lines[name]["shape"] == list(tensor.shape), name
    first = [name for name in lines if name.startswith("h.0.") or name in ("wte", "wpe")]
    assert set(first) == set(seen) - {"h.1.x"}  # none is left unchecked


def test_a_part_of_a_sum_has_the_gradient_of_the_sum():
    lines = by_name(glass_box(in_float64(target_modules=ALL_LINEAR), TEXT)["forward"])
    for name in ("h.1.attn.c_attn", "h.0.mlp.c_fc"):
        parts = lines[f"{name}.base_layer"], lines[f"{name}.update"]
        assert [part["gradient"] for part in parts] == near([lines[name]["gradient"]] * 2)
    squares = [lines[f"h.1.attn.c_attn.{letter}"]["gradient"] ** 2 for letter in "qkv"]
    assert sum(squares) ** 0.5 == near(lines["h.1.attn.c_attn"]["gradient"])


def test_below_the_first_adapted_layer_no_gradient_is_computed():
    lines = by_name(glass_box(adapted_by("lora"), TEXT)["forward"])
    without = [name for name, line in lines.items() if line["gradient"] is None]
    assert without == ["wte", "wpe", "h.0.x", "h.0.ln_1", "h.0.attn.c_attn.base_layer"]
    lines = by_name(glass_box(adapted_by("head"), TEXT)["forward"])
    assert [name for name, line in lines.items() if line["gradient"] is not None] == ["score"]
    assert None not in [line["gradient"] for line in glass_box(adapted_by("full"), TEXT)["forward"]]


def test_lora_beside_w0():
    adapted = in_float64(target_modules=ALL_LINEAR)
    inputs, rows = {}, by_name(glass_box(adapted, TEXT)["layers"])
    layers = dict(lora_layers(adapted.model))
    assert list(rows) == [name.removeprefix("transformer.") for name in layers]
    for name, layer in layers.items():
        layer.base_layer.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0]}))
    adapted.model(tokens_of(TEXT))
    for name, layer in layers.items():
        row, x = rows[name.removeprefix("transformer.")], inputs[name]
        frozen = x @ layer.base_layer.weight + layer.base_layer.bias
        update = 5 / 3 * x @ (layer.lora_B @ layer.lora_A).T
        assert (row["rank"], row["scaling"]) == (3, 5 / 3)
        assert (row["frozen"], row["update"]) == near((norm(frozen), norm(update)))
        assert row["ratio"] == near(norm(update) / norm(frozen))
        assert row["cosine"] == near(((frozen * update).sum() / norm(frozen) / norm(update)).item())


def test_lora_on_is_the_merged_model_and_off_the_bare_one():
    torch.manual_seed(0)
    base = GPT2ForSequenceClassification(tiny_config(vocab_size=8192, initializer_range=0.2)).eval().double()
    model = inject_lora(copy.deepcopy(base), ["c_attn"], 3, 5.0, modules_to_save=["score"])
    randomize_lora(model)
    box = glass_box(Adapted(model, bundled_tokenizer(), None), TEXT)
    ids = tokens_of(TEXT)
    with torch.no_grad():
        off = classify(base, ids, torch.tensor([ids.shape[1]]))[0]
        on = merge_lora(copy.deepcopy(model))(ids).logits[0]
    assert [row["logit"] for row in box["labels"]] == near(on.tolist())
    assert [row["logit_without"] for row in box["labels"]] == off.tolist()
    assert [row["probability_without"] for row in box["labels"]] == near(off.softmax(0).tolist())
    assert (on - off).abs().max() > 0.01


@pytest.mark.parametrize("method", ["lora", "head", "full", "prelayer"])
@pytest.mark.parametrize("label", ["negative", "positive"])
def test_gradients_are_those_of_transformers_own_pass(method, label):
    adapted = adapted_by(method)
    model = copy.deepcopy(adapted.model.double())
    logits = model(tokens_of(TEXT)).logits
    cross_entropy(logits, torch.tensor([["negative", "positive"].index(label)])).backward()
    box = glass_box(adapted, TEXT, label)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = by_name(box["gradients"])
    assert list(rows) == list(learning)
    for name, parameter in learning.items():
        assert rows[name]["gradient"] == near(norm(parameter.grad)), name
        assert (rows[name]["norm"], rows[name]["shape"]) == (near(norm(parameter)), list(parameter.shape))
    frozen = [p for p in model.parameters() if not p.requires_grad]
    numbers = sum(p.numel() for p in frozen)
    assert box["frozen"] == {"tensors": len(frozen), "numbers": numbers, "with_gradient": 0}


def test_prefixes_stand_before_the_tokens_of_every_block():
    adapted = adapted_by("prefix", prefix_length=5)
    box = glass_box(adapted, TEXT)
    lines, T = by_name(box["forward"]), len(box["tokens"])
    assert lines["h.0.x"]["shape"] == lines["h.1.x"]["shape"] == [1, 5 + T, 16]
    assert lines["x"]["shape"] == [1, T, 16] and lines["h.0.attn.weights"]["shape"] == [1, 2, T, 5 + T]
    forward = next(table for table in explained.tables(beside(box)) if table.id == "forward")
    assert [(heading, rows[0][0]) for heading, rows in forward.groups] == [
        ("embeddings", "wte(tokens)"),
        *((f"block {i}", "learned prefix, then x") for i in range(2)),
        ("head", "ln_f(x)"),
    ]
    assert {"layers", "at_step_one"}.isdisjoint(box) and "logit_without" not in box["labels"][0]


def test_at_step_one_the_gradient_of_every_a_is_exactly_zero_and_that_of_b_is_not():
    """Against a model that is injected anew: the same A and head, and B as it begins."""
    adapted = in_float64(target_modules=ALL_LINEAR)
    box = glass_box(adapted, TEXT, "positive")
    step = box["at_step_one"]
    fresh = copy.deepcopy(adapted.model)
    for _, layer in lora_layers(fresh):
        layer.lora_B.data.zero_()
    loss = cross_entropy(fresh(tokens_of(TEXT)).logits, torch.tensor([1]))
    loss.backward()
    off = torch.tensor([row["logit_without"] for row in box["labels"]], dtype=torch.float64)
    assert step["loss"] == near(loss.item())
    assert step["loss"] == near(-off.log_softmax(0)[1].item())
    expected = dict(lora_layers(fresh))
    assert [row["name"] for row in step["layers"]] == [n.removeprefix("transformer.") for n in expected]
    for row, layer in zip(step["layers"], expected.values(), strict=True):
        assert row["A"] == 0.0 and norm(layer.lora_A.grad) == 0.0
        assert row["B"] == near(norm(layer.lora_B.grad)) and row["B"] > 1e-6


# ---- what people look at


def test_an_a_that_is_frozen_is_told_apart_from_one_whose_gradient_is_zero():
    """LoRA-FA's: "-" in the table, and the sentence above it says so."""
    tables = explained.tables({**glass_box(adapted_by("lora-fa"), TEXT), "adapter": "", "base": None})
    (_, rows) = tables[-1].groups[0]
    assert {of_A for _, of_A, _ in rows} == {"-"} and "0" not in {of_B for _, _, of_B in rows}
    assert "A is frozen" in tables[-1].note and "exactly zero" not in tables[-1].note


def beside(box: dict) -> dict:
    return {**box, "adapter": "runs/lora", "base": "mini-gpt2 (bundled)"}


def numbered(value: object, count: list[int]) -> object:
    """The record with the numbers 1.2345e-4, 2.4690e-3, ... for its floats, which vary by machine."""
    if isinstance(value, dict):
        return {key: numbered(one, count) for key, one in value.items()}
    if isinstance(value, list):
        return [numbered(one, count) for one in value]
    if isinstance(value, float) and value:
        count[0] += 1
        return 1.2345 * count[0] * 10.0 ** (count[0] % 8 - 4)
    return value


def test_the_text_is_as_it_was():
    record = beside(numbered(glass_box(adapted_by("lora"), TEXT, "positive"), [0]))
    golden = (Path(__file__).parent / "explained.txt").read_text(encoding="utf-8")
    assert explained.text(record) + "\n" == golden
    assert max(map(len, golden.splitlines())) <= 80 and golden.isascii()


@pytest.mark.parametrize("method", KEPT)
def test_a_terminal_of_80_columns_and_a_page_show_the_same_cells(method):
    record = beside(glass_box(adapted_by(method), TEXT))
    text = explained.text(record)
    assert max(map(len, text.splitlines())) <= 80
    shown = Page(explain_page.page(record))
    tables, drawn = explained.tables(record), iter(shown.tables.values())
    for table in tables:
        groups = [[[heading]] * (heading != "") + list(map(list, rows)) for heading, rows in table.groups]
        assert next(drawn) == [row for group in groups for row in group]
        for heading, rows in table.groups:
            for row in rows:
                pattern = r"\s+".join(re.escape(cell.strip()) for cell in row)
                assert re.search(rf"^\s*{pattern}$", text, re.M)
            assert f"\n{heading}\n" in text
    assert next(drawn, None) is None
    ids = {held.get("id") for _, held in shown.tags}
    assert {table.id for table in tables} <= ids
    assert [heading for level, heading in shown.headings if level == 2] == [table.title for table in tables]


def test_the_page_is_one_file_without_scripts_whatever_the_text_holds():
    record = beside(glass_box(adapted_by("lora"), '<script>alert("x")</script> & <b>'))
    html = explain_page.page(record)
    assert "<script" not in html and "http" not in html.replace("http-equiv", "") and "<b>" not in html
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    tags = [tag for tag, _ in Page(html).tags]
    assert {"script", "img", "iframe"}.isdisjoint(tags) and tags.count("link") == 0
    assert html == explain_page.page(record)


def test_the_page_in_a_browser(tmp_path):
    record = beside(glass_box(adapted_by("lora"), TEXT))
    (tmp_path / "explain.html").write_text(explain_page.page(record), encoding="utf-8")
    assert len([*views(tmp_path / "explain.html")]) == 2


# ---- the command


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A base, and a folder of every method, beside a merged checkpoint and one that PEFT wrote."""
    where = tmp_path_factory.mktemp("folders")
    write_base(where / "base")
    for method in KEPT:
        adapted = on_disk(where, method)
        (where / method).mkdir()
        format_named(METHODS[method].format).save(adapted, where / method)
    merged = load_adapted(where / "lora")
    (where / "merged").mkdir()
    checkpoint.save(replace(merged, model=merge_lora(merged.model)), where / "merged")
    return where


def on_disk(where: Path, method: str) -> Adapted:
    """The base of the folder, adapted and off its start."""
    model = GPT2ForSequenceClassification.from_pretrained(where / "base", num_labels=2)
    model.config.id2label = {0: "negative", 1: "positive"}
    torch.manual_seed(2)
    model.score.weight.data.normal_()
    adapt(model, RunConfig(method=method), torch.Generator().manual_seed(1))
    randomize_lora(model)
    return Adapted(model.eval(), bundled_tokenizer(), str(where / "base"), method)


def explain(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main(["explain", "--adapter", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("folder", [*KEPT, "merged"])
def test_it_explains_what_every_method_leaves(folders, folder, capsys, tmp_path):
    out = explain(capsys, folders / folder, TEXT, "--output-dir", tmp_path / "out")
    text, _, written = out.rstrip("\n").rpartition("\n\n")
    record = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert written == f"written     {tmp_path / 'out'}: explain.html, explain.json"
    assert text == explained.text(record)
    assert (tmp_path / "out" / "explain.html").read_text(encoding="utf-8") == explain_page.page(record)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["explain.html", "explain.json"]
    has_lora = isinstance(METHODS.get(folder), LoRA)
    assert ("layers" in record) == ("LoRA off" in out) == has_lora
    model = load_adapted(folders / folder).model
    ids = tokens_of(TEXT)
    with torch.no_grad():
        expected = classify(model, ids, torch.tensor([ids.shape[1]]))[0].tolist()
    assert [row["logit"] for row in record["labels"]] == expected
    assert (record["base"] is None) == (folder in ("full", "merged"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
@pytest.mark.filterwarnings("ignore:.*does not say on which base")
def test_it_explains_what_peft_wrote(folders, capsys, tmp_path):
    base = GPT2ForSequenceClassification.from_pretrained(folders / "base", num_labels=2)
    base.config.pad_token_id = 0
    asked = {"task_type": "SEQ_CLS", "target_modules": ["c_attn"], "fan_in_fan_out": True}
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=6, **asked)).eval()
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(tmp_path / "peft")
    with torch.no_grad():
        on = model(tokens_of(TEXT)).logits[0]
        with model.disable_adapter():
            hidden = model.base_model.model.transformer(tokens_of(TEXT)).last_hidden_state[0, -1]
    off = hidden @ model.base_model.model.score.modules_to_save["default"].weight.T
    flags = ["--model", folders / "base", "--output-dir", tmp_path / "out"]
    explain(capsys, tmp_path / "peft", TEXT, *flags)
    record = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert [row["logit"] for row in record["labels"]] == pytest.approx(on.tolist(), abs=1e-5)
    assert [row["logit_without"] for row in record["labels"]] == pytest.approx(off.tolist(), abs=1e-5)
    assert [(row["rank"], row["scaling"]) for row in record["layers"]] == [(2, 3.0)] * 2


def test_the_loss_is_that_of_the_label_that_is_asked_for(folders, capsys):
    losses = {}
    for label in ("negative", "positive"):
        out = explain(capsys, folders / "lora", TEXT, "--label", label)
        losses[label] = float(re.search(rf"^loss +([\d.e-]+), of {label}, ", out, re.M)[1])
    predicted = re.search(r"^prediction  (\w+), probability", out, re.M)[1]
    assert losses[predicted] == min(losses.values())
    told = re.search(r"^loss .*", explain(capsys, folders / "lora", TEXT), re.M)[0]
    assert told.endswith(f", of {predicted}, the predicted label")
    assert sum(torch.tensor(list(losses.values())).neg().exp()) == pytest.approx(1, abs=1e-3)


def test_a_longer_text_is_cut_at_the_positions_and_that_is_told(folders, capsys):
    out = explain(capsys, folders / "lora", "so good " * 30)
    assert "This text is longer: it was cut after 32 tokens" in " ".join(out.split())
    assert "cut after" not in explain(capsys, folders / "lora", TEXT)
    box = glass_box(load_adapted(folders / "lora"), "so good " * 30)
    assert len(box["tokens"]) == 32 and box["cut"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], "the text is blank"),
        ([TEXT, "--label", "glad"], "'glad': there is no such label; choose one of 'negative', 'positive'"),
        ([TEXT, "--output-dir", "{file}"], "is not a folder"),
        ([TEXT, "--output-dir", ""], "is empty"),
        ([], "TEXT"),
        (["a", "warm"], "unrecognized arguments: warm"),
    ],
)
def test_a_mistake_is_one_line(folders, capsys, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    given = [one.replace("{file}", str(tmp_path / "file")) for one in arguments]
    assert message in fails(capsys, "explain", "--adapter", str(folders / "lora"), *given)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_logits_that_are_not_finite_are_refused():
    adapted = adapted_by("lora")
    adapted.model.score.weight.data.fill_(float("inf"))
    with pytest.raises(UserError, match="the logits are not finite"):
        glass_box(adapted, TEXT)
    with pytest.raises(UserError, match="the text is blank"):
        glass_box(adapted, "\n")


# ---- docs/glass-box.md

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]\d+)?(?![\w.])")


def example() -> str:
    """What the page's two commands print, without what the run measures at its end."""
    page = (Path(__file__).parents[1] / "docs" / "glass-box.md").read_text(encoding="utf-8")
    first, second = re.findall(r"run\.py (.*)", re.search(r"```bash\n(.*?)```", page, re.S)[1])
    flags = vars(run_parser().parse_args(shlex.split(first)))
    folder = Path(flags.pop("output_dir"))
    prepared = prepare(RunConfig(**flags, device="cpu"))
    train_prepared(prepared)
    asked = vars(command_parser("explain").parse_args(shlex.split(second)[1:]))
    assert asked["adapter"] == folder
    adapted = Adapted(prepared.model.eval(), prepared.tokenizer, "bundled")
    box = glass_box(adapted, asked["text"], asked["label"])
    return explained.text({**box, "adapter": str(folder), "base": display_name("bundled")})


def test_what_is_to_be_checked_by_hand_comes_out():
    """Every formula of that section, of figures that stand above it on the page."""
    page = (Path(__file__).parents[1] / "docs" / "glass-box.md").read_text(encoding="utf-8")
    above, section = page.split("## What to check by hand\n")
    formulas = re.findall(r"`([^`=]+) = ([\d.]+)`", section.split("\n## ")[0])
    assert len(formulas) == 7
    for formula, value in formulas:
        assert eval(formula, vars(math)) == pytest.approx(float(value), rel=5e-4), formula
        assert all(number in above for number in re.findall(r"\d+\.\d+", f"{formula} {value}"))


def test_the_page_shows_what_comes_out():
    """Line by line; numbers to 1 %, since 20 steps on another machine end a little elsewhere."""
    page = (Path(__file__).parents[1] / "docs" / "glass-box.md").read_text(encoding="utf-8")
    lines = [" ".join(line.split()) for line in example().splitlines()]
    blank = [NUMBER.sub("#", line) for line in lines]
    blocks = re.findall(r"```text\n(.*?)\n```", page, re.S)
    assert len(blocks) == 9
    for block in blocks:
        shown = [" ".join(line.split()) for line in block.splitlines()]
        skeleton = [NUMBER.sub("#", line) for line in shown]
        starts = [i for i in range(len(lines)) if blank[i : i + len(shown)] == skeleton]
        numbers = [float(number) for line in shown for number in NUMBER.findall(line)]
        assert any(
            [float(number) for line in lines[i : i + len(shown)] for number in NUMBER.findall(line)]
            == pytest.approx(numbers, rel=0.01, abs=0.0005)
            for i in starts
        ), block

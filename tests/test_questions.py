"""What docs/questions*.md, docs/choices.md and the pages beside them say, where no other test holds it."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize_lora
from test_accounting import on_meta
from test_methods import gpt2_small
from torch import nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch import (
    LoRALinear,
    RunConfig,
    adapt,
    inject_lora,
    load_adapter,
    merge_lora,
    save_adapter,
)
from lora_from_scratch.base.load import BUNDLED_MODEL
from lora_from_scratch.cli.flags import COMMANDS, command_parser
from lora_from_scratch.cli.main import main
from lora_from_scratch.compare.accounting import account_model
from lora_from_scratch.methods.lora import linear_layers
from lora_from_scratch.train.measure import count_parameters

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
QUESTIONS = ("questions", "questions-of-use")
LEARNERS = ("by-hand", "choices", *QUESTIONS, "glossary", "where-to-change", "which-method")
LR = 1e-3


def read(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def moved(
    layer: nn.Module, x: torch.Tensor, optimizer: type = torch.optim.AdamW, lr: float = LR
) -> torch.Tensor:
    """By how much a first step on the loss sum(h) moves h, `(out,)`: down, as every gradient of h is 1."""
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    before = layer(x)
    before.sum().backward()
    optimizer(learning, lr=lr, weight_decay=0.0).step()
    return (before - layer(x)).detach()


def lora(in_dim: int, rank: int, alpha: float, seed: int = 0, **options: object) -> LoRALinear:
    base = nn.Linear(in_dim, 2, bias=False, dtype=torch.float64)
    return LoRALinear(base, rank, alpha, generator=torch.Generator().manual_seed(seed), **options)


def inputs(in_dim: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1000 + seed)  # a stream that no A is drawn from
    return torch.randn(in_dim, generator=draw, dtype=torch.float64)


def mean_moved(layers: Iterable[nn.Module], in_dim: int) -> float:
    """Over layers, each with an input of its own."""
    return torch.stack([moved(layer, inputs(in_dim, i)) for i, layer in enumerate(layers)]).mean().item()


def loras(in_dim: int, rank: int, **options: object) -> Iterator[LoRALinear]:
    return (lora(in_dim, rank, 16, seed, **options) for seed in range(60))


def test_a_first_step_moves_h_by_what_the_page_says():
    layer, x = lora(64, rank=4, alpha=16), inputs(64)
    expected = LR * 16 / 4 * (layer.lora_A @ x).abs().sum().item()
    torch.testing.assert_close(moved(layer, x), torch.full((2,), expected).double(), rtol=1e-6, atol=0)
    full = nn.Linear(64, 2, bias=False, dtype=torch.float64)
    expected = LR * x.abs().sum().item()
    torch.testing.assert_close(moved(full, x), torch.full((2,), expected).double(), rtol=1e-6, atol=0)


def test_with_alpha_over_r_a_first_step_is_as_large_at_every_rank():
    steps = {rank: mean_moved(loras(64, rank), 64) for rank in (4, 8, 64)}
    assert steps[8] == pytest.approx(steps[4], rel=0.1) and steps[64] == pytest.approx(steps[4], rel=0.1)
    # with alpha / sqrt(r), by sqrt(2) for twice the rank
    stabilised = {rank: mean_moved(loras(64, rank, rank_stabilized=True), 64) for rank in (4, 8)}
    assert stabilised[8] == pytest.approx(stabilised[4] * 2**0.5, rel=0.1)


@pytest.mark.parametrize(("in_dim", "told"), [(256, "28 for the bundled base"), (768, "83 for GPT-2 small")])
def test_at_one_rate_a_first_step_of_full_is_larger_by_the_factor_on_the_page(in_dim, told):
    full = (nn.Linear(in_dim, 2, bias=False, dtype=torch.float64) for _ in range(60))
    factor = mean_moved(full, in_dim) / mean_moved(loras(in_dim, rank=4), in_dim)
    assert factor == pytest.approx(3**0.5 * in_dim / 16, rel=0.1)
    assert told.split()[0] == f"{3**0.5 * in_dim / 16:.0f}" and told in " ".join(read("choices").split())


@pytest.mark.parametrize(("optimizer", "factor"), [(torch.optim.AdamW, 2), (torch.optim.SGD, 4)])
def test_twice_alpha_is_twice_the_rate_under_adamw_alone(optimizer, factor):
    x = inputs(64)
    once = moved(lora(64, rank=4, alpha=16), x, optimizer)
    twice_alpha = moved(lora(64, rank=4, alpha=32), x, optimizer)
    twice_the_rate = moved(lora(64, rank=4, alpha=16), x, optimizer, 2 * LR)
    torch.testing.assert_close(twice_alpha, factor * once, rtol=1e-6, atol=0)
    torch.testing.assert_close(twice_the_rate, 2 * once, rtol=1e-6, atol=0)


def test_a_step_of_a_grows_with_the_width_and_one_of_b_does_not():
    """From one B, by AdamW: with four times the inputs a step of A moves h four times as far."""
    steps = {}
    for name in "AB":
        for in_dim in (64, 256):
            layers = list(loras(in_dim, rank=4))
            for layer in layers:
                nn.init.constant_(layer.lora_B, 0.1)
                getattr(layer, "lora_B" if name == "A" else "lora_A").requires_grad_(False)
            steps[name, in_dim] = mean_moved(layers, in_dim)
    assert steps["A", 256] == pytest.approx(4 * steps["A", 64], rel=0.05)
    assert steps["B", 256] == pytest.approx(steps["B", 64], rel=0.1)


def test_the_multiplications_of_a_token_are_those_on_the_page():
    """As torch counts them, two operations a multiplication, on GPT-2 small's c_attn."""
    layer, x = LoRALinear(nn.Linear(768, 2304, bias=False), rank=8, alpha=16), torch.randn(1, 768)
    counts = []
    for run in (lambda: layer.base_layer(x), lambda: layer(x), layer.delta_weight):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops() // 2)
    alone, both, product = counts
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer.merge()(x)
    assert counter.get_total_flops() // 2 == product + alone
    page = read("by-hand")
    assert f"| W0 x | 768 · 2304 = {alone:,} |" in page
    assert f"| B (A x), beside it | 8 · (768 + 2304) = {both - alone:,} |" in page
    assert f"| B A, once | 8 · 1,769,472 = {product:,} |" in page
    assert f"| (W0 + s B A) x, after that | {alone:,} |" in page


def test_the_rates_that_were_measured_stand_as_the_page_says():
    file = json.loads((ROOT / "benchmarks" / "results" / "rates-sst2.json").read_text(encoding="utf-8"))
    full, attention, everywhere = (
        next(
            v for v in file["variants"] if v["method"] == method and v["settings"].get("target_modules") == on
        )
        for method, on in (("full", None), ("lora", ["attn.c_attn"]), ("lora", ["all-linear"]))
    )
    assert attention["chosen"] == everywhere["chosen"] == pytest.approx(10 * full["chosen"])
    assert round(attention["parabola"]["vertex"] / full["parabola"]["vertex"]) == 11
    loss, all_linear = ({p["lr"]: p["mean_loss"] for p in one["points"]} for one in (attention, everywhere))
    cost = [f"{loss[rate] - loss[attention['chosen']]:.2f}" for rate in (0.0032, 0.0001)]
    assert "three times as much costs `lora` {} nats, a tenth {}.".format(*cost) in " ".join(
        read("choices").split()
    )
    several = [p["lr"] for p in attention["points"] if len(p["runs"]) == 3]
    assert len(several) == 3 and all(all_linear[rate] < loss[rate] for rate in several)


def test_the_rate_falls_as_alpha_grows_as_the_page_says():
    file = json.loads((ROOT / "benchmarks" / "results" / "rates-sst2-alpha.json").read_text(encoding="utf-8"))
    by_alpha = {one["settings"]["alpha"]: one for one in file["variants"]}
    vertex = {alpha: one["parabola"]["vertex"] for alpha, one in by_alpha.items()}
    several = {a: [p for p in one["points"] if len(p["runs"]) == 3] for a, one in by_alpha.items()}
    rates = np.log10([point["lr"] for point in several[8]])
    losses = np.array([[run["loss"] for run in point["runs"]] for point in several[8]])
    square, slope, _ = np.polyfit(rates, losses, 2)  # a parabola for each seed
    first, second, _ = 10 ** (-slope / square / 2)
    assert (square > 0).tolist() == [True, True, False] and (np.diff(losses[:, 2]) < 0).all()
    best = [min(point["mean_loss"] for point in points) for points in several.values()]
    apart = [np.ptp([run["loss"] for run in p["runs"]]) for points in several.values() for p in points]
    page = " ".join(read("ranks-and-places").split())
    assert f"falls to {vertex[32] / vertex[8]:.2f} of what it was" in page
    assert f"at α = 8 the point lies at {first:.4f} and {second:.4f} by the first two alone" in page
    assert f"still falls at {several[8][-1]['lr']:g}." in page
    assert np.ptp(best) < 0.002 and "within 0.002 nats" in page
    assert f"up to {max(apart):.2f} apart" in page


def test_the_lens_of_full_on_sst2_is_as_the_page_says():
    kept = ROOT / "benchmarks" / "results" / "lens-sst2-full.json"
    lens, page = json.loads(kept.read_text(encoding="utf-8")), " ".join(read("lens").split())
    full, large, small = lens["adapters"]
    assert len(full["layers"]) == 16 and {layer["rank"] for layer in full["layers"]} == {256}
    spread = sorted(layer["effective_rank"] for layer in full["layers"])
    assert f"by effective rank {spread[0]:.0f} to {spread[-1]:.0f} of them" in page
    by_directions = {point["directions"]: point["accuracy"] for point in lens["measured"]["kept"]}
    assert by_directions[256] - by_directions[8] < 0.5 and by_directions[256] - by_directions[4] < 2
    assert all(abs(one["accuracy"] - by_directions[256]) < 2 for one in lens["measured"]["left_out"])
    norms = {layer["layer"]: layer["norm"] for layer in full["layers"]}
    ratios = sorted(layer["norm"] / norms[layer["layer"]] for layer in small["layers"])
    assert f"at rank 4 is {ratios[0]:.1f} to {ratios[-1]:.1f} times `full`'s" in page
    for other in lens["overlaps"]:
        for layer in other["layers"]:
            phi, width = np.array(layer["of_update"]), layer["width"]
            i, j = np.indices(phi.shape) + 1
            assert (phi[[0, 0, -1], [0, -1, -1]] > (np.maximum(i, j) / width)[[0, 0, -1], [0, -1, -1]]).all()
    counts = [sum(layer["intruders"] for layer in one["layers"]) for one in (large, small, full)]
    assert "{} and {} of 40 for LoRA, {} of 160 for `full`".format(*counts) in page


def test_all_linear_learns_four_times_as_much_as_c_attn():
    """On the bundled base, whose shape this is."""
    counts = []
    for targets in (("attn.c_attn",), ("all-linear",)):
        with torch.device("meta"):
            model = GPT2ForSequenceClassification(GPT2Config.from_pretrained(BUNDLED_MODEL))
        counts.append(count_parameters(adapt(model, RunConfig(target_modules=targets))).adapter)
    assert counts[1] == 4 * counts[0]


def test_three_places_learn_equally_much_at_the_ranks_on_the_page():
    """By the command of docs/choices.md, on the bundled base and on GPT-2 small."""
    (command,) = re.findall(r"run\.py (compare .*--target-modules .*)", read("choices"))
    flags = command_parser("compare").parse_args(shlex.split(command)[1:])
    for config in (GPT2Config.from_pretrained(BUNDLED_MODEL), GPT2Config()):
        counts = set()
        for rank, targets in zip((20, 8, 5), flags.target_modules, strict=True):
            assert rank in flags.rank
            with torch.device("meta"):
                model = GPT2ForSequenceClassification(config)
            counts.add(count_parameters(adapt(model, RunConfig(rank=rank, target_modules=targets))).adapter)
        assert len(counts) == 1


def test_with_both_zero_nothing_moves_and_with_either_one_zero_both_do():
    for zero in ("A", "B", "AB"):
        layer, x = lora(8, rank=2, alpha=4), inputs(8)
        for name in "AB":
            factor = getattr(layer, f"lora_{name}")
            nn.init.zeros_(factor) if name in zero else nn.init.normal_(factor)
        start = [p.detach().clone() for p in (layer.lora_A, layer.lora_B)]
        assert torch.equal(layer(x), layer.base_layer(x))
        optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=LR, weight_decay=0.0)
        for _ in range(2):
            layer(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        unmoved = [torch.equal(p, old) for p, old in zip((layer.lora_A, layer.lora_B), start, strict=True)]
        assert unmoved == [zero == "AB"] * 2


def test_other_factors_have_the_same_product():
    torch.manual_seed(0)
    layer, x = lora(8, rank=3, alpha=6), inputs(8)
    nn.init.normal_(layer.lora_B)
    before, M = layer(x), torch.randn(3, 3, dtype=torch.float64)
    layer.lora_A.data, layer.lora_B.data = torch.linalg.inv(M) @ layer.lora_A, layer.lora_B @ M
    torch.testing.assert_close(layer(x), before, rtol=1e-9, atol=1e-9)


def test_weight_decay_leads_back_to_w0_under_lora_and_to_zero_under_full():
    layer = lora(8, rank=2, alpha=4)
    nn.init.normal_(layer.lora_B)
    full = nn.Linear(8, 2, bias=False, dtype=torch.float64)
    for module in (layer, full):
        learning = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=0.1, weight_decay=1.0)
        for parameter in learning:
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(200):
            optimizer.step()
    torch.testing.assert_close(layer.weight, layer.base_layer.weight, rtol=0, atol=1e-9)
    assert layer.base_layer.weight.abs().max() > 0.1 and full.weight.abs().max() < 1e-8


class Shapes(TorchDispatchMode):
    """The sizes of all tensors that operations make, those that only look at another's memory left out."""

    def __init__(self, known: torch.Tensor) -> None:
        super().__init__()
        self.known, self.made = known.untyped_storage().data_ptr(), set()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.known:
                self.made.add(tensor.numel())
        return result


def test_the_product_of_b_and_a_is_never_formed_in_training():
    layer = LoRALinear(nn.Linear(31, 37), rank=2, alpha=4, dropout=0.5)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 31, requires_grad=True)
    with Shapes(layer.base_layer.weight) as shapes:
        layer(x).sum().backward()
    assert max(shapes.made) == 5 * 37  # x, h and their gradients; W0 has 31 * 37
    with Shapes(layer.base_layer.weight) as shapes:
        layer.delta_weight()
    assert 31 * 37 in shapes.made


def test_training_through_the_merged_weight_gives_the_same_gradients_and_forms_it():
    layer, x = (
        LoRALinear(nn.Linear(31, 37, dtype=torch.float64), rank=2, alpha=4),
        torch.randn(5, 31).double(),
    )
    nn.init.normal_(layer.lora_B)
    layer(x).square().sum().backward()
    apart = [layer.lora_A.grad.clone(), layer.lora_B.grad.clone()]
    layer.zero_grad()
    with Shapes(layer.base_layer.weight) as shapes:
        linear(x, layer.weight, layer.bias).square().sum().backward()
    torch.testing.assert_close([layer.lora_A.grad, layer.lora_B.grad], apart, rtol=1e-12, atol=1e-12)
    assert 31 * 37 in shapes.made


def test_a_step_of_lora_multiplies_two_thirds_of_what_full_does():
    """Of a layer that is not the first: the product, and of two gradients the one that goes on."""

    def counted(layer: nn.Module) -> int:
        x = torch.randn(32, 512, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        return counter.get_total_flops()

    full = counted(nn.Linear(512, 512))
    adapted = counted(LoRALinear(nn.Linear(512, 512), rank=2, alpha=4))
    assert full == 3 * 2 * 32 * 512 * 512
    assert adapted == 2 * 2 * 32 * 512 * 512 + 3 * 2 * 32 * 2 * (512 + 512)


def test_lora_on_all_linear_layers_keeps_more_activations_than_full():
    everywhere, full = (
        account_model(on_meta(1, method, **own), 16, 128, as_on_a_gpu=True)["activations"]
        for method, own in (("lora", {"target_modules": ("all-linear",)}), ("full", {}))
    )
    assert everywhere > full


def test_what_a_model_of_billions_takes_by_arithmetic():
    """Bytes a number by the account of GPT-2 small, whose share of A, B and head is not smaller."""
    page, bytes_each, kept, gib = " ".join(read("which-method").split()), {}, {}, {}
    for method in ("full", "lora"):
        model = adapt(gpt2_small(), RunConfig(method=method))
        sizes, count = account_model(model, 1, 8), count_parameters(model)
        held = sizes["weights"] + sizes["gradients"] + sizes["moments"]
        bytes_each[method], kept[method] = held / count.total, 4 * count.trainable
        gib[method] = f"{held / 2**30:.3f}"
    assert f"{gib['lora']} GiB in place of [{gib['full']}]" in page
    assert bytes_each["full"] == 16 and 4 < bytes_each["lora"] < 4.02
    full, lora, bf16 = (f"{7 * size:g}" for size in (16, 4, 2))
    assert f"for 7 billion that is {full} GB against {lora}, or {bf16} with the base in bf16" in page
    assert 3.5 < 7 * 4.127 / 8 < 7 * 4.5 / 8 < 4  # docs/quantised.md has the bits a weight
    told = "of 100 tasks {:.2f} GB, the base among them, in place of {:.1f} GB"
    assert told.format((kept["full"] + 100 * kept["lora"]) / 1e9, 100 * kept["full"] / 1e9) in page


def test_an_adapter_of_gpt2_small_is_596_kb():
    sizes = []
    for rank in (4, 8):
        learn = count_parameters(adapt(gpt2_small(), RunConfig(rank=rank))).trainable
        sizes.append(f"{learn:,} {4 * learn / 1e3:,.0f} kB")
    assert sizes == ["148,992 596 kB", "296,448 1,186 kB"]
    told = "148,992 for GPT-2 small at r = 4 are 596 kB with the head"
    assert told in read("questions") and "296,448 at r = 8 are 1,186 kB" in read("questions")


def test_adapters_on_copies_of_one_base_are_each_its_own(tiny_gpt2, tmp_path):
    """Each gives the logits that it was saved with, and the base keeps every bit."""
    ids, folders, expected = torch.arange(1, 9)[None], (tmp_path / "one", tmp_path / "two"), []
    for seed, folder in enumerate(folders):
        model = inject_lora(copy.deepcopy(tiny_gpt2), ["attn.c_attn"], 2 + seed, 8, modules_to_save=["score"])
        torch.manual_seed(seed)
        randomize_lora(model)
        nn.init.normal_(model.score.weight)
        save_adapter(model, folder)
        expected.append(model.eval()(ids).logits)
    before = copy.deepcopy(tiny_gpt2.state_dict())
    for folder, logits in zip(folders, expected, strict=True):
        assert torch.equal(load_adapter(copy.deepcopy(tiny_gpt2), folder).eval()(ids).logits, logits)
    assert not torch.equal(*expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_gpt2.state_dict().items())


def test_dropout_left_on_looks_like_a_wrong_merge(tiny_gpt2):
    ids = torch.arange(1, 9)[None]
    inject_lora(tiny_gpt2, linear_layers(tiny_gpt2), rank=2, alpha=8, dropout=0.3)
    randomize_lora(tiny_gpt2)
    torch.manual_seed(0)
    with torch.no_grad():
        still, left_on = tiny_gpt2.eval()(ids).logits, tiny_gpt2.train()(ids).logits
        plain = merge_lora(tiny_gpt2.eval())(ids).logits
    torch.testing.assert_close(plain, still, rtol=1e-5, atol=1e-5)
    assert (plain - left_on).abs().max() > 0.01


def test_each_question_has_an_answer_that_names_what_backs_it():
    text = "".join(read(page) + "\n" for page in QUESTIONS)
    answers = re.findall(r"^\*\*(.+?\?)\*\*\s+(.+?)\n\n", text, re.S | re.M)
    assert len(answers) >= 40
    for question, answer in answers:
        assert re.search(r"`test_\w+`|\]\(|<!-- |`examples/", answer), question
        sentences = re.split(r"(?<=[.:?])\s+(?=[A-Z\[`])", re.sub(r"\([^()]*\)", "", answer).strip())
        assert 1 < len(sentences) <= 6, (question, sentences)


def test_every_term_stands_where_the_glossary_says():
    rows = re.findall(r"^\| (.+?) \| .+ \| (`[\w/.`, ]+`) \| (.+?) \|$", read("glossary"), re.M)
    assert len(rows) >= 40
    for term, files, names in rows:
        paths = [ROOT / "lora_from_scratch" / file for file in re.findall(r"`([^`]+)`", files)]
        text = "".join(path.read_text(encoding="utf-8") for path in paths)
        missing = [n for n in re.findall(r"`([^`]+)`", names) if not re.search(rf"\b{re.escape(n)}\b", text)]
        assert not missing, term


def test_what_to_try_next_is_a_plan_that_can_be_run(capsys, monkeypatch, tmp_path):
    """As far as --dry-run goes: the trainings, and the comparison that names layers."""
    monkeypatch.chdir(tmp_path)
    commands = map(shlex.split, re.findall(r"^\S+ run\.py (.+)$", read("where-to-change"), re.M))
    plans = [words for words in commands if words[0] not in COMMANDS or "--target-modules" in words]
    assert len(plans) == 3
    for words in plans:
        assert main([*words, "--device", "cpu", "--dry-run"]) == 0, words
    assert "attn.c_attn" in capsys.readouterr().out


@pytest.mark.parametrize("page", LEARNERS)
def test_a_page_for_learners_is_read_in_minutes(page):
    assert len(read(page).split()) <= 1500


def test_links_to_headings_meet_one():
    """As GitHub names them: lower case, spaces become hyphens, other marks go."""

    def anchors(path: Path) -> set[str]:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        headings = re.findall(r"^#+ (.+)$", text, re.M)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    missing = []
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            target = page.parent / file if file else page
            missing += [f"{page.name}: {file}#{anchor}"] if anchor not in anchors(target) else []
    assert missing == []

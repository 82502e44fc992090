"""The parts of the benchmarks that decide a figure."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from small_runs import write_base
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2ForSequenceClassification

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import keep_comparison
import outcome
from memory_over_a_run import MOMENTS, one_run
from on_the_whole_base import on_both
from roofline import operations, products
from scaling import line
from sides import Ours, Theirs, Work, as_examples, ratio
from start_up import ratios

from lora_from_scratch import RunConfig, adapt, run
from lora_from_scratch.base.load import BUNDLED_MODEL
from lora_from_scratch.cli.main import main
from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.fast.gpt2 import classify
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.report import page
from lora_from_scratch.train.measure import read_memory, reset_peak_memory

QUICK = RunConfig(model="bundled", dataset="bundled", device="cpu", limit_train=16, max_steps=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    still = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return str(write_base(tmp_path_factory.mktemp("benchmarks") / "base", **still))


@pytest.mark.parametrize(("layers", "rank"), [(2, 3), (4, 1)])
def test_the_roofline_counts_what_a_step_computes_and_a_step_computes_no_more(layers, rank):
    """torch's own counter on a batch without padding; attention's batched products are apart."""
    torch.manual_seed(0)
    config = tiny_config(n_layer=layers)
    model = adapt(GPT2ForSequenceClassification(config), RunConfig(rank=rank)).train()
    B, T, C = 5, 7, config.n_embd
    with FlopCounterMode(display=False) as counter:
        logits = classify(model, torch.randint(1, 50, (B, T)), torch.full((B,), T))
        cross_entropy(logits, torch.zeros(B, dtype=torch.long)).backward()
    counted = {str(op): flop for op, flop in counter.get_flop_counts()["Global"].items()}
    head = 3 * 2 * B * C * 2
    expected = sum(operations(products(config, rank), B * T, B).values())
    assert counted["aten.mm"] + counted["aten.addmm"] - head == expected


def test_a_straight_line_fits_and_a_curve_does_not():
    tokens = [100.0, 200.0, 400.0, 800.0]
    fit = line(tokens, [0.5 + 2e-3 * n for n in tokens])
    assert fit["us_per_token"] == pytest.approx(2000) and fit["intercept_seconds"] == pytest.approx(0.5)
    assert fit["r2"] == pytest.approx(1)
    assert line(tokens, [n**2 for n in tokens])["r2"] < 0.98


def test_a_ratio_is_taken_turn_by_turn():
    assert ratio([1.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == (3.0, [1.0, 4.0])


def test_the_ratios_of_a_start_are_taken_turn_by_turn_and_clock_by_clock():
    above = [{"wall": wall, "user": 3.0} for wall in (1.0, 8.0, 9.0)]
    below = [{"wall": wall, "user": 2.0} for wall in (1.0, 2.0, 3.0)]
    assert ratios(above, below) == {
        "wall": {"median": 3.0, "range": [1.0, 4.0]},
        "user": {"median": 1.5, "range": [1.5, 1.5]},
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
@pytest.mark.parametrize("method", ["lora", "full", "prelayer"])
def test_both_sides_of_a_comparison_train_the_same(method, base):
    """The same parameters learn, all move but A (without gradient while B = 0), and both name the seconds."""
    pytest.importorskip("peft")
    sentences = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14]] * 5
    work = Work(model=base, method=method, trainer={})
    ours, theirs = Ours(work), Theirs(work)
    learning = []
    for model in (ours.prepared.model, theirs.model):
        learning.append({name: p for name, p in model.named_parameters() if p.requires_grad})
    before = [{name: p.detach().clone() for name, p in parameters.items()} for parameters in learning]
    assert sum(p.numel() for p in learning[0].values()) == sum(p.numel() for p in learning[1].values())
    assert ours.train(sentences) > 0 and theirs.train(sentences) > 0
    for parameters, values in zip(learning, before, strict=True):
        assert all(not torch.equal(p, values[name]) for name, p in parameters.items() if "lora_A" not in name)
    assert as_examples(sentences).lengths.tolist() == [3, 2, 1, 4] * 5


@pytest.mark.usefixtures("few_sentences")
def test_a_turn_of_ours_does_not_start_the_peak_of_memory_anew():
    """Else what it takes before its loop would count for Trainer alone."""
    ours, cpu = Ours(Work(model=str(BUNDLED_MODEL))), torch.device("cpu")
    if not reset_peak_memory(cpu):
        pytest.skip("this system keeps one peak for the life of a process")
    torch.ones(100_000_000)  # 400 MB that come and go
    peak = read_memory(cpu).peak_bytes
    ours.train([[5, 6, 7]] * 16)
    assert read_memory(cpu).peak_bytes >= peak
    assert run(QUICK).training.memory.peak_bytes < peak  # of a training by itself


def test_both_sides_of_plain_vs_fast_are_what_they_are_called(base):
    for plain in (False, True):
        assert Ours(Work(model=base, plain=plain)).prepared.config.plain is plain


def test_results_are_written_as_the_pages_read_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/choose_epochs.py", "--datasets", "my data", "--out", "x"])
    for name in outcome.HELD_TO:
        monkeypatch.delenv(name, raising=False)
    outcome.finish(tmp_path / "out.json", {"lora": [1]}, data_fingerprint="0")
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written.pop("command") == "python benchmarks/choose_epochs.py --datasets 'my data'"
    assert date.fromisoformat(written.pop("date")) <= date.today()
    assert written == printed and printed["results"] == {"lora": [1]}
    assert printed["environment"]["threads"] == 1


def test_a_command_says_what_the_cpu_was_held_to(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/vs_peft.py", "--pairs", "3"])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    outcome.finish(tmp_path / "out.json", {})
    command = json.loads((tmp_path / "out.json").read_text())["command"]
    assert command == "ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/vs_peft.py --pairs 3"


def test_a_file_for_results_that_cannot_be_is_refused_at_once(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    outcome.add_out(parser)
    for bad in (tmp_path, tmp_path / "nowhere" / "out.json"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--out", str(bad)])
        assert "is not a file in a folder that is there" in capsys.readouterr().err


def test_a_kept_comparison_holds_no_sentence(tmp_path, monkeypatch, capsys, base):
    """Its page shows numbers in the place of words, and its record has nothing sentence by sentence."""
    rows = "".join(
        f"{w} film number {i},{label}\n" for i in range(15) for w, label in (("good", 1), ("dull", 0))
    )
    (tmp_path / "mine.csv").write_text("text,label\n" + rows, encoding="utf-8")
    flags = ["--methods", "none", "head", "--seeds", "0", "1", "--max-steps", "1", "--precision", "fp32"]
    flags += [
        "--model",
        base,
        "--dataset",
        str(tmp_path / "mine.csv"),
        "--output-dir",
        str(tmp_path / "it"),
    ]
    monkeypatch.setattr(page, "comparison_pictures", lambda comparison: {})
    assert main(["compare", *flags]) == 0
    whole = (tmp_path / "it" / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(keep_comparison, "ROOT", tmp_path / "root")
    monkeypatch.setattr(sys, "argv", ["keep_comparison.py", str(tmp_path / "it"), "mine"])
    keep_comparison.main()
    kept = tmp_path / "root" / "benchmarks" / "results" / "mine"
    shown, record = ((kept / name).read_text(encoding="utf-8") for name in ("report.html", "results.json"))
    assert "film number" in whole and "film number" not in shown and "film number" not in record
    assert "predictions" not in record and json.loads(record)["done"] == 4


@pytest.mark.usefixtures("few_sentences")
def test_memory_over_a_run_is_read_at_every_moment_and_anew_since_the_one_before():
    if not reset_peak_memory(torch.device("cpu")):
        pytest.skip("this system keeps one peak for the life of a process")
    torch.ones(100_000_000)  # 400 MB that come and go before it starts
    settings = {"model": "bundled", "dataset": "bundled", "device": "cpu", "limit_train": 32, "max_steps": 2}
    found = one_run({**settings, "precision": "fp32"})
    assert tuple(found) == MOMENTS
    peaks = [reading["peak_bytes"] for reading in found.values()]
    assert all(reading["resident_bytes"] <= reading["peak_bytes"] + 2**20 for reading in found.values())
    assert max(peaks[1:]) < peaks[0]


def test_both_sides_start_from_the_weights_that_are_there():
    work = Work(model=str(BUNDLED_MODEL), trainer={}, method="full")
    ours, theirs = Ours(work).prepared.model, Theirs(work).model
    assert work.has_weights and torch.equal(ours.transformer.wte.weight, theirs.transformer.wte.weight)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
@pytest.mark.usefixtures("few_sentences", "undrawn")
def test_on_the_whole_base_an_adapter_of_a_rounded_one_is_pefts(base, tmp_path, capfd):
    """PEFT knows nothing of the rounding, and puts A and B on the base that it is given."""
    peft = pytest.importorskip("peft")
    folder = tmp_path / "run"
    flags = ["--model", base, "--dataset", "bundled", "--base-precision", "nf4", "--lr", "1e-2"]
    assert main([*flags, "--max-steps", "3", "--output-dir", str(folder)]) == 0
    adapted, texts = load_adapted(folder), ["a fine film", "dull , and far too long"]
    rounded, whole = on_both(adapted, tokenize(adapted.tokenizer, texts, [0, 1], 32))
    plain = GPT2ForSequenceClassification.from_pretrained(base, num_labels=2)
    plain.config.pad_token_id = adapted.tokenizer.pad_token_id
    theirs = peft.PeftModel.from_pretrained(plain, str(folder)).eval()
    with torch.no_grad():
        logits = torch.cat([theirs(**adapted.tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(whole, logits, rtol=0, atol=1e-5)
    assert (rounded - whole).abs().max() > 1e-3

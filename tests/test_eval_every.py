"""Validation during training: it sees the model as it stands, and leaves no trace in what comes out."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_runs import write_base
from torch.nn.functional import cross_entropy

from lora_from_scratch import RunConfig
from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.runs import execute
from lora_from_scratch.runs.execute import evaluate_prepared, train_prepared
from lora_from_scratch.runs.folder import METRICS, write_trained
from lora_from_scratch.runs.prepare import Prepared, prepare
from lora_from_scratch.runs.sources import Sources, find_sources
from lora_from_scratch.train.evaluate import validate
from lora_from_scratch.train.log import Training
from lora_from_scratch.train.precision import resolve_precision
from lora_from_scratch.train.training import Course, train

QUICK = {"dataset": "bundled", "device": "cpu", "limit_train": 48, "max_steps": 5, "batch_size": 8}
PRECISIONS = {"fp32", resolve_precision("auto", torch.device("cpu"))}  # what this CPU multiplies quickly
ALL = [
    (method, plain, precision)
    for method in ("lora", "full", "prelayer")
    for plain in (False, True)
    for precision in sorted(PRECISIONS)
]


@cache
def sources() -> Sources:
    with tempfile.TemporaryDirectory() as name:
        return find_sources(RunConfig(**QUICK, model=str(write_base(Path(name, "base")))), keep=True)


def ready(**changes: object) -> Prepared:
    """A run over a few sentences, to be measured on others, which hold tokens that it does not train on."""
    prepared = prepare(RunConfig(**{**QUICK, "precision": "fp32", **changes}), sources())
    examples = prepared.validation_examples
    few = replace(
        examples,
        token_ids=examples.token_ids[: int(examples.lengths[:24].sum())],
        lengths=examples.lengths[:24],
        labels=examples.labels[:24],
    )
    assert set(few.token_ids.tolist()) - set(prepared.train_examples.token_ids.tolist())
    return replace(prepared, validation_examples=few)


def trained(prepared: Prepared) -> tuple[Training, dict[str, torch.Tensor], tuple[list[bool], bytes]]:
    """What came out, the weights, and what is behind them: each module's mode, and what is drawn next."""
    training = train_prepared(prepared)
    state = {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}
    modes = [module.training for module in prepared.model.modules()]
    return training, state, (modes, torch.get_rng_state().numpy().tobytes())


@pytest.mark.parametrize(("method", "plain", "precision"), ALL)
def test_what_comes_out_is_the_same_bit_for_bit(method, plain, precision):
    asked = {"method": method, "plain": plain, "precision": precision}
    training, weights, behind = trained(ready(**asked))
    prepared = ready(**asked, eval_every=2)
    looked, same_weights, same_behind = trained(prepared)
    assert weights.keys() == same_weights.keys()
    assert [name for name, tensor in weights.items() if not torch.equal(tensor, same_weights[name])] == []
    assert behind == same_behind
    added = ("validation_loss", "validation_accuracy")
    left = [{key: value for key, value in row.items() if key not in added} for row in looked.metrics]
    assert left == training.metrics
    rows = {row["step"]: row for row in looked.metrics if added[0] in row}
    assert list(rows) == [2, 4, 5] and rows[2][added[0]] != rows[4][added[0]]

    # After the last step it is what the final evaluation sees; in bf16 apart from rounding.
    evaluation, examples = evaluate_prepared(prepared), prepared.validation_examples
    sentences = examples.token_ids.split(examples.lengths.tolist())
    with torch.no_grad():
        logits = [classify(prepared.model, s[None], torch.tensor([len(s)])) for s in sentences]
    loss = cross_entropy(torch.cat(logits), examples.labels).item()
    assert rows[5][added[0]] == pytest.approx(loss, rel=1e-5 if precision == "fp32" else 1e-2)
    if precision == "fp32":
        assert rows[5][added[1]] == evaluation.score.accuracy


def test_neither_the_clock_nor_a_phase_holds_the_time_that_it_takes(tiny_gpt2, tiny_examples, monkeypatch):
    ticks, pauses = count(), []
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) + 1e6 * len(pauses))

    def slow(decay: dict[str, float]) -> dict[str, float]:
        pauses.append(decay)
        return {"validation_loss": 0.0}

    options = {"batch_size": 8, "lr": 1e-3, "weight_decay": 0.1, "precision": torch.float32}
    draw = torch.Generator().manual_seed(0)
    training = train(
        tiny_gpt2, tiny_examples, Course(epochs=2, **options, generator=draw, validate=slow, eval_every=5)
    )
    assert len(pauses) == 3 and training.seconds < 1000
    assert set(training.phases) == {"data", "forward", "backward", "optimizer"}
    assert sum(training.phases.values()) <= training.seconds


@pytest.mark.parametrize(("every", "steps"), [(99, [5]), (5, [5]), (1, [1, 2, 3, 4, 5]), (None, [])])
def test_the_last_step_is_always_measured(every, steps):
    metrics = train_prepared(ready(rank=2, eval_every=every)).metrics
    assert [row["step"] for row in metrics if "validation_loss" in row] == steps


def test_the_last_weights_are_saved_and_measured_though_earlier_ones_were_better(tmp_path, monkeypatch):
    """Better by what validation says, which here finds each step worse than the one before."""
    _, weights, _ = trained(ready(method="head"))
    worse = ({"validation_loss": float(step), "validation_accuracy": 90.0 - step} for step in count())
    monkeypatch.setattr(execute, "validate", lambda *_, **__: next(worse))
    prepared = ready(method="head", eval_every=1)
    training = train_prepared(prepared)
    assert [row["validation_loss"] for row in training.metrics] == [0.0, 1.0, 2.0, 3.0, 4.0]
    write_trained(prepared, training, tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "trained.safetensors")["score.weight"]
    evaluate_prepared(prepared)
    assert torch.equal(saved, weights["score.weight"])
    assert torch.equal(prepared.model.score.weight, weights["score.weight"])


def test_the_lines_of_metrics_jsonl_hold_what_was_measured(tmp_path):
    prepared = ready(rank=2, eval_every=3)
    write_trained(prepared, train_prepared(prepared), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert ["validation_accuracy" in row for row in rows] == [False, False, True, False, True]
    assert 0 <= rows[-1]["validation_accuracy"] <= 100


def test_a_model_without_finite_logits_has_no_loss(tiny_gpt2, tiny_examples):
    with torch.no_grad():
        tiny_gpt2.score.weight[0, 0] = float("nan")
    assert validate(tiny_gpt2, tiny_examples, torch.float32) == {
        "validation_loss": None,
        "validation_accuracy": None,
    }


def test_it_is_no_part_of_a_folders_name_and_older_records_are_without_it():
    config = RunConfig(rank=8, eval_every=50)
    assert config.default_folder() == "runs/lora-rank-8"
    assert RunConfig(**config.as_dict()) == config
    older = config.as_dict()
    del older["eval_every"]
    assert RunConfig(**older) == replace(config, eval_every=None)

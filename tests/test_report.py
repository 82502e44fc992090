"""Tables, banner and picture: what they claim is what was run."""

from __future__ import annotations

import sys

import pytest

from lora_from_scratch import RunConfig
from lora_from_scratch.report.picture import draw_training
from lora_from_scratch.report.screen import banner, summary
from lora_from_scratch.report.tables import markdown_table, memory_text, results_table
from lora_from_scratch.runs.execute import execute
from lora_from_scratch.runs.prepare import prepare

QUICK = {"model": "bundled", "dataset": "bundled", "precision": "fp32", "limit_train": 32, "max_steps": 2}


@pytest.fixture(scope="module")
def result():
    return execute(prepare(RunConfig(**QUICK)))


def test_markdown_columns_are_as_wide_as_their_widest_cell():
    table = markdown_table([("a", "long header"), ("longer cell", "b")])
    assert table.splitlines() == [
        "| a           | long header |",
        "|-------------|-------------|",
        "| longer cell | b           |",
    ]


def test_the_published_columns():
    values = {
        "method": "lora",
        "accuracy": 86.931,
        "accuracy_margin_95": 2.2371,
        "f1": 87.4249,
        "trainable_parameters": 148_992,
        "total_parameters": 124_588_800,
        "train_seconds": 2464.95,
        "steps": 8420,
        "memory": {"kind": "cuda", "allocated_bytes": 490_000_000, "peak_bytes": 1},
    }
    row = results_table([values]).splitlines()[2]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "lora",
        "86.93 ± 2.24",
        "87.42",
        "148,992 (0.1196 %)",
        "2464.9",
        "0.49 GB allocated",
    ]
    nothing = {**values, "trainable_parameters": 0, "steps": 0, "train_seconds": 0.0}
    cells = [cell.strip() for cell in results_table([nothing]).splitlines()[2].strip("|").split("|")]
    assert cells[3:5] == ["-", "-"]


def test_memory_is_labelled_by_what_it_is():
    assert memory_text({"kind": "cuda", "allocated_bytes": 5e8, "peak_bytes": 9e9}) == "0.50 GB allocated"
    resident = {"kind": "resident", "allocated_bytes": 5e8, "peak_bytes": 1.25e9}
    assert memory_text(resident) == "1.25 GB peak resident"
    assert memory_text({**resident, "kind": "process"}) == "1.25 GB peak resident since the program began"
    assert memory_text({"kind": "resident", "allocated_bytes": None, "peak_bytes": None}) == "-"


def test_the_summary_names_model_and_data(result):
    text = summary(result.as_dict())
    assert text.startswith("mini-gpt2 (bundled) on mini-reviews (bundled), ")
    for phase in ("data", "forward", "backward", "optimizer"):
        assert f"{phase} " in text
    assert f"{result.training.seconds:.1f} s" in text


def test_the_banner_names_what_stands_in(result):
    prepared = result.prepared
    text = banner(prepared)
    assert "mini-gpt2 (bundled)" in text and "mini-reviews (bundled)" in text
    lines = text.splitlines()
    assert lines[0] == lines[-1] == "=" * max(map(len, lines))


def test_the_picture_is_a_png_and_optional(result, monkeypatch):
    record, metrics = result.as_dict(), result.training.metrics
    assert draw_training(record, metrics).startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_training(record, metrics) is None

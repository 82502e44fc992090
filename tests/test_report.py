"""Tables, banner and picture: what they claim is what was run."""

from __future__ import annotations

import sys

import pytest
from sklearn.metrics import f1_score

from lora_from_scratch import RunConfig
from lora_from_scratch.report.card import model_card
from lora_from_scratch.report.picture import draw_training
from lora_from_scratch.report.screen import banner, not_beaten, plan, summary
from lora_from_scratch.report.tables import (
    classes_text,
    f1_title,
    markdown_table,
    memory_text,
    results_table,
)
from lora_from_scratch.runs.execute import execute
from lora_from_scratch.runs.prepare import prepare

QUICK = {"model": "bundled", "dataset": "bundled", "precision": "fp32", "limit_train": 32, "max_steps": 2}
QUICK["positive_class"] = "negative"


@pytest.fixture(scope="module")
def result(tiny_bundle):
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
        "accuracy_interval_95": [84.5423, 89.0061],
        "f1": 87.4249,
        "f1_of": "positive",
        "trainable_parameters": 148_992,
        "total_parameters": 124_588_800,
        "train_seconds": 2464.95,
        "steps": 8420,
        "memory": {"kind": "cuda", "allocated_bytes": 490_000_000, "peak_bytes": 1},
    }
    title, _, row = results_table([values]).splitlines()
    assert "| accuracy (%), 95 % interval | F1 of class positive (%) |" in title
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "lora",
        "86.93 (84.5 to 89.0)",
        "87.42",
        "148,992 (0.1196 %)",
        "2464.9",
        "0.49 GB allocated",
    ]
    nothing = {**values, "trainable_parameters": 0, "steps": 0, "train_seconds": 0.0}
    cells = [cell.strip() for cell in results_table([nothing]).splitlines()[2].strip("|").split("|")]
    assert cells[3:5] == ["-", "-"]


def test_f1_is_that_of_the_class_that_was_asked_for(result):
    record = result.as_dict()
    measured = record["evaluation"]
    each = f1_score(measured["labels"], measured["predictions"], average=None)
    assert record["f1"] == pytest.approx(100 * each[0]) and each[0] != each[1]
    assert record["f1_of"] == "negative" and "| F1 of class negative (%) |" in summary(record)
    assert "| F1 of class negative (%) |" in model_card(record)


def test_the_title_of_f1_names_the_class_on_one_line():
    assert f1_title("mean of all classes") == "F1, mean of the classes (%)"
    assert f1_title("a\n b") == "F1 of class a b (%)"
    assert f1_title("x" * 99) == f"F1 of class {'x' * 27}... (%)"
    assert markdown_table([("F1 of class a|b (%)",)]).splitlines()[0] == "| F1 of class a\\|b (%) |"


def test_of_many_classes_the_commonest_are_shown():
    assert classes_text({"1": 1200, "b": 0}) == "1 (1,200), b (0)"
    many = {f"class {i}": 100 + i for i in range(12)}
    assert classes_text(many) == (
        "class 11 (111), class 10 (110), class 9 (109), class 8 (108), class 7 (107), and 7 more"
    )
    assert classes_text(dict(list(many.items())[:10])).count(",") == 9


@pytest.mark.parametrize(
    ("accuracy", "interval", "verdict", "advice"),
    [
        (59.0, [40.0, 75.0], "does not beat", "train longer (--epochs) or take another --lr"),
        (60.0, [41.0, 76.0], "does not beat", "train longer (--epochs) or take another --lr"),
        (65.0, [46.0, 80.0], "is not shown to beat", "train longer (--epochs) or measure on more sentences"),
        (80.0, [60.0, 91.0], "is not shown to beat", "train longer (--epochs) or measure on more sentences"),
        (81.0, [60.1, 92.0], "", ""),
        (100.0, [59.0, 100.0], "is not shown to beat", ": measure on more sentences"),
    ],
)
def test_a_result_that_does_not_beat_the_baseline_says_so(result, accuracy, interval, verdict, advice):
    always = {"label": "negative", "accuracy": 60.0}
    values = {"accuracy": accuracy, "accuracy_interval_95": interval, "baseline": always}
    record = {**result.as_dict(), **values}
    line = "baseline    always saying negative scores 60.00 %"
    assert f"{line}{verdict and f': this result {verdict} it'}" in summary(record).splitlines()
    said = not_beaten(record)
    assert bool(said) == bool(verdict) and said.endswith(advice)
    assert verdict == "" or f"({interval[0]} to {interval[1]}) {verdict} always saying 'negative'" in said
    assert not_beaten({**record, "steps": 0}) == ""  # nobody expects it of what was not trained
    later = not_beaten({**record, "steps": 0, "kind": "evaluation"})
    assert bool(later) == bool(verdict) and "--" not in later
    assert f"would score 60.00 %{verdict and f'; this model {verdict} that'}." in model_card(record)


def test_the_plan_shows_the_classes_and_what_the_commonest_scores(result):
    counts = result.prepared.train_examples.labels.bincount().tolist()
    lines = plan(result.prepared).splitlines()
    assert lines[-3:] == [
        f"train       negative ({counts[0]}), positive ({counts[1]})",
        "validation  negative (249), positive (249)",
        f"baseline    always saying {['negative', 'positive'][counts[1] > counts[0]]} scores 50.00 %",
    ]
    data = result.as_dict()["data"]
    assert data["train_classes"] == {"negative": counts[0], "positive": counts[1]}
    assert data["validation_classes"] == {"negative": 249, "positive": 249}
    assert "\n".join(lines[-3:]) in summary(result.as_dict())


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
    from matplotlib.figure import Figure

    record, metrics = result.as_dict(), result.training.metrics
    monkeypatch.setattr(Figure, "suptitle", lambda _, text, **how: titles.append(text))
    titles: list[str] = []
    assert draw_training(record, metrics).startswith(b"\x89PNG")
    (title,) = titles
    low, high = record["accuracy_interval_95"]
    assert title.endswith(f"accuracy {record['accuracy']:.1f} % ({low:.1f} to {high:.1f})")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_training(record, metrics) is None


def test_the_picture_shows_the_validation_where_there_was_one(result, monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = {}, Axes.plot

    def noted(self: Axes, x: object, y: object, **options: object) -> object:
        drawn[options.get("label")] = (list(x), list(y))
        return plot(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    record, metrics = result.as_dict(), result.training.metrics
    assert draw_training(record, metrics) and "validation" not in drawn
    looked = [{**metrics[0], "validation_loss": None}, {**metrics[1], "validation_loss": 0.5}]
    assert draw_training(record, looked) and drawn["validation"] == ([2], [0.5])


@pytest.mark.parametrize(
    ("dataset", "source"), [("sst2", "nyu-mll/glue"), ("you/reviews", "you/reviews"), ("d.csv", "d.csv")]
)
def test_the_cards_front_matter_names_the_dataset(result, dataset, source):
    record = result.as_dict()
    record["config"]["dataset"] = dataset
    assert f'datasets:\n- "{source}"\n' in model_card(record)


def test_a_name_with_marks_of_mathematics_is_drawn_as_it_is(result):
    record = {**result.as_dict(), "dataset": "a_$x^$.csv"}
    assert draw_training(record, result.training.metrics).startswith(b"\x89PNG")


def test_the_card_counts_the_passes_that_were_made(result):
    """Where --max-steps ended the run before its epochs did."""
    record = result.as_dict()
    sentences, size = record["data"]["train_sentences"], record["config"]["batch_size"]
    short, whole = f"{2 * size / sentences:.2g} epochs", f"{record['config']['epochs']} epochs"
    assert f"({short})" in model_card({**record, "steps": 2})
    steps = record["config"]["epochs"] * -(-sentences // size)
    assert f"({whole})" in model_card({**record, "steps": steps}) and short != whole

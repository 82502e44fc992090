"""From the outcomes of a plan to one record: nothing is taken over survivors unsaid, failures never rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy
import pytest

from lora_from_scratch.compare.cells import Cells
from lora_from_scratch.compare.going import Going
from lora_from_scratch.compare.plan import Cell, Variant, asked_for, cells, named
from lora_from_scratch.compare.shared import Shared
from lora_from_scratch.compare.significance import crossed_difference, crossed_mean
from lora_from_scratch.compare.summary import comparison, reference_among
from lora_from_scratch.errors import UserError
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import run
from lora_from_scratch.train.evaluate import wilson

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def shared(tiny_bundle) -> Shared:
    return Shared()


@pytest.fixture(scope="module")
def template(shared) -> dict[str, object]:
    """The record of a real run, to be filled with other predictions."""
    return run(RunConfig(method="none", model="bundled", dataset="bundled", precision="fp32")).as_dict()


def variants_of(shared: Shared, methods: Sequence[str], **flags: Sequence[object]) -> list[Variant]:
    flags = {"model": ["bundled"], "dataset": ["bundled"], "precision": ["fp32"], **flags}
    return named(map(shared.decided, asked_for(methods, flags, {})))


class Made:
    """A comparison whose runs are made up: each is right with a probability that depends on its label."""

    def __init__(self, shared: Shared, template: dict[str, object], variants: list[Variant]) -> None:
        self.going, self.variants, self.template = Going(Cells(Path("nowhere")), shared), variants, template

    def fill(self, chances: dict[str, float], seeds: Sequence[int] = SEEDS) -> None:
        for cell in cells(self.variants, seeds):
            if (chance := chances.get(cell.variant.label)) is not None:
                self.going.outcomes[cell] = self.outcome(cell, chance)

    def outcome(self, cell: Cell, chance: float) -> dict[str, object]:
        labels = numpy.array(self.template["evaluation"]["labels"])
        draw = numpy.random.default_rng([cell.seed, int(1000 * chance)])
        right = draw.random(len(labels)) < chance
        predictions = numpy.where(right, labels, 1 - labels).tolist()
        record = {
            **self.template,
            "accuracy": 100 * float(right.mean()),
            "accuracy_interval_95": list(wilson(int(right.sum()), len(right))),
            "f1": 50.0 + cell.seed,
            "steps": 10,
            "train_seconds": 10.0 + cell.seed,
            "phase_seconds": {"forward": 6.0 + cell.seed, "backward": 4.0},
            "config": cell.config.as_dict(),
            "evaluation": {**self.template["evaluation"], "predictions": predictions},
            "memory": {"kind": "resident", "peak_bytes": 100 + cell.seed},
        }
        times = {"load_average": [1.0, 2.0], "seconds": 12.0}
        curves = {"losses": [[1, 0.5]], "validation": [], "accounted": None}
        return {"status": "done", "record": record, **curves, **times}

    def fail(self, label: str, seed: int) -> None:
        (cell,) = (cell for cell in cells(self.variants, [seed]) if cell.variant.label == label)
        self.going.outcomes[cell] = {
            "status": "failed",
            "error": "the loss is nan",
            "load_average": [1.0, 1.0],
            "seconds": 1.0,
        }

    def summed(
        self, seeds: Sequence[int] = SEEDS, reference: str = "lora", margin: float | None = None
    ) -> dict:
        return comparison(self.going, self.variants, seeds, "python run.py compare", reference, margin)

    def right(self, label: str, seeds: Sequence[int] = SEEDS) -> numpy.ndarray:
        labels = numpy.array(self.template["evaluation"]["labels"])
        rows = {cell.seed: one for cell, one in self.going.outcomes.items() if cell.variant.label == label}
        return numpy.array([rows[seed]["record"]["evaluation"]["predictions"] for seed in seeds]) == labels


def test_means_spread_and_intervals_are_those_of_the_runs(shared, template):
    made = Made(shared, template, variants_of(shared, ["head", "lora"]))
    made.fill({"head": 0.7, "lora": 0.8})
    found = made.summed()
    (table,) = found["datasets"]
    assert (found["planned"], found["done"], found["failed"], found["stopped"]) == (6, 6, 0, None)
    for row in table["variants"]:
        right = made.right(row["label"])
        accuracies = [100 * float(one.mean()) for one in right]
        e = crossed_mean(right)
        assert row["accuracy"]["mean"] == pytest.approx(mean(accuracies)) == pytest.approx(e.value)
        assert row["accuracy"]["sd"] == pytest.approx(stdev(accuracies))
        assert row["accuracy"]["interval"] == [e.low, e.high] and row["accuracy"]["kind"] == "crossed"
        assert row["f1"] == {"mean": 51.0, "sd": 1.0}
        assert row["seconds"] == {"median": 11.0, "min": 10.0, "max": 12.0} and row["peak_bytes"] == 102
        assert row["phase_seconds"] == {"forward": 7.0, "backward": 4.0}
        assert [one["seed"] for one in row["runs"]] == [0, 1, 2]
    (one,) = table["comparisons"]
    e = crossed_difference(made.right("head"), made.right("lora"))
    assert (one["a"], one["b"], one["verdict"]) == ("head", "lora", "worse")
    assert one["difference"] == e.value and one["interval"] == [e.low, e.high] and one["p_holm"] == e.p
    assert table["headline"].startswith("lora has the highest mean accuracy")
    assert table["texts"] == shared(made.variants[0].config).dataset.validation.sentences
    assert "lr" not in found["settings"] and found["settings"]["batch_size"] == 16
    assert "runs" not in table["headline"] + one["sentence"], "all are done"


def test_a_table_without_the_reference_has_one_of_its_own(shared, template, tmp_path):
    """Each value of a flag that the data are read by has a table, and the labels say which."""
    bundled = shared.decided(RunConfig(method="head", model="bundled", dataset="bundled"))
    dataset = shared(bundled).dataset
    for name, split in (("train", dataset.train), ("dev", dataset.validation), ("test", dataset.validation)):
        rows = "".join(
            f"{text}\t{label}\n" for text, label in zip(split.sentences, split.labels, strict=True)
        )
        (tmp_path / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}", encoding="utf-8")
    flags = {"dataset": [str(tmp_path)], "validation_split": ["dev", "test"]}
    made = Made(shared, template, variants_of(shared, ["head", "lora"], **flags))
    made.fill({variant.label: 0.7 + 0.1 * ("lora" in variant.label) for variant in made.variants})
    reference = reference_among(made.variants, None)
    tables = made.summed(reference=reference)["datasets"]
    assert [[(one["a"], one["b"]) for one in table["comparisons"]] for table in tables] == [
        [(f"head, validation split {name}", f"lora, validation split {name}")] for name in ("dev", "test")
    ]
    assert [table["reference"] for table in tables] == [one["comparisons"][0]["b"] for one in tables]


def test_runs_of_several_places_say_so(shared, template):
    made = Made(shared, template, variants_of(shared, ["head", "lora"]))
    assert made.summed()["environment"].keys() == template["environment"].keys()
    made.fill({"head": 0.7, "lora": 0.8})
    first, *_ = made.going.outcomes.values()
    first["record"]["environment"] = {**template["environment"], "threads": 99}
    found = made.summed()["environment"]
    assert found == {**template["environment"], "threads": f"99 and {template['environment']['threads']}"}


def test_what_is_missing_is_counted_and_never_ranks(shared, template):
    made = Made(shared, template, variants_of(shared, ["head", "full", "lora"]))
    made.fill({"lora": 0.8, "head": 0.7})
    made.fail("head", 2)
    made.fail("full", 0)
    found = made.summed()
    head, full, lora = found["datasets"][0]["variants"]
    assert (found["planned"], found["done"], found["failed"]) == (9, 5, 2)
    assert (head["planned"], head["done"], head["failed"]) == (3, 2, 1)
    assert head["accuracy"]["mean"] == pytest.approx(100 * made.right("head", (0, 1)).mean())
    assert (full["done"], full["failed"], full["accuracy"], full["f1"], full["seconds"]) == (
        0,
        1,
        None,
        None,
        None,
    )
    assert [run["status"] for run in full["runs"]] == ["failed", "planned", "planned"]
    assert full["runs"][0]["error"] == "the loss is nan"
    (one,) = found["datasets"][0]["comparisons"]
    assert one["a"] == "head" and one["sentence"].endswith(", over 2 of 3 runs of head")
    headline = found["datasets"][0]["headline"]
    assert "full" not in headline and headline.endswith(". Of 9 runs 5 are done.") and lora["done"] == 3


def test_a_single_seed_has_wilsons_interval_and_no_verdict(shared, template):
    made = Made(shared, template, variants_of(shared, ["head", "lora"]))
    made.fill({"head": 0.7, "lora": 0.8}, seeds=(0,))
    (table,) = made.summed(seeds=(0,))["datasets"]
    head = table["variants"][0]
    right = made.right("head", (0,))
    assert head["accuracy"]["kind"] == "wilson" and head["accuracy"]["sd"] is None
    assert head["accuracy"]["interval"] == list(wilson(int(right.sum()), right.size))
    (one,) = table["comparisons"]
    assert one["verdict"] == "too few seeds" and one["difference"] is None and one["interval"] is None


def test_nothing_done_is_said(shared, template):
    made = Made(shared, template, variants_of(shared, ["head", "lora"]))
    (table,) = made.summed()["datasets"]
    assert table["headline"] == "No run is done." and table["comparisons"] == []


def test_variants_of_a_method_are_compared_with_its_first(shared, template):
    variants = variants_of(shared, ["head", "lora"], lr=[1e-4, 1e-3, 1e-2])
    made = Made(shared, template, variants)
    made.fill({variant.label: 0.6 + 0.05 * i for i, variant in enumerate(variants)})
    reference = reference_among(variants, "lora, lr 0.001")
    pairs = {(one["a"], one["b"]) for one in made.summed(reference=reference)["datasets"][0]["comparisons"]}
    assert pairs == {
        *((variant.label, reference) for variant in variants if variant.label != reference),
        ("head, lr 0.001", "head, lr 0.0001"),
        ("head, lr 0.01", "head, lr 0.0001"),
    }


def test_each_dataset_has_a_table_of_its_own(tmp_path, shared, template):
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "good,1\nbad,0\n" * 20, encoding="utf-8")
    variants = variants_of(shared, ["head", "lora"], dataset=["bundled", str(other)])
    assert [variant.label for variant in variants] == ["head", "head", "lora", "lora"]
    made = Made(shared, template, variants)
    for cell in cells([v for v in variants if v.config.dataset == "bundled"], SEEDS):
        made.going.outcomes[cell] = made.outcome(cell, 0.8)
    found = made.summed()
    first, second = found["datasets"]
    assert [row["done"] for row in first["variants"]] == [3, 3]
    assert [row["done"] for row in second["variants"]] == [0, 0]
    assert (len(first["labels"]), len(second["labels"])) == (498, 4) and found["done"] == 6


@pytest.mark.parametrize(
    "flags", [{"drop_blank": [False, True]}, {"positive_class": ["negative", "positive"]}], ids=str
)
def test_what_is_measured_otherwise_has_a_table_of_its_own(shared, template, flags):
    made = Made(shared, template, variants_of(shared, ["head", "lora"], **flags))
    first, second = made.summed()["datasets"]
    (name,) = flags
    assert [[row["config"][name] for row in table["variants"]] for table in (first, second)] == [
        2 * [value] for value in flags[name]
    ]


def test_what_was_trained_on_is_said_of_runs_that_train(shared, template):
    """`none` takes no --limit-train: its record counts every sentence."""
    made = Made(shared, template, variants_of(shared, ["none", "lora"], limit_train=[20]))
    made.fill({"none": 0.5, "lora": 0.8})
    for cell, one in made.going.outcomes.items():
        count = cell.config.limit_train or 4000
        one["record"] |= {
            "steps": 10 * cell.config.way.trains,
            "baseline": {"label": str(count), "accuracy": 50.0},
        }
        one["record"]["data"] = {**template["data"], "train_sentences": count}
    (table,) = made.summed()["datasets"]
    assert table["train_sentences"] == 20 and table["baseline"]["label"] == "20"


def test_label_ids_of_another_train_split_are_not_mixed(tmp_path, template):
    """A class more in train, and an id means another class: such runs share no table."""
    for name, labels in (("train", "ac"), ("train2", "abc"), ("validation", "aca")):
        rows = "".join(f"film {i} {label},{label}\n" for label in labels for i in range(4))
        (tmp_path / f"{name}.csv").write_text("text,label\n" + rows, encoding="utf-8")
    shared = Shared()
    splits = {"dataset": [str(tmp_path)], "train_split": ["train", "train2"]}
    made = Made(shared, template, variants_of(shared, ["head", "lora"], **splits))
    first, second = made.summed(reference="head, train split train")["datasets"]
    assert (first["label_names"], second["label_names"]) == (["a", "c"], ["a", "b", "c"])
    assert sorted(set(first["labels"])) == [0, 1] and sorted(set(second["labels"])) == [0, 2]
    assert [len(table["variants"]) for table in (first, second)] == [2, 2]


def test_the_reference_is_named_beforehand(shared):
    variants = variants_of(shared, ["none", "head", "lora"], rank=[1, 4])
    assert reference_among(variants, None) == "lora, rank 1"
    assert reference_among(variants, "head") == "head"
    assert reference_among(variants_of(shared, ["none", "head"]), None) == "head"
    with pytest.raises(UserError, match="'lora' is not compared here; choose one of 'none', 'head'"):
        reference_among(variants, "lora")

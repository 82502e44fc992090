"""Learning rates: what is held out, which rates are tried, which one is chosen, and who finds it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lora_from_scratch.compare import going as of_going
from lora_from_scratch.compare.cells import Cells
from lora_from_scratch.compare.going import Going
from lora_from_scratch.compare.held_out import hold_out, with_held_out
from lora_from_scratch.compare.plan import asked_for, named
from lora_from_scratch.compare.rates import Rates
from lora_from_scratch.compare.shared import Shared
from lora_from_scratch.compare.tune import (
    SEEDS,
    Tuning,
    chosen,
    grid_index,
    grid_rate,
    is_at_the_edge,
    parabola,
    wanted,
)
from lora_from_scratch.data.dataset import Dataset, Split, load_dataset
from lora_from_scratch.errors import UserError
from lora_from_scratch.runs.config import RunConfig

ROOT = Path(__file__).parents[1]


def searched(
    start: float, loss: Callable[[float, int], float | None]
) -> dict[float, dict[int, float | None]]:
    """Go on as `wanted` says until it wants no more."""
    losses: dict[float, dict[int, float | None]] = {}
    while runs := wanted(start, losses):
        for rate, seed in runs:
            assert seed not in losses.get(rate, {}), "asked for twice"
            losses.setdefault(rate, {})[seed] = loss(rate, seed)
    return losses


def bowl(best: float) -> Callable[[float, int], float]:
    """A loss with its lowest point at a rate, in log10; each seed a little above the other."""
    return lambda rate, seed: (grid_index(rate) - grid_index(best)) ** 2 + 0.01 * (seed - 100)


def test_rates_lie_a_factor_of_sqrt_10_apart_on_one_grid():
    assert [grid_rate(i) for i in range(-8, -3)] == [1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2]
    assert all(grid_index(grid_rate(i)) == i for i in range(-20, 5))
    assert grid_rate(grid_index(5e-4)) == 3.2e-4 and grid_rate(grid_index(3e-3)) == 3.2e-3


def test_five_rates_then_two_more_seeds_for_the_best_three():
    losses = searched(1e-3, bowl(1e-3))
    assert {rate: len(seeds) for rate, seeds in losses.items()} == {
        1e-4: 1, 3.2e-4: 3, 1e-3: 3, 3.2e-3: 3, 1e-2: 1
    }  # fmt: skip
    assert chosen(1e-3, losses) == 1e-3 and sum(map(len, losses.values())) == 11


@pytest.mark.parametrize(("best", "rates"), [(3.2e-2, 7), (1e-2, 6), (1e-4, 6), (3.2e-5, 7), (1.0, 7)])
def test_the_grid_widens_where_the_best_lies_at_its_edge(best, rates):
    losses = searched(1e-3, bowl(best))
    assert len(losses) == rates and sum(map(len, losses.values())) == rates + 6
    rate = chosen(1e-3, losses)
    assert rate == min(best, 1e-1)
    variant = {"chosen": rate, "points": [{"lr": lr} for lr in losses]}
    assert is_at_the_edge(variant) == (best == 1.0)
    assert not is_at_the_edge({**variant, "chosen": None})


def test_what_failed_never_ranks():
    def loss(rate: float, seed: int) -> float | None:
        return None if rate >= 3.2e-3 else bowl(1e-2)(rate, seed)

    losses = searched(1e-3, loss)
    assert chosen(1e-3, losses) == 1e-3 and losses[3.2e-3] == {100: None}
    assert searched(1e-3, lambda rate, seed: None).keys() == {grid_rate(i) for i in range(-8, -3)}
    assert chosen(1e-3, searched(1e-3, lambda rate, seed: None)) is None
    shaky = searched(1e-3, lambda rate, seed: None if (rate, seed) == (1e-3, 102) else bowl(1e-3)(rate, seed))
    assert chosen(1e-3, shaky) in (3.2e-4, 3.2e-3), "one of its seeds failed"


def test_the_mean_over_seeds_decides():
    lucky = {1e-4: {100: 0.9}, 1e-3: {100: 0.1, 101: 0.9, 102: 0.9}, 1e-2: {100: 0.9}}
    lucky |= {rate: dict.fromkeys(SEEDS, loss) for rate, loss in ((3.2e-4, 0.5), (3.2e-3, 0.6))}
    assert chosen(1e-3, lucky) == 3.2e-4


def test_nothing_is_chosen_while_runs_are_to_come():
    losses = searched(1e-3, bowl(1e-3))
    for rate, seed in ((3.2e-3, 102), (3.2e-4, 101)):  # the best has all its seeds by then
        del losses[rate][seed]
        assert chosen(1e-3, losses) is None
    assert chosen(1e-3, {1e-3: dict.fromkeys(SEEDS, 0.5)}) is None and chosen(1e-3, {}) is None


def test_the_parabola_goes_through_the_chosen_rate_and_its_neighbours():
    def losses(middle: float, curvature: float) -> dict[float, dict[int, float | None]]:
        at = {grid_rate(i): i / 2 for i in range(-8, -3)}
        return {rate: {100: 0.3 + curvature / 2 * (log - middle) ** 2} for rate, log in at.items()}

    found = parabola(1e-3, losses(-2.9, 0.2))
    assert found["curvature"] == pytest.approx(0.2) and found["loss"] == pytest.approx(0.3)
    assert found["vertex"] == pytest.approx(10**-2.9)
    assert parabola(1e-2, losses(-2.0, 0.2)) is None, "it lies at the edge"
    assert parabola(None, losses(-2.9, 0.2)) is None and parabola(1e-3, losses(-2.9, -0.2)) is None

    uneven = losses(-2.9, 0.2)
    uneven[1e-3][101] = uneven[3.2e-3][101] = 9.0  # which 3.2e-4 was not run with
    assert parabola(1e-3, uneven) == found
    uneven[1e-2][101] = None
    assert parabola(1e-3, uneven) == found
    uneven[3.2e-4][100] = None
    assert parabola(1e-3, uneven) is None, "a neighbour failed"
    nearly_straight = {3.2e-4: {100: 0.45}, 1e-3: {100: 0.44}, 3.2e-3: {100: 0.4301}}
    assert parabola(1e-3, nearly_straight) is None, "its lowest point lies beyond all that was tried"


def test_a_held_out_sentence_takes_along_every_row_that_is_part_of_it():
    sentences = [f"a b c d e {i} f g" for i in range(20)]
    parts = [f"c d e {i}" for i in range(20)] + [f"{i} f" for i in range(20)] + ["a b", "e", "g a"]
    train = Split([*sentences, *parts, sentences[0]], [0] * (len(sentences) + len(parts) + 1))
    rest, held_out = hold_out(train)
    assert len(held_out) == 2 and set(held_out.sentences) <= {*sentences, "g a"}
    for sentence in held_out.sentences:
        padded = f" {sentence} "
        assert not any(f" {row} " in padded for row in rest.sentences)
        gone = [row for row in train.sentences if f" {row} " in padded]
        assert set(gone).isdisjoint(rest.sentences)
    assert len(rest) + len(held_out) < len(train)
    assert hold_out(train, seed=1) != (rest, held_out) and hold_out(train) == (rest, held_out)


def test_a_sentence_that_is_there_twice_is_a_whole_one():
    rest, held_out = hold_out(Split([f"film {i} is good" for i in range(10)] * 2 + ["is good"] * 5, [1] * 25))
    assert len(held_out) == 2 and "is good" not in held_out.sentences
    assert set(held_out.sentences).isdisjoint(rest.sentences)


def test_the_validation_sentences_are_not_looked_at():
    train, validation = Split([f"film {i}" for i in range(20)], [0, 1] * 10), Split(["never seen"], [1])
    dataset = with_held_out(Dataset(train, validation, ["0", "1"], "dev"))
    assert dataset.validation_name == "2 sentences held out of train" and len(dataset.validation) == 2
    assert set(dataset.validation.sentences) | set(dataset.train.sentences) == set(train.sentences)


def test_nothing_of_sst2s_held_out_sentences_is_trained_on(shared):
    whole = load_dataset(str(shared / "data" / "sst2"))
    dataset = with_held_out(whole)
    held_out = dataset.validation.sentences
    assert len(held_out) == 689 and len(dataset.train) > 55_000  # a tenth of the whole sentences
    rows = set(dataset.train.sentences)
    for sentence in held_out:
        words = sentence.split()
        runs = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        assert not runs & rows
    inside = "\n".join(f" {sentence} " for sentence in set(whole.train.sentences) - set(held_out))
    assert not any(f" {sentence} " in inside for sentence in held_out[:200]), "a phrase, not a whole sentence"
    assert not set(whole.validation.sentences) & set(held_out)


def test_a_dataset_of_one_sentence_cannot_hold_one_out():
    one = Split(["a b", "a"], [0, 1])
    with pytest.raises(UserError, match="nothing is left to train on"):
        with_held_out(Dataset(one, one, ["0", "1"], "one"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tuning of two methods on the bundled sentences; no run is made, its loss follows from its rate."""
    shared = Shared(with_held_out)
    going = Going(Cells(tmp_path_factory.mktemp("tuned")), shared)

    def execute(config, checkpoints):
        rate, best = config.lr, {"head": 1e-2, "lora": 1e-3}[config.method]
        if rate == 3.2e-2 or (config.method, rate, config.seed) == ("head", 1e-3, 102):
            raise UserError("the loss is nan")
        loss = bowl(best)(rate, config.seed)

        class Result:
            training = None

            def as_dict(self):
                return {"evaluation": {"loss": loss}, "accuracy": 90.0, "train_seconds": 1.0}

        return Result()

    flags = {"model": ["bundled"], "dataset": ["bundled"], "precision": ["fp32"]}
    configs = [shared.decided(config) for config in asked_for(["head", "lora"], flags, {})]
    tuning = Tuning(going, named(configs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_going, "prepare", lambda config, sources: config)
        patch.setattr(of_going, "account", lambda config: None)
        patch.setattr(of_going, "_give_memory_back", lambda: None)
        patch.setattr(of_going, "execute", execute)
        tuning.run()
    return tuning, shared, configs


def test_a_tuning_goes_through_its_grid_and_writes_what_it_chose(tuned):
    tuning, shared, configs = tuned
    record = tuning.record("python run.py tune", shared.data_fingerprint(configs[0]))
    head, lora = record["variants"]
    assert (head["chosen"], lora["chosen"]) == (1e-2, 1e-3)
    assert [point["lr"] for point in lora["points"]] == [3.2e-5, 1e-4, 3.2e-4, 1e-3, 3.2e-3]
    assert [point["lr"] for point in head["points"]] == [3.2e-4, 1e-3, 3.2e-3, 1e-2, 3.2e-2]
    assert {len(point["runs"]) for point in lora["points"]} == {1, 3}
    assert "runs: head 11, lora 11" in record["budget"]
    assert lora["parabola"]["vertex"] == pytest.approx(1e-3, rel=0.01) and head["parabola"] is None
    (failed,) = head["points"][-1]["runs"]
    assert failed == {"seed": 100, "loss": None, "accuracy": None, "error": "the loss is nan"}
    assert [point["mean_loss"] is None for point in head["points"]] == [False, True, False, False, True]
    order = [cell.seed for cell in tuning.going.outcomes]
    assert order == sorted(order), "the variants take turns within a seed"
    assert record["held_out"]["sentences"] > 100 and not set(SEEDS) & {0, 1, 2}
    assert len(list(tuning.going.cells.folder.iterdir())) == 22

    again = Tuning(Going(tuning.going.cells, shared), tuning.variants)

    def run(self, cell):
        outcome = tuning.going.outcomes[cell]
        assert outcome["status"] == "failed", "repeated what had finished"
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Going, "_run", run)
        again.run()
    assert again.record("python run.py tune", "")["variants"] == record["variants"]


def test_what_was_tuned_before_stays_beside_what_is_tuned_later(tuned, tmp_path):
    tuning, shared, configs = tuned
    whole = shared.data_fingerprint(configs[0])
    first = {**tuning.record("first", whole), "date": "2026-01-01"}
    for variant in first["variants"]:  # as files had them that told it once for all
        for name in ("command", "date", "code"):
            del variant[name]
    (tmp_path / "rates.json").write_text(json.dumps(first), encoding="utf-8")
    later = tuning.record("later", whole)
    later["variants"] = [{**one, "chosen": 5e-3} for one in later["variants"] if one["method"] == "lora"]
    both = Rates(tmp_path / "rates.json").added_to(later)
    assert [(one["method"], one["chosen"], one["command"]) for one in both["variants"]] == [
        ("head", 1e-2, "first"),
        ("lora", 5e-3, "later"),
    ]
    assert both["variants"][0]["date"] == "2026-01-01"
    (tmp_path / "rates.json").write_text(json.dumps(both), encoding="utf-8")
    rates, digest = Rates(tmp_path / "rates.json"), {**tuning.going.digest(configs[0]), "data": whole}
    assert [rates.rate(config, digest) for config in configs] == [1e-2, 5e-3]


def test_a_comparison_finds_what_was_tuned(tuned, tmp_path):
    tuning, shared, configs = tuned
    file, whole = tmp_path / "rates.json", shared.data_fingerprint(configs[0])
    file.write_text(json.dumps(tuning.record("", whole)), encoding="utf-8")
    rates, (head, lora), digest = Rates(file), configs, {**tuning.going.digest(configs[0]), "data": whole}
    assert (rates.rate(head, digest), rates.rate(lora, digest)) == (1e-2, 1e-3)
    assert rates.rate(replace(lora, method="none"), digest) is None
    assert rates.rate(replace(lora, seed=5), digest) == 1e-3
    asked = asked_for(["head"], {"model": ["bundled"], "dataset": ["bundled"]}, {})
    assert rates.rate(Shared().decided(asked[0]), digest) == 1e-2, "what is held out costs no epoch"
    training = {"epochs": 1, "max_steps": 5, "batch_size": 8, "weight_decay": 0.5, "limit_train": 9}
    training |= {"max_length": 64, "base_precision": "nf4"}
    others = [replace(lora, **{name: value}) for name, value in {**training, "rank": 8}.items()]
    for other in (*others, replace(lora, method="full")):
        with pytest.raises(UserError, match=f"no rate for {other.method}"):
            rates.rate(other, digest)
    with pytest.raises(UserError, match="no rate for lora, alpha 8, batch size 4; tune it"):
        rates.rate(replace(lora, alpha=8.0, batch_size=4), digest)
    assert rates.fit(digest) and not rates.fit({**digest, "data": "another"})
    for part in ("data", "base_weights"):
        with pytest.raises(UserError, match="was not tuned on"):
            rates.rate(lora, {**digest, part: "another"})


def test_the_lines_on_the_page_write_what_tune_holds_out(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "lora-at-its-best.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
    place, here = tmp_path / "shared" / "data" / "sst2", tmp_path / "here"
    place.mkdir(parents=True)
    rows = "".join(f"{w} film {i}\t{i % 2}\n{w} film\t{i % 2}\n" for i in range(30) for w in ("good", "dull"))
    for name in ("train", "dev"):
        (place / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}", encoding="utf-8")
    here.mkdir()
    monkeypatch.chdir(here)
    exec(compile(lines, "lora-at-its-best.md", "exec"), {})
    written, expected = load_dataset("held-out"), with_held_out(load_dataset(str(place)))
    assert 0 < len(expected.validation) < len(expected.train)
    for part in ("train", "validation"):
        one, other = getattr(written, part), getattr(expected, part)
        assert list(one.sentences) == list(other.sentences) and list(one.labels) == list(other.labels)


def test_a_file_that_names_no_length_and_no_precision_of_the_base_was_made_with_the_defaults(tuned, tmp_path):
    """As the one in benchmarks/results. What a later tuning finds for these replaces it."""
    kept = ROOT / "benchmarks" / "results" / "rates-sst2.json"
    record = json.loads(kept.read_text(encoding="utf-8"))
    lora, digest = RunConfig(method="lora", epochs=2, max_length=128), record["sources"]
    assert Rates(kept).rate(lora, digest) == record["variants"][1]["chosen"] == 1e-3
    for changes, named_so in (({"max_length": 64}, "max length 64"), ({"base_precision": "int8"}, "int8")):
        with pytest.raises(UserError, match=f"no rate for lora, .*{named_so}; tune it"):
            Rates(kept).rate(replace(lora, **changes), digest)

    tuning, shared, configs = tuned
    file, whole = tmp_path / "rates.json", shared.data_fingerprint(configs[0])
    first, later = tuning.record("first", whole), tuning.record("later", whole)
    for variant in first["variants"]:
        for name in ("max_length", "base_precision"):
            del variant["settings"][name]
    file.write_text(json.dumps(first), encoding="utf-8")
    both = Rates(file).added_to(later)
    assert [one["command"] for one in both["variants"]] == ["later", "later"]

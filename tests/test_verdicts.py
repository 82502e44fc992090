"""What is said of methods, word for word, and that no sentence says more than its interval."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from lora_from_scratch.compare.significance import Estimate, crossed_difference
from lora_from_scratch.compare.verdicts import Comparison, compare_to, headline, verdict_on


def runs(*right: tuple[int, int], seeds: int = 3, sentences: int = 872) -> np.ndarray:
    """Seeds that agree: right on the sentences of these ranges."""
    row = np.zeros(sentences, dtype=bool)
    for first, last in right:
        row[first:last] = True
    return np.repeat(row[None], seeds, axis=0)


LORA = runs((0, 750))
FULL = runs((10, 790))  # 40 sentences that LORA has wrong, and 10 the other way
PREFIX = runs((20, 765))  # 15 and 20


def one(a: np.ndarray, b: np.ndarray, margin: float | None = None) -> Comparison:
    (found,) = compare_to("lora", {"lora": b, "full": a}, margin)
    return found


def test_better_and_worse_are_told_with_the_interval_of_the_paired_t_test():
    low, high = stats.ttest_rel(100.0 * FULL[0], 100.0 * LORA[0]).confidence_interval()
    better, worse = one(FULL, LORA), one(LORA, FULL)
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.sentence == f"full > lora by 3.4 points ({low:.1f} to {high:.1f})"
    assert better.sentence == "full > lora by 3.4 points (1.9 to 5.0)"
    assert worse.sentence == "full < lora by 3.4 points (1.9 to 5.0)"
    assert better.advice == worse.advice == ""
    assert better.estimate == crossed_difference(FULL, LORA) and better.p_holm == better.estimate.p
    assert better.bootstrap == pytest.approx((low, high), abs=0.2)


def test_what_is_not_shown_says_what_would_be():
    found = one(PREFIX, LORA)
    assert found.verdict == "not shown"
    assert found.sentence == "full ~ lora: no difference shown, these runs tell 1.9 points apart"
    assert found.advice == (
        "to show a difference of 0.6 points, as seen here, takes about 9,600 sentences instead of 872; "
        "more seeds alone cannot"
    )


def test_seeds_that_differ_call_for_seeds():
    """Accuracies 84, 86, 88 against 83, 85, 87, on sentences that all are right in the same order."""
    a, b = (np.concatenate([runs((0, 20 * n), seeds=1, sentences=2000) for n in row]) for row in SHARES)
    found = one(a, b)
    assert found.sentence == "full ~ lora: no difference shown, these runs tell 6.1 points apart"
    assert found.advice == (
        "to show a difference of 1.0 points, as seen here, takes about 64 seeds of each instead of 3"
    )
    assert TTestIndPower().solve_power(effect_size=1 / 2, power=0.8, alpha=0.05) == pytest.approx(64, abs=0.5)
    other = one(a[1:], b)
    assert other.verdict == "not shown" and " seeds of each instead of 2 and 3" in other.advice


SHARES = ((84, 86, 88), (83, 85, 87))


def test_both_are_asked_for_where_neither_does_alone():
    draw = np.random.default_rng(4)
    a, b = (np.sort(draw.random((2, 60)) < share, axis=1) for share in (0.72, 0.70))
    a, b = a[:, ::-1], b[:, draw.permutation(60)]
    found = one(np.roll(a, 3, axis=1), b)
    assert re.fullmatch(
        r"to show a difference of [\d.]+ points, as seen here, takes about [\d,]+ sentences and \d+ seeds of "
        r"each instead of 60 and 2",
        found.advice,
    )


def test_runs_that_could_show_no_difference_say_so():
    few = one(runs((0, 2), sentences=3), runs((1, 3), sentences=3))
    assert few.estimate.detectable > 100
    assert few.sentence == "full ~ lora: no difference shown, nor could these runs show one"


def test_nothing_is_advised_where_nothing_was_seen():
    found = one(LORA, LORA)
    assert found.sentence == "full ~ lora: no difference shown, these runs tell 0.4 points apart"
    assert (found.verdict, found.advice, found.p_holm) == ("not shown", "", 1)
    few = one(runs((0, 4), sentences=4), runs(sentences=4))
    assert few.estimate.value == 100 and few.verdict == "not shown"
    assert few.advice == "4 sentences are too few to tell methods apart: measure on more"


def test_a_difference_that_would_count_alone_is_not_shown_among_several():
    groups = {"lora": LORA, "full": runs((10, 770)), **{f"m{i}": LORA for i in range(4)}}
    (alone,) = compare_to("lora", {name: groups[name] for name in ("lora", "full")}, None)
    assert alone.verdict == "not shown" and alone.estimate.p == pytest.approx(0.068, abs=0.001)
    groups["full"] = runs((8, 770))
    (alone,) = compare_to("lora", {name: groups[name] for name in ("lora", "full")}, None)
    first, *others = compare_to("lora", groups, None)
    assert alone.sentence == "full > lora by 1.4 points (0.2 to 2.6)"
    assert first.estimate == alone.estimate and first.p_holm == pytest.approx(5 * alone.p_holm)
    assert first.sentence == (
        "full ~ lora: no difference shown among 5 comparisons; alone it would be 1.4 points (0.2 to 2.6)"
    )
    assert first.advice.startswith("to show a difference of 1.4 points, as seen here, takes about 2,000 sent")
    size = first.estimate.value / (first.estimate.standard_error * 872**0.5)
    assert TTestPower().solve_power(size, power=0.8, alpha=0.05 / 5) == pytest.approx(2000, rel=0.05)
    assert {other.verdict for other in others} == {"not shown"}


@pytest.mark.parametrize(
    ("margin", "verdict"), [(None, "not shown"), (1.5, "not shown"), (1.7, "equivalent"), (3, "equivalent")]
)
def test_equivalent_is_only_said_within_a_margin(margin, verdict):
    found = one(PREFIX, LORA, margin)
    assert found.verdict == verdict
    if margin == 3:
        low, high = stats.ttest_rel(100.0 * PREFIX[0], 100.0 * LORA[0]).confidence_interval(0.90)
        assert found.sentence == f"full = lora within 3 points (90 % interval {low:.1f} to {high:.1f})"


def test_within_the_margin_it_does_not_matter_which_way_the_difference_goes():
    wide, narrow = one(FULL, LORA, margin=5), one(FULL, LORA, margin=4)
    assert wide.sentence == "full = lora within 5 points (90 % interval 2.1 to 4.8)"
    assert (wide.verdict, narrow.verdict) == ("equivalent", "better")
    assert one(LORA, LORA, 1.5).sentence == "full = lora within 1.5 points (95 % interval -0.4 to 0.4)"


def test_from_one_seed_no_interval_is_made():
    found = one(FULL[:1], LORA[:1])
    p = stats.binomtest(10, 50).pvalue
    assert p < 0.001
    assert found.sentence == (
        "full ? lora: too few seeds (1 and 1); "
        "of these two checkpoints alone, McNemar's exact p is below 0.001"
    )
    assert found.verdict == "too few seeds"
    assert found.estimate is found.p_holm is found.bootstrap is None
    assert found.advice == (
        "full and lora need at least 2 seeds for a verdict; 5 tell smaller differences apart"
    )
    p = stats.binomtest(15, 35).pvalue
    assert one(PREFIX[:1], LORA[:1]).sentence.endswith(f"McNemar's exact p is {p:.3f}")
    found = one(FULL[:1], LORA)
    assert found.sentence == "full ? lora: too few seeds (1 and 3)"
    assert found.advice.startswith("full needs at least 2 seeds")
    assert one(FULL, LORA[:0]).sentence == "full ? lora: too few seeds (3 and 0)"


def test_who_has_too_few_seeds_does_not_count_in_the_family():
    groups = {"full": FULL, "lora": LORA, "head": PREFIX[:1], "prefix": PREFIX}
    found = compare_to("lora", groups, None)
    assert [each.a for each in found] == ["full", "head", "prefix"]
    assert [each.verdict for each in found] == ["better", "too few seeds", "not shown"]
    assert found[0].p_holm == pytest.approx(2 * found[0].estimate.p)


def test_a_reference_that_is_not_there_is_an_error():
    with pytest.raises(KeyError):
        compare_to("lora", {"full": FULL}, None)


def test_the_order_of_the_sentences_changes_no_word():
    order = np.random.default_rng(0).permutation(872)
    groups = {"full": FULL, "lora": LORA, "prefix": PREFIX}
    found = compare_to("lora", groups, None)
    again = compare_to("lora", {name: each[:, order] for name, each in groups.items()}, None)
    for one, other in zip(found, again, strict=True):
        assert (one.sentence, one.advice, one.bootstrap) == (other.sentence, other.advice, other.bootstrap)


def estimate(value: float, error: float, p: float) -> Estimate:
    return Estimate(value, value - 2 * error, value + 2 * error, error, 60.0, p, 2.8 * error)


@pytest.mark.parametrize(
    ("value", "error", "p_holm", "margin", "verdict"),
    [
        (1.0, 0.3, 0.049, None, "better"),
        (-1.0, 0.3, 0.049, None, "worse"),
        (1.0, 0.3, 0.05, None, "not shown"),
        (0.0, 5.0, 1.0, 1.0, "not shown"),
        (0.2, 0.3, 0.5, 1.0, "equivalent"),
        (-0.8, 0.3, 0.01, 1.0, "worse"),
    ],
)
def test_verdicts(value, error, p_holm, margin, verdict):
    assert verdict_on(estimate(value, error, p_holm), p_holm, margin) == verdict


@pytest.mark.parametrize("seed", range(12))
def test_no_sentence_says_more_than_its_interval(seed):
    """Of methods at random: the bounds that are written lie on the side of 0 that the verdict says."""
    draw = np.random.default_rng(seed)
    difficulty = draw.random(300)
    levels = draw.choice([0.72, 0.75, 0.79, 0.82], size=5)
    groups = {f"m{i}": difficulty + draw.normal(0, 0.12, (3, 300)) < level for i, level in enumerate(levels)}
    for found in compare_to("m0", groups, margin=4.0 if seed % 2 else None):
        assert found.sentence.startswith(f"{found.a} ") and f" {found.b}" in found.sentence
        assert not re.search("same|equal|\N{PLUS-MINUS SIGN}|\N{EM DASH}", found.sentence + found.advice)
        e, written = found.estimate, re.search(r"(-?[\d.]+) to (-?[\d.]+)\)$", found.sentence)
        if found.verdict in ("better", "worse"):
            assert 0 < float(written[1]) < float(written[2])
            assert (e.value > 0) == (found.verdict == "better")
        if found.verdict == "not shown":
            assert (e.p >= 0.05) == (e.low <= 0 <= e.high) == (not written)
            assert not written or "among 4 comparisons" in found.sentence


def test_small_bounds_keep_the_digits_that_matter():
    a, b = runs((0, 99_000), sentences=100_000), runs((0, 98_994), sentences=100_000)
    assert one(a, b).sentence == "full > lora by 0.006 points (0.001 to 0.011)"


def comparisons(verdicts: dict[str, str], reference: str = "lora") -> list[Comparison]:
    return [Comparison(a, reference, None, None, None, verdict, "", "") for a, verdict in verdicts.items()]


MEANS = {"none": 50.46, "head": 80.1, "full": 88.25, "lora": 86.93, "prelayer": 83.1, "prefix": 86.9}


def test_the_page_opens_with_what_is_shown_and_what_is_not():
    verdicts = {"none": "worse", "head": "worse", "full": "better", "prelayer": "worse"}
    verdicts["prefix"] = "not shown"
    assert headline(comparisons(verdicts), MEANS, "lora") == (
        "full has the highest mean accuracy, 88.25 %; against lora (86.93 %), full is better, "
        '"none", head and prelayer are worse, and for prefix no difference is shown.'
    )
    verdicts = {"none": "worse", "head": "worse", "lora": "not shown", "prefix": "equivalent"}
    assert headline(comparisons(verdicts, "full"), MEANS, "full") == (
        'full has the highest mean accuracy, 88.25 %; against it, "none" and head are worse, prefix is '
        "equivalent, and for lora no difference is shown."
    )


def test_a_headline_without_much_to_say():
    assert headline([], {"lora": 86.93}, "lora") == "lora has a mean accuracy of 86.93 %."
    assert headline([], {"lora": None}, "lora") == "No run is done."
    assert headline(comparisons({"full": "too few seeds"}), {"lora": None, "full": 80.0}, "lora") == (
        "full has a mean accuracy of 80.00 %; against lora, full has too few seeds."
    )
    assert headline(comparisons({"full": "not shown"}), {"lora": 80.0, "full": 80.0}, "lora") == (
        "lora and full have the highest mean accuracy, 80.00 %; against lora (80.00 %), for full no "
        "difference is shown."
    )


def test_a_headline_counts_comparisons_with_the_reference_alone():
    """Variants of another method are compared with its first one, too (`summary._compared`)."""
    found = [*comparisons({"full": "better"}), *comparisons({"full, lr 1": "worse"}, "full")]
    assert headline(found, MEANS, "lora") == (
        "full has the highest mean accuracy, 88.25 %; against lora (86.93 %), full is better."
    )


def test_a_headline_is_short_whatever_was_found():
    names = [name for name in MEANS if name != "lora"]
    verdicts = ("better", "worse", "equivalent", "not shown", "too few seeds")
    for found in product(verdicts, repeat=5):
        sentence = headline(comparisons(dict(zip(names, found, strict=True))), MEANS, "lora")
        assert len(sentence) <= 250 and all(name in sentence for name in names), sentence


def test_many_names_are_counted():
    ranks = [f"lora on all linear layers, rank {2**i}" for i in range(9)]
    means = {name: 80.0 + i for i, name in enumerate(ranks)}
    verdicts = ["reference", "too few seeds", *["not shown"] * 3, *["better"] * 4]
    found = comparisons(dict(zip(ranks[1:], verdicts[1:], strict=True)), ranks[0])
    assert headline(found, means, ranks[0]) == (
        '"lora on all linear layers, rank 256" has the highest mean accuracy, 88.00 %; against "lora on '
        'all linear layers, rank 1" (80.00 %), 4 are better, for 3 no difference is shown, and 1 has too '
        "few seeds."
    )

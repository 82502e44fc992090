"""Intervals and tests against scipy, statsmodels, the formulas by plain loops, and simulated truth."""

from __future__ import annotations

import json
import math
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from interval_coverage import SEED_DEVIATIONS, SEEDS, equal_methods, simulate, two_methods

from lora_from_scratch.compare import student_t
from lora_from_scratch.compare.significance import (
    bootstrap_difference,
    crossed_difference,
    crossed_mean,
    equivalent,
    holm,
    mcnemar,
    seeds_needed,
    sentences_needed,
)
from lora_from_scratch.compare.two_way import Parts, parts_of

DEGREES = [0.7, 0.9, 1, 1.5, 2, 3.3, 7, 19.9, 39.9, 40.1, 100, 871.5, 1e4, 1e6]
RUNS = [0, 1, 2]  # of `drawn`


def drawn(seed: int, seeds: tuple[int, int] = (3, 4), sentences: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """The runs of two methods that differ, and whose seeds do."""
    draw = np.random.default_rng(seed)
    a, b = simulate(draw, (80.0, 70.0), max(seeds), 5.0, sentences)
    return a[: seeds[0]], b[: seeds[1]]


@pytest.mark.parametrize("nu", DEGREES)
def test_students_t_is_scipys(nu):
    for t in [0, 1e-3, 0.3, 1, 1.6, 1.7, 1.74, 1.8, 2, 4, 12, 60, 1e4]:
        expected = stats.t.sf(t, nu)
        assert student_t.survival(t, nu) == pytest.approx(expected, rel=1e-10, abs=1e-300)
        assert student_t.survival(-t, nu) == pytest.approx(1 - expected, rel=1e-10)
    for p in [1e-6, 0.005, 0.025, 0.3, 0.5, 0.6, 0.8, 0.95, 0.975, 0.995, 0.9999]:
        assert student_t.quantile(p, nu) == pytest.approx(stats.t.ppf(p, nu), rel=1e-10, abs=1e-10)


def squares(a: np.ndarray) -> tuple[float, float]:
    """S_m^2 and M_m of one method, in points squared, by loops."""
    k, n = a.shape
    rows = [100 * sum(map(int, row)) / n for row in a]
    columns = [100 * sum(map(int, column)) / k for column in a.T]
    grand = sum(rows) / k
    rest = 0.0
    for s, i in product(range(k), range(n)):
        rest += (100 * int(a[s, i]) - rows[s] - columns[i] + grand) ** 2
    return sum((row - grand) ** 2 for row in rows) / (k - 1), rest / ((k - 1) * (n - 1))


def by_hand(*methods: np.ndarray) -> tuple[float, float, float]:
    """The estimate, V and nu as the formulas have them."""
    n = methods[0].shape[1]
    signs = (1, -1)
    each = [
        sum(sign * 100 * sum(map(int, m[:, i])) / len(m) for sign, m in zip(signs, methods, strict=False))
        for i in range(n)
    ]
    value = sum(each) / n
    of_sentences = sum((d - value) ** 2 for d in each) / (n - 1) / n
    variance, below = of_sentences, of_sentences**2 / (n - 1)
    for m in methods:
        among, rest = squares(m)
        variance += max(0.0, among / len(m) - rest / (n * len(m)))
        below += (among / len(m)) ** 2 / (len(m) - 1)
    return value, variance, variance**2 / below


@pytest.mark.parametrize("seed", RUNS)
@pytest.mark.parametrize("methods", [1, 2])
def test_an_interval_is_the_formula(seed, methods):
    runs = drawn(seed)[:methods]
    value, variance, nu = by_hand(*runs)
    found = (crossed_mean if methods == 1 else crossed_difference)(*runs)
    low, high = stats.t.interval(0.95, nu, value, math.sqrt(variance))
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), rel=1e-9)
    assert found.interval(0.90) == pytest.approx(stats.t.interval(0.90, nu, value, math.sqrt(variance)))
    assert (found.standard_error, found.degrees_of_freedom) == pytest.approx((math.sqrt(variance), nu))
    if methods == 2:
        assert found.p == pytest.approx(2 * stats.t.sf(abs(value) / math.sqrt(variance), nu), rel=1e-9)
        power = (stats.t.ppf(0.975, nu) + stats.t.ppf(0.8, nu)) * math.sqrt(variance)
        assert found.detectable == pytest.approx(power, rel=1e-9)
    else:
        assert found.p is found.detectable is None


@pytest.mark.parametrize("seed", RUNS)
def test_the_mean_squares_are_those_of_an_analysis_of_variance(seed):
    a, _ = drawn(seed, sentences=12)
    cells = [(s, i, 100.0 * a[s, i]) for s, i in product(*map(range, a.shape))]
    frame = pandas.DataFrame(cells, columns=["seed", "sentence", "right"])
    table = anova_lm(ols("right ~ C(seed) + C(sentence)", frame).fit())
    found = parts_of(a)
    mean_squares = (found.among_seeds[0] * a.shape[1], found.among_sentences * len(a), found.rest[0])
    assert mean_squares == pytest.approx(tuple(table["mean_sq"]), rel=1e-9)


@pytest.mark.parametrize("seed", RUNS)
def test_seeds_that_agree_leave_the_paired_t_test_of_the_sentences(seed):
    a, b = (np.repeat(runs[:1], k, axis=0) for runs, k in zip(drawn(seed), (2, 5), strict=True))
    expected = stats.ttest_rel(100.0 * a[0], 100.0 * b[0])
    found = crossed_difference(a, b)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9)
    assert (found.p, found.degrees_of_freedom) == pytest.approx((expected.pvalue, expected.df), rel=1e-9)
    alone = stats.ttest_1samp(100.0 * a[0], 0).confidence_interval()
    assert (crossed_mean(a).low, crossed_mean(a).high) == pytest.approx(tuple(alone), rel=1e-9)
    for margin in (1.0, 15.0, 40.0):
        p = ttost_paired(100.0 * a[0], 100.0 * b[0], -margin, margin)[0]
        assert equivalent(found, margin) == (p < 0.05)


def test_sentences_that_agree_leave_welchs_t_test_of_the_seeds():
    a, b = (np.repeat(np.array([column]).T, 400, axis=1) for column in ([1, 1, 1, 0, 1], [0, 0, 1]))
    expected = stats.ttest_ind(100.0 * a[:, 0], 100.0 * b[:, 0], equal_var=False)
    found = crossed_difference(a, b)
    assert (found.p, found.degrees_of_freedom) == pytest.approx((expected.pvalue, expected.df), rel=1e-9)
    assert found.interval(0.5) == pytest.approx(tuple(expected.confidence_interval(0.5)), rel=1e-9)
    assert crossed_mean(a).interval(0.5) == pytest.approx(
        tuple(stats.ttest_1samp(100.0 * a[:, 0], 0).confidence_interval(0.5)), rel=1e-9
    )


@pytest.mark.parametrize("seed", RUNS)
def test_neither_the_order_of_seeds_nor_of_sentences_matters_and_swapping_turns_the_sign(seed):
    a, b = drawn(seed)
    draw = np.random.default_rng(seed)
    order = draw.permutation(a.shape[1])
    first, shuffled = crossed_difference(a, b), crossed_difference(a[::-1][:, order], b[::-1][:, order])
    swapped = crossed_difference(b, a)
    for name in ("value", "low", "high", "standard_error", "degrees_of_freedom", "p", "detectable"):
        assert getattr(shuffled, name) == pytest.approx(getattr(first, name), rel=1e-9), name
    turned = (-first.value, -first.high, -first.low)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(turned)
    assert (swapped.p, swapped.detectable) == pytest.approx((first.p, first.detectable), rel=1e-9)
    assert bootstrap_difference(a[:, order], b[:, order]) == bootstrap_difference(a, b)
    low, high = bootstrap_difference(b, a)
    assert bootstrap_difference(a, b) == pytest.approx((-high, -low), abs=0.7)


@pytest.mark.parametrize("seeds", [(1, 1), (3, 2)])
def test_the_bootstrap_is_the_one_that_draws_one_by_one(seeds):
    a, b = drawn(3, seeds, sentences=200)
    draw, values = np.random.default_rng(9), []
    for _ in range(4000):
        sentences = draw.integers(a.shape[1], size=a.shape[1])
        means = [m[draw.integers(len(m), size=len(m))][:, sentences].mean() for m in (a, b)]
        values.append(100 * (means[0] - means[1]))
    expected = np.percentile(values, [2.5, 97.5])
    assert bootstrap_difference(a, b, draws=20_000) == pytest.approx(tuple(expected), abs=0.5)
    assert bootstrap_difference(a, b, 100, seed=1) != bootstrap_difference(a, b, 100, seed=2)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (0, 6), (3, 3), (4, 11), (61, 40), (900, 1000)])
def test_mcnemar_is_exact(counts):
    a = np.array([True] * counts[0] + [False] * counts[1] + [True, False] * 5)
    b = np.array([False] * counts[0] + [True] * counts[1] + [True, False] * 5)
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if any(counts) else 1.0
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected, rel=1e-9)
    table = [[5, counts[0]], [counts[1], 5]]
    if any(counts):
        assert mcnemar(a, b) == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, rel=1e-9)


def test_five_pairs_of_seeds_are_too_few_for_a_test_of_signs():
    """All that an exact two-sided test of flipped signs can say of k differences, by trying every way."""
    page = " ".join((Path(__file__).parents[1] / "docs" / "comparing.md").read_text(encoding="utf-8").split())
    assert "2/32 = 0.0625" in page and "with six it is 0.031;" in page
    for seeds, least in ((5, 0.0625), (6, 0.03125)):
        differences = np.arange(1.0, seeds + 1)  # all in favour of one
        sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=seeds)]
        assert np.mean(np.array(sums) >= differences.sum()) == least


def test_holm_is_statsmodels():
    draw = np.random.default_rng(0)
    for size in (1, 5, 12, 40):
        ps = (draw.random(size) ** 3).round(2).tolist()  # with ties and zeros
        assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1].tolist(), rel=1e-12)
    assert holm([]) == [] and holm([0.0, 1.0, 0.0]) == [0, 1, 0]


@pytest.mark.parametrize("bad", [[0.1, math.nan], [1.1], [-0.1]])
def test_holm_takes_probabilities_alone(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(bad)


def matrices(k: int, n: int) -> list[np.ndarray]:
    return [np.array(bits, dtype=bool).reshape(k, n) for bits in product([0, 1], repeat=k * n)]


@pytest.mark.parametrize(("k", "other", "n"), [(2, 2, 2), (2, 3, 1), (2, 2, 3), (3, 2, 2)])
def test_every_small_table_has_an_answer(k, other, n):
    """No NaN, the estimate within its interval, and p says of 0 what the interval says."""
    pairs = list(product(matrices(k, n), matrices(other, n)))
    for a, b in pairs[:: 1 + len(pairs) // 200]:
        e = crossed_difference(a, b)
        numbers = (e.standard_error, e.degrees_of_freedom, e.p, e.detectable)
        assert all(math.isfinite(x) and x >= 0 for x in numbers) and e.p <= 1
        assert -100 <= e.low <= e.value <= e.high <= 100
        assert (e.p < 0.05) == (not e.low <= 0 <= e.high) or abs(e.p - 0.05) < 1e-9
        seeds_needed(a, b), sentences_needed(a, b)
    for a in matrices(k, n):
        e = crossed_mean(a)
        assert 0 <= e.low <= e.value <= e.high <= 100 and e.low < e.high
        assert math.isfinite(e.standard_error) and math.isfinite(e.degrees_of_freedom)


@pytest.mark.parametrize("n", [1, 5, 30, 872])
def test_where_nothing_varies_the_sentences_bound_what_may_be(n):
    right, wrong = np.ones((3, n), dtype=bool), np.zeros((2, n), dtype=bool)
    exact = stats.binomtest(n, n).proportion_ci(0.95, method="exact")
    assert (crossed_mean(right).low, crossed_mean(right).high) == pytest.approx((100 * exact.low, 100))
    assert (crossed_mean(wrong).low, crossed_mean(wrong).high) == pytest.approx((0, 100 - 100 * exact.low))
    apart, same = crossed_difference(right, wrong), crossed_difference(wrong, wrong)
    assert apart.p == pytest.approx(mcnemar(right[0], wrong[0])) and apart.value == 100
    assert apart.low == pytest.approx(100 * (2 * exact.low - 1))
    assert (same.value, same.p) == (0, 1) and same.high == -same.low == pytest.approx(100 - 100 * exact.low)
    assert same.detectable == same.high
    assert apart.detectable == crossed_difference(wrong, right).detectable == pytest.approx(100 - apart.low)
    assert equivalent(same, 1.0) == (n == 872) and equivalent(same, 99.9)


def test_what_rounding_leaves_is_no_variance():
    turns = crossed_mean(np.eye(7, dtype=bool))  # each sentence is right by one seed of seven
    assert turns.standard_error == 0 and turns.high > turns.value + 5


def test_methods_that_answer_all_but_alike_keep_degrees_of_freedom():
    """Equal answers, and seeds that differ hardly more than the sentences make them."""
    parts = Parts(800, (2, 2), 0.0, (0.301, 0.301), (240.0, 240.0))
    assert parts.variance < 0.001 * 0.301 * 5
    assert parts.degrees_of_freedom == 1 and parts.detectable() == pytest.approx(0.45, abs=0.01)


@pytest.mark.parametrize(
    ("a", "b", "answer"),
    [
        (np.ones((1, 9)), np.ones((3, 9)), "at least two seeds"),
        (np.ones((3, 9)), np.ones((1, 9)), "at least two seeds"),
        (np.ones((2, 9)), np.ones((2, 8)), "not the same sentences"),
        (np.ones(9), np.ones((2, 9)), "not seeds x sentences"),
        (np.ones((2, 0)), np.ones((2, 0)), "not seeds x sentences"),
        (np.full((2, 9), math.nan), np.ones((2, 9)), "right or wrong, and nothing else"),
        (np.full((2, 9), 2), np.ones((2, 9)), "right or wrong, and nothing else"),
    ],
)
def test_what_is_no_table_of_answers_is_refused(a, b, answer):
    with pytest.raises(ValueError, match=answer):
        crossed_difference(a, b)
    if len({a.ndim, b.ndim}) == 1 and "two seeds" not in answer:
        with pytest.raises(ValueError, match=answer):
            bootstrap_difference(a, b)


@pytest.mark.parametrize("margin", [0, -1.0, math.nan, math.inf])
def test_a_margin_is_a_number_above_0(margin):
    with pytest.raises(ValueError, match="a margin is above 0"):
        equivalent(crossed_difference(*drawn(0)), margin)


def test_what_to_expect_of_other_numbers_is_what_they_give():
    """From many seeds and sentences, the parts that few of them have on average."""
    draw = np.random.default_rng(0)
    large = parts_of(*simulate(draw, (80.0, 78.0), 500, 1.5, 3000))
    for n, k in ((300, (2, 2)), (800, (5, 5)), (300, (2, 4))):
        few = []
        for _ in range(400):
            a, b = simulate(draw, (80.0, 78.0), max(k), 1.5, n)
            few.append(parts_of(a[: k[0]], b[: k[1]]))
        expected = large.expected(n, k)
        mean = [np.mean([one.among_sentences for one in few])]
        mean += np.mean([one.among_seeds for one in few], axis=0).tolist()
        assert mean == pytest.approx([expected.among_sentences, *expected.among_seeds], rel=0.2)
    again = few[-1].expected(n, k)
    kept = few[-1].among_sentences > sum(m / seeds for m, seeds in zip(few[-1].rest, k, strict=True))
    assert kept and again.among_sentences == pytest.approx(few[-1].among_sentences)


@pytest.mark.parametrize("seed", range(6))
def test_the_numbers_that_would_do_are_the_least(seed):
    a, b = simulate(np.random.default_rng(seed), (88.0, 86.5), 6, 0.7, 600)
    a = a[:2]
    difference, parts = abs(100 * (a.mean() - b.mean())), parts_of(a, b)

    def enough(n: int, k: tuple[int, int]) -> bool:
        return parts.expected(n, k).detectable() <= difference

    seeds = seeds_needed(a, b)
    assert enough(600, (seeds or 10_000,) * 2) == bool(seeds)
    assert seeds in (None, 2) or not enough(600, (seeds - 1,) * 2)
    for k in (None, 9):
        n, these = sentences_needed(a, b, k), (k, k) if k else (2, 6)
        assert enough(n or 10_000_000, these) == bool(n)
        assert n is None or not enough(n - 1, these)
    if seeds:
        assert seeds_needed(a, b, level=0.001) is None or seeds_needed(a, b, level=0.001) > seeds


def test_no_number_of_seeds_makes_up_for_too_few_sentences_nor_the_other_way_round():
    fixed = np.repeat(np.array([[1] * 52 + [0] * 48, [0] * 3 + [1] * 47 + [0] * 50]), 3, axis=0) > 0
    assert seeds_needed(fixed[:3], fixed[3:]) is None and sentences_needed(fixed[:3], fixed[3:]) > 100
    a, b = np.zeros((3, 300), dtype=bool), np.zeros((3, 300), dtype=bool)
    for runs, rights in ((a, (100, 150, 200)), (b, (95, 140, 190))):
        for s, right in enumerate(rights):
            runs[s, :right] = True
    assert sentences_needed(a, b) is None and seeds_needed(a, b) > 3
    assert seeds_needed(a, a) is None and sentences_needed(a, a) is None


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("deviation", SEED_DEVIATIONS)
def test_intervals_hold_the_truth(seeds, deviation):
    """`benchmarks/interval_coverage.py` with fewer comparisons; the next test has all."""
    found = two_methods(seeds, deviation, comparisons=300)
    assert 92 <= found["difference_held"] <= 99 and 92 <= found["mean_held"] <= 99
    assert found["called_equivalent_at_the_margin"] <= 8


def test_in_2000_simulated_comparisons_each_interval_held_in_93_to_98_percent():
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    file = json.loads((results / "interval-coverage.json").read_text(encoding="utf-8"))
    rows = file["results"]["as_real_runs"]
    assert file["comparisons"] == 2000 and file["sentences"] == 872
    kinds = {(row["seeds"], row["seed_deviation"]) for row in rows}
    assert kinds == {(k, deviation) for k in SEEDS for deviation in SEED_DEVIATIONS}
    for row in rows:
        assert 93 <= row["difference_held"] <= 98 and 93 <= row["mean_held"] <= 98, row
        assert row["called_equivalent_at_the_margin"] <= 5
        assert row["false_alarms"] <= 5 or row["seeds"] == 2


def test_equal_methods_are_seldom_called_better_or_worse():
    assert equal_methods(3, 0.3, families=150) <= 6

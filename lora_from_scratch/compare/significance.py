"""How accurate a method is, how far two are apart, and how sure that is.

Seeds and sentences are both drawn by chance: who repeats the comparison gets others. An interval that counts
one of the two alone is too narrow, and so is one that pools k seeds of n sentences into k n answers.
Accuracies are in percent, differences in points. The intervals hold given the one tuning that was done: its
own chance is in none of them. `benchmarks/interval_coverage.py` counts how often they hold the truth. Whoever
passes something else than `Correct` gets a ValueError.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lora_from_scratch.compare.student_t import quantile, survival
from lora_from_scratch.compare.two_way import NO_VARIANCE, Correct, Parts, parts_of

MOST_SEEDS, MOST_SENTENCES = 10_000, 10_000_000  # that are looked at


@dataclass(frozen=True)
class Estimate:
    """A mean accuracy in percent, or a difference in points; `low` to `high` is its 95 % interval."""

    value: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    p: float | None  # two-sided, of there being no difference; None for a mean
    detectable: float | None  # the smallest true difference seen with a power of 80 %; None for a mean

    def interval(self, level: float) -> tuple[float, float]:
        """At another level than 0.95; without a standard error (see `_unvaried`) there is that one alone."""
        if self.standard_error == 0:
            return self.low, self.high
        half = quantile((1 + level) / 2, self.degrees_of_freedom) * self.standard_error
        return self.value - half, self.value + half


def crossed_mean(a: Correct) -> Estimate:
    """The accuracy of one method of at least two seeds: `crossed_difference`, with one method alone."""
    return _estimate(a)


def crossed_difference(a: Correct, b: Correct) -> Estimate:
    """The accuracy of a less that of b, of at least two seeds each; sentences are paired, seeds are not.

    The interval is t(0.975, nu) sqrt(V) to either side, V and nu as `two_way.Parts` has them.
    """
    return _estimate(a, b)


def bootstrap_difference(a: Correct, b: Correct, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """A 95 % interval of a less b from redrawing sentences and, for each method, seeds (percentiles).

    A cross-check: it knows no t, and is too narrow over few seeds that differ much.
    """
    a, b = _checked(a, b)
    n, random = a.shape[1], np.random.default_rng(seed)
    # Sentences with equal answers are one kind, and to draw n sentences is to draw how many of each kind
    kinds, counts = np.unique(np.concatenate([a, b]).T, axis=0, return_counts=True)
    drawn = random.multinomial(n, counts / n, size=draws) @ kinds  # (draws, seeds of a and b): right ones
    means = []
    for right in np.split(drawn, [len(a)], axis=1):
        k = right.shape[1]
        times = random.multinomial(k, np.full(k, 1 / k), size=draws)
        means.append(100 * (times * right).sum(axis=1) / (k * n))
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return float(low), float(high)


def mcnemar(a: Correct, b: Correct) -> float:
    """The two-sided p of McNemar's exact test between two checkpoints, `(n,)` each.

    It says which of these two is right more often, nothing of their methods; k seeds are not to be pooled.
    """
    (a,), (b,) = _checked(np.asarray(a)[None], np.asarray(b)[None])
    less, more = sorted((int((a & ~b).sum()), int((b & ~a).sum())))
    ways, total = 1, 0
    for i in range(less + 1):  # the sum of the binomial coefficients up to `less`, in whole numbers
        total += ways
        ways = ways * (less + more - i) // (i + 1)
    return min(1.0, 2 * total / 2 ** (less + more))


def holm(ps: Sequence[float]) -> list[float]:
    """The p values of a family of tests, adjusted so that 0.05 bounds any false alarm in it (Holm 1979)."""
    if not all(0 <= p <= 1 for p in ps):
        raise ValueError(f"not all of these lie between 0 and 1: {ps}")
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def equivalent(e: Estimate, margin: float) -> bool:
    """Is the difference shown to be less than `margin` points, by two one-sided t tests at 5 %?

    It is where the 90 % interval lies within the margin (Schuirmann 1987).
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"a margin is above 0, not {margin}")
    low, high = e.interval(0.90)
    return -margin < low and high < margin


def seeds_needed(a: Correct, b: Correct, level: float = 0.05) -> int | None:
    """How many seeds of each it would take to see, with a power of 80 %, a difference as large as was seen.

    None where no number does: on these sentences, or because nothing was seen.
    """
    return _least(MOST_SEEDS, lambda parts, k: parts.expected(parts.n, (k, k)), a, b, level)


def sentences_needed(a: Correct, b: Correct, seeds: int | None = None, level: float = 0.05) -> int | None:
    """How many sentences it would take, with the seeds that there are or `seeds` of each; None as above."""
    k = (seeds, seeds) if seeds else (len(a), len(b))
    return _least(MOST_SENTENCES, lambda parts, n: parts.expected(n, k), a, b, level)


def _least(
    most: int, expected: Callable[[Parts, int], Parts], a: Correct, b: Correct, level: float
) -> int | None:
    value, seen = _value_and_parts(a, b)
    if seen is None:
        return None
    numbers = range(2, most + 1)
    i = bisect_left(numbers, True, key=lambda it: expected(seen, it).detectable(level) <= abs(value))
    return numbers[i] if i < len(numbers) else None


def _value_and_parts(*methods: Correct) -> tuple[float, Parts | None]:
    """Of a mean or a difference; no parts where nothing varies."""
    methods = _checked(*methods)
    if min(map(len, methods)) < 2:
        raise ValueError("an interval over seeds takes at least two seeds")
    first, *second = (100 * float(method.mean()) for method in methods)
    found = parts_of(*methods) if methods[0].shape[1] > 1 else None
    return first - sum(second), found if found and found.variance > NO_VARIANCE else None


def _estimate(*methods: Correct) -> Estimate:
    value, found = _value_and_parts(*methods)
    lowest = 100.0 * (1 - len(methods))
    if found is None:
        return _unvaried(value, np.shape(methods[0])[1], lowest)
    error, nu = math.sqrt(found.variance), found.degrees_of_freedom
    half = quantile(0.975, nu) * error
    low, high = max(lowest, value - half), min(100.0, value + half)
    of_difference = (2 * survival(abs(value) / error, nu), found.detectable()) if lowest else (None, None)
    return Estimate(value, low, high, error, nu, *of_difference)


def _unvaried(value: float, n: int, lowest: float) -> Estimate:
    """Of n sentences that all have the same mean (difference): all right, say, or two methods of one opinion.

    At least a share 0.025^(1 / n) of all sentences is then like these (Clopper and Pearson 1934); the others
    could be anything. From this follow the interval and p, which for n sentences that one method alone has
    right is McNemar's. It serves a single sentence, too, since one has no variance.
    """
    alike = 0.025 ** (1 / n)
    low, high = alike * value + (1 - alike) * lowest, alike * value + (1 - alike) * 100
    if lowest == 0:
        return Estimate(value, low, high, 0.0, n - 1.0, None, None)
    p = min(1.0, 2 * (100 / (100 + abs(value))) ** n)
    return Estimate(value, low, high, 0.0, n - 1.0, p, max(value - low, high - value))


def _checked(*methods: Correct) -> list[Correct]:
    """As bool, `(k, n)` over the same n sentences; ValueError else, also for a NaN."""
    methods = [np.asarray(method) for method in methods]
    if any(method.ndim != 2 or not method.size for method in methods):
        raise ValueError(f"not seeds x sentences: {[method.shape for method in methods]}")
    if len({method.shape[1] for method in methods}) > 1:
        raise ValueError(f"not the same sentences: {[method.shape for method in methods]}")
    if not all(method.dtype == bool or np.isin(method, (0, 1)).all() for method in methods):
        raise ValueError("an answer is right or wrong, and nothing else")
    return [method.astype(bool) for method in methods]

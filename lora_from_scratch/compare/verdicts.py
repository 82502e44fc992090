"""What may be said of methods against one reference, in words, and what it would take to say more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_from_scratch.compare.significance import (
    Estimate,
    bootstrap_difference,
    crossed_difference,
    equivalent,
    holm,
    mcnemar,
    seeds_needed,
    sentences_needed,
)
from lora_from_scratch.compare.two_way import Correct

LEVEL = 0.05  # of the family of comparisons
LONGEST_HEADLINE = 250


@dataclass(frozen=True)
class Comparison:
    """One method, `a`, against the reference, `b`; the estimate is of a's accuracy less b's.

    Better and worse go by `p_holm`, which counts how many comparisons were made; the interval is unadjusted,
    the 95 % one of this comparison alone. So it can leave out 0 where nothing is shown: the sentence says so.
    With too few seeds no interval is made up, and what it would give is None.
    """

    a: str
    b: str
    estimate: Estimate | None
    p_holm: float | None
    bootstrap: tuple[float, float] | None  # the other 95 % interval, as a cross-check
    verdict: str  # "better", "worse", "equivalent", "not shown" or "too few seeds"
    sentence: str
    advice: str  # "" where there is none to give


def compare_to(reference: str, groups: Mapping[str, Correct], margin: float | None) -> list[Comparison]:
    """Each of the other groups against the reference; `margin`, in points, is what was named beforehand.

    The family for Holm is every group that has two seeds; the reference is not chosen by what came out. Over
    two seeds that lie a point apart its 5 % are rather 7 or 8 (`benchmarks/interval_coverage.py`): where the
    reference's two happen to lie close, every comparison takes them for steadier than they are.
    """
    b, names = groups[reference], [name for name in groups if name != reference]
    enough = [name for name in names if min(len(groups[name]), len(b)) >= 2]
    estimates = {name: crossed_difference(groups[name], b) for name in enough}
    adjusted = dict(zip(enough, holm([estimates[name].p for name in enough]), strict=True))
    done = []
    for name in names:
        a = groups[name]
        if name not in enough:
            words = _too_few_seeds(name, reference, a, b)
            done.append(Comparison(name, reference, None, None, None, "too few seeds", *words))
            continue
        estimate, p = estimates[name], adjusted[name]
        verdict = verdict_on(estimate, p, margin)
        sentence = f"{name} {_SIGNS[verdict]} {reference}" + _rest(estimate, verdict, len(enough), margin)
        advice = _advice(a, b, estimate, LEVEL / len(enough)) if verdict == "not shown" else ""
        interval = bootstrap_difference(a, b)
        done.append(Comparison(name, reference, estimate, p, interval, verdict, sentence, advice))
    return done


def verdict_on(estimate: Estimate, p_holm: float, margin: float | None) -> str:
    """Of a difference within a margin that was named beforehand it does not matter which way it goes."""
    if margin is not None and equivalent(estimate, margin):
        return "equivalent"
    if p_holm >= LEVEL:
        return "not shown"
    return "better" if estimate.value > 0 else "worse"


def headline(comparisons: Sequence[Comparison], means: Mapping[str, float | None], reference: str) -> str:
    """The one sentence to open with: who has the highest mean, what is shown against the reference, what not.

    `means` are accuracies in percent, None for a method of which no run is done. Comparisons with another
    than the reference have no part in it. At most 250 characters: where there are too many names, they are
    counted.
    """
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known:
        return "No run is done."
    best = [name for name, mean in known.items() if mean == max(known.values())]
    opening = f"{_names(best)} {'has' if len(best) == 1 else 'have'} "
    opening += "the highest mean accuracy, " if len(known) > 1 else "a mean accuracy of "
    opening += f"{known[best[0]]:.2f} %"
    against = f"{_names([reference])} ({known[reference]:.2f} %)" if reference in known else reference
    against = "it" if best == [reference] else against
    for naming in (_names, lambda names: str(len(names))):
        found = []
        for verdict, (one, several) in _FOUND.items():
            names = [each.a for each in comparisons if (each.b, each.verdict) == (reference, verdict)]
            if names:
                found.append((one if len(names) == 1 else several).format(naming(names)))
        sentence = f"{opening}; against {against}, {_listed(found, ', and ')}." if found else f"{opening}."
        if len(sentence) <= LONGEST_HEADLINE:
            break
    return sentence


_SIGNS = {"better": ">", "worse": "<", "equivalent": "=", "not shown": "~"}
_FOUND = {  # of one, of several
    "better": ("{} is better", "{} are better"),
    "worse": ("{} is worse", "{} are worse"),
    "equivalent": ("{} is equivalent", "{} are equivalent"),
    "not shown": ("for {} no difference is shown", "for {} no difference is shown"),
    "too few seeds": ("{} has too few seeds", "{} have too few seeds"),
}


def _rest(estimate: Estimate, verdict: str, family: int, margin: float | None) -> str:
    """What follows `a > b` and its like."""
    value, low, high = _points(estimate.value, estimate.low, estimate.high)
    if verdict == "better":
        return f" by {value} points ({low} to {high})"
    if verdict == "worse":
        value, low, high = _points(-estimate.value, -estimate.high, -estimate.low)
        return f" by {value} points ({low} to {high})"
    if verdict == "equivalent":
        low, high = _points(*estimate.interval(0.90))
        level = 90 if estimate.standard_error else 95
        return f" within {margin:g} points ({level} % interval {low} to {high})"
    if estimate.p < LEVEL:
        alone = f"alone it would be {value} points ({low} to {high})"
        return f": no difference shown among {family} comparisons; {alone}"
    if estimate.detectable >= 100:
        return ": no difference shown, nor could these runs show one"
    return f": no difference shown, these runs tell {_points(estimate.detectable)[0]} points apart"


def _too_few_seeds(name: str, reference: str, a: Correct, b: Correct) -> tuple[str, str]:
    sentence = f"{name} ? {reference}: too few seeds ({len(a)} and {len(b)})"
    if len(a) == len(b) == 1:
        p = mcnemar(a[0], b[0])
        told = "below 0.001" if p < 0.001 else f"{p:.3f}"
        sentence += f"; of these two checkpoints alone, McNemar's exact p is {told}"
    lacking = [each for each, runs in ((name, a), (reference, b)) if len(runs) < 2]
    needs = "needs" if len(lacking) == 1 else "need"
    advice = f"{_names(lacking)} {needs} at least 2 seeds for a verdict; 5 tell smaller differences apart"
    return sentence, advice


def _advice(a: Correct, b: Correct, estimate: Estimate, level: float) -> str:
    """What would show a difference of the size that was seen, if that is the true one."""
    n, value = np.shape(a)[1], abs(estimate.value)
    if value == 0:
        return ""
    if estimate.standard_error == 0:
        return f"{n:,} sentences are too few to tell methods apart: measure on more"
    to_show = f"to show a difference of {_points(value)[0]} points, as seen here, takes about"
    there = f"{len(a)}" if len(a) == len(b) else f"{len(a)} and {len(b)}"
    seeds = seeds_needed(a, b, level)
    if seeds is not None:
        return f"{to_show} {_about(seeds)} seeds of each instead of {there}"
    sentences = sentences_needed(a, b, level=level)
    if sentences is not None:
        return f"{to_show} {_about(sentences)} sentences instead of {n:,}; more seeds alone cannot"
    for seeds in (5, 10, 20, 50, 100):
        sentences = sentences_needed(a, b, seeds, level)
        if sentences is not None:
            both = f"{_about(sentences)} sentences and {seeds} seeds of each"
            return f"{to_show} {both} instead of {n:,} and {there}"
    return ""


def _points(*values: float) -> list[str]:
    """With one decimal, or with as many as it takes that none is written as 0."""
    decimals = next((d for d in range(1, 6) if all(round(v, d) for v in values)), 6)
    return [f"{v:.{decimals}f}" for v in values]


def _about(count: int) -> str:
    """Two digits, rounded up: more would pretend to know."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // unit) * unit:,}"


def _names(names: Sequence[str]) -> str:
    """In quotation marks where a list or a sentence would swallow them, as "none is worse"."""
    return _listed([f'"{name}"' if "," in name or name == "none" else name for name in names])


def _listed(parts: Sequence[str], last: str = " and ") -> str:
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

"""Which learning rate a method wants: full-length runs over a grid, judged by loss on held-out sentences.

Rates are not halved on steps (as in successive halving): the best one depends on the length of the run, and
for LoRA more than for full fine-tuning ("LoRA Without Regret", Schulman et al. 2025).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from statistics import mean

import numpy
import torch

from lora_from_scratch.compare.cells import DONE, code_version
from lora_from_scratch.compare.going import Going
from lora_from_scratch.compare.plan import Cell, Variant
from lora_from_scratch.compare.rates import SEEDS, settings_of
from lora_from_scratch.train.device import environment

RATES, MOST = 5, 7  # of one variant: to begin with, and where the best lies at the edge
BEST = 3  # that get the other seeds
PER_DECADE = 2  # rates a factor of sqrt(10) apart
RECORD = 1

Losses = Mapping[float, Mapping[int, float | None]]  # by rate and seed; None where the run failed


def grid_rate(index: int) -> float:
    """The rates that are tried, by a whole number: ..., 1e-4, 3.2e-4, 1e-3, ..."""
    return float(f"{10 ** (index / PER_DECADE):.1e}")


def grid_index(rate: float) -> int:
    return round(PER_DECADE * math.log10(rate))


def wanted(start: float, losses: Losses) -> list[tuple[float, int]]:
    """The (rate, seed) runs that are to come next; none where the rate can be chosen.

    First five rates around `start`; then beyond the edge, up to seven, while the best lies there; then the
    other seeds for the best three.
    """
    first, *others = SEEDS
    tried = sorted(grid_index(rate) for rate in losses)
    if not tried:
        middle = grid_index(start)
        return [(grid_rate(middle + step - RATES // 2), first) for step in range(RATES)]
    ranked = sorted((seeds[first], rate) for rate, seeds in losses.items() if seeds.get(first) is not None)
    if not ranked:
        return []
    best = grid_index(ranked[0][1])
    if len(tried) < MOST and best in (tried[0], tried[-1]):
        return [(grid_rate(best - 1 if best == tried[0] else best + 1), first)]
    return [(rate, seed) for _, rate in ranked[:BEST] for seed in others if seed not in losses[rate]]


def chosen(start: float, losses: Losses) -> float | None:
    """The rate of the smallest mean loss among those that all seeds were run at, and none failed.

    None while runs are still to come: what is there may lack the best.
    """
    if wanted(start, losses):
        return None
    whole = {rate: list(seeds.values()) for rate, seeds in losses.items() if len(seeds) == len(SEEDS)}
    means = {rate: mean(of) for rate, of in whole.items() if None not in of}
    return min(means, key=means.__getitem__) if means else None


def is_at_the_edge(variant: Mapping[str, object]) -> bool:
    """Whether the rate that a variant of rates.json was given is the lowest or highest that was tried.

    A better one may then lie beyond it: `wanted` goes no further than seven rates.
    """
    tried = [point["lr"] for point in variant["points"]]
    return variant["chosen"] is not None and variant["chosen"] in (min(tried), max(tried))


def parabola(rate: float | None, losses: Losses) -> dict[str, float] | None:
    """Through the losses at the chosen rate and its two neighbours, in log10 of the rate; None without.

    They are means over the seeds that all three were run with. `vertex` is the rate at the lowest point,
    `loss` what it has there, `curvature` in nats per square decade. None also where that point does not lie
    among the three: of these seeds the chosen rate is not the best then, and the curve says nothing beyond.
    """
    if rate is None:
        return None
    best = grid_index(rate)
    near = {i: losses.get(grid_rate(i), {}) for i in (best - 1, best, best + 1)}
    seeds = set.intersection(*map(set, near.values()))
    if not seeds or any(of[seed] is None for of in near.values() for seed in seeds):
        return None
    means = [mean(of[seed] for seed in seeds) for of in near.values()]
    a, b, c = numpy.polyfit([i / PER_DECADE for i in near], means, 2)
    vertex = -b / (2 * a) if a > 0 else math.inf
    if abs(PER_DECADE * vertex - best) > 1:
        return None
    return {"vertex": float(10**vertex), "curvature": float(2 * a), "loss": float(c - b**2 / (4 * a))}


@dataclass
class Tuning:
    """The tuning of some variants: their rates, each variant's losses so far."""

    going: Going  # its sources hold sentences out
    variants: Sequence[Variant]  # whose own rate is where the search starts
    losses: dict[str, dict[float, dict[int, float | None]]] = field(default_factory=dict)
    _cells: dict[tuple[str, float, int], Cell] = field(default_factory=dict)

    def run(self) -> None:
        """Round by round, the variants taking turns, until each has its rate or the plan is stopped."""
        self.losses = {variant.label: {} for variant in self.variants}
        while plan := [cell for variant in self.variants for cell in self._next(variant)]:
            plan.sort(key=lambda cell: cell.seed)
            self.going.through(plan, "tune")
            if self.going.stopped:
                return
            self._read()

    def _next(self, variant: Variant) -> list[Cell]:
        cells = []
        for rate, seed in wanted(variant.config.lr, self.losses[variant.label]):
            label = f"{variant.label}, lr {rate:g}"
            at_rate = Variant(replace(variant.config, lr=rate), label, variant.differs)
            cells.append(self._cells.setdefault((variant.label, rate, seed), Cell(at_rate, seed)))
        return cells

    def _read(self) -> None:
        for (label, rate, seed), cell in self._cells.items():
            if outcome := self.going.outcomes.get(cell):
                done = outcome["status"] == DONE
                loss = outcome["record"]["evaluation"]["loss"] if done else None
                self.losses[label].setdefault(rate, {})[seed] = loss

    def record(self, command: str, data_fingerprint: str) -> dict[str, object]:
        """What rates.json holds; the fingerprint is that of the data before anything was held out."""
        self._read()
        config = self.variants[0].config
        by = {"command": command, "date": date.today().isoformat(), "code": code_version()}
        sources, digest = self.going.sources(config), self.going.digest(config)
        held_out, rest = len(sources.dataset.validation), len(sources.dataset.train)
        return {
            "record": RECORD,
            "kind": "rates",
            **by,
            "environment": environment(torch.device(config.device)),
            "model": sources.model_name,
            "dataset": sources.dataset_name,
            "sources": {**digest, "data": data_fingerprint},
            "held_out": {"sentences": held_out, "train_sentences": rest},
            "budget": self.budget(),
            "stopped": self.going.stopped,
            "variants": [{**by, **self._variant(variant)} for variant in self.variants],
        }

    def budget(self) -> str:
        """What each variant may cost, and what it did."""
        counts = {label: sum(map(len, rates.values())) for label, rates in self.losses.items()}
        runs = ", ".join(f"{label} {count}" for label, count in counts.items())
        asked = f"{RATES} rates (up to {MOST}) with one seed, the best {BEST} with {len(SEEDS) - 1} more"
        return f"for each {asked}" + (f"; runs: {runs}" if runs else "")

    def _variant(self, variant: Variant) -> dict[str, object]:
        losses = self.losses[variant.label]
        rate, points = chosen(variant.config.lr, losses), []
        for lr, seeds in sorted(losses.items()):
            runs = [self._run(variant.label, lr, seed) for seed in sorted(seeds)]
            whole = [run["loss"] for run in runs]
            points.append({"lr": lr, "runs": runs, "mean_loss": None if None in whole else mean(whole)})
        return {
            "label": variant.label,
            "method": variant.config.method,
            "settings": settings_of(variant.config),
            "chosen": rate,
            "parabola": parabola(rate, losses),
            "points": points,
        }

    def _run(self, label: str, rate: float, seed: int) -> dict[str, object]:
        outcome = self.going.outcomes[self._cells[label, rate, seed]]
        if outcome["status"] != DONE:
            return {"seed": seed, "loss": None, "accuracy": None, "error": outcome["error"]}
        record = outcome["record"]
        loss, accuracy = record["evaluation"]["loss"], record["accuracy"]
        return {"seed": seed, "loss": loss, "accuracy": accuracy, "error": None}

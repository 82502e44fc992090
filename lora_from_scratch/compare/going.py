"""Through a plan, run by run: what is finished is read, the rest is run, what fails is noted."""

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from tqdm import tqdm

from lora_from_scratch.compare.accounting import account
from lora_from_scratch.compare.cells import DONE, FAILED, Cells, digest_of, key_of
from lora_from_scratch.compare.plan import Cell
from lora_from_scratch.errors import UserError, first_line
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import execute
from lora_from_scratch.runs.prepare import prepare
from lora_from_scratch.runs.sources import Sources

EQUAL_FAILURES = 3  # in a row end it: the fault is common to all
POINTS = 200  # of a loss curve


@dataclass
class Going:
    """Where the results of a plan stand."""

    cells: Cells
    sources: Callable[[RunConfig], Sources]  # found once for all runs that share them: see `Shared`
    outcomes: dict[Cell, dict[str, object]] = field(default_factory=dict)
    stopped: str | None = None  # why it ended before the plan did
    _digests: dict[int, dict[str, str]] = field(default_factory=dict)

    def digest(self, config: RunConfig) -> dict[str, str]:
        """The digests of what the run is made from."""
        sources = self.sources(config)
        if id(sources) not in self._digests:
            self._digests[id(sources)] = digest_of(sources)
        return self._digests[id(sources)]

    def through(self, plan: Iterable[Cell], title: str) -> None:
        """Run what is not finished, under one bar with the time left; each outcome is kept at once.

        A run that fails is noted and the others go on, until three equal failures in a row. Ctrl-C ends it,
        and what is there stays. UserError if a result cannot be written.
        """
        plan = list(plan)
        keys = {cell: key_of(cell.config, self.digest(cell.config)) for cell in plan}
        found = {cell: self.cells.read(key) for cell, key in keys.items()}
        self.outcomes |= {cell: one for cell, one in found.items() if one and one["status"] == DONE}
        left = [cell for cell in plan if cell not in self.outcomes]
        failures: list[str] = []
        with tqdm(total=len(plan), initial=len(plan) - len(left), desc=title, unit="run") as bar:
            try:
                for number, cell in enumerate(left):
                    bar.set_postfix_str(f"{cell}{_time_left(left[number:], self.outcomes)}")
                    outcome = self.cells.write(keys[cell], self._run(cell))
                    self.outcomes[cell] = outcome
                    bar.update()
                    tqdm.write(f"{cell}: {_told(outcome)}", file=sys.stderr)
                    failures = [*failures, outcome["error"]] if outcome["status"] == FAILED else []
                    if len(failures) >= EQUAL_FAILURES and len(set(failures[-EQUAL_FAILURES:])) == 1:
                        self.stopped = f"{EQUAL_FAILURES} equal failures in a row: {failures[-1]}"
                        return
            except KeyboardInterrupt:
                self.stopped = "interrupted"

    def _run(self, cell: Cell) -> dict[str, object]:
        _give_memory_back()
        load, started = _load_average(), time.perf_counter()
        try:
            prepared = prepare(cell.config, self.sources(cell.config))
            accounted = account(prepared)
            result = execute(prepared)
            metrics = result.training.metrics if result.training else []
            outcome = {
                "status": DONE,
                "record": result.as_dict(),
                "losses": thinned([(row["step"], row["loss"]) for row in metrics]),
                "validation": [
                    [row["step"], row["validation_loss"], row["validation_accuracy"]]
                    for row in metrics
                    if "validation_loss" in row
                ],
                "accounted": accounted,
            }
        except Exception as error:  # whatever it is, the other runs may do without it
            said = (
                first_line(error)
                if isinstance(error, UserError)
                else f"{type(error).__name__}: {first_line(error)}"
            )
            outcome = {"status": FAILED, "error": said}
        times = {"load_average": [load, _load_average()], "seconds": time.perf_counter() - started}
        return {**outcome, **times}


def thinned(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    """At most 200 points of a curve, each the mean of those it stands for, at the last of their steps."""
    size = -(-len(points) // POINTS)
    parts = (points[i : i + size] for i in range(0, len(points), size or 1))
    return [[part[-1][0], round(mean(loss for _, loss in part), 5)] for part in parts]


def _told(outcome: dict[str, object]) -> str:
    if outcome["status"] == FAILED:
        return f"failed: {outcome['error']}"
    record, load = outcome["record"], outcome["load_average"][1]
    busy = "" if load is None else f", load average {load:.1f}"
    return f"{record['accuracy']:.2f} %, {record['train_seconds']:.0f} s of training{busy}"


def _time_left(left: Sequence[Cell], outcomes: dict[Cell, dict[str, object]]) -> str:
    """What runs of the same variants took, as far as any has been run."""
    seconds = {cell: one["seconds"] for cell, one in outcomes.items()}
    if not seconds:
        return ""
    of = {variant: [s for c, s in seconds.items() if c.variant.label == variant] for variant in _labels(left)}
    usual = mean(seconds.values())
    minutes = sum(mean(of[cell.variant.label] or [usual]) for cell in left) / 60
    return f", {minutes:.0f} min left"


def _labels(cells: Iterable[Cell]) -> set[str]:
    return {cell.variant.label for cell in cells}


def _load_average() -> float | None:
    """Of the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _give_memory_back() -> None:
    """Free what earlier runs left to the allocator, or it would count for the next one (glibc alone)."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)

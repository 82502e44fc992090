"""Through a plan, run by run: what is finished is read, the rest is run, what fails is noted."""

import ctypes
import gc
import os
import signal
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from lora_from_scratch.compare.accounting import account
from lora_from_scratch.compare.cells import DONE, FAILED, Cells, digest_of, key_of
from lora_from_scratch.compare.plan import Cell
from lora_from_scratch.compare.shared import Shared
from lora_from_scratch.errors import UserError, first_line
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import execute
from lora_from_scratch.runs.prepare import prepare
from lora_from_scratch.train.bar import Bar
from lora_from_scratch.train.checkpoints import Checkpoints, newest

EQUAL_FAILURES = 3  # in a row end it: the fault is common to all
OF_A_RATE = "--lr"  # in the error of a run whose rate was too high for it
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # tqdm's own time left knows no methods
POINTS = 200  # of a loss curve
BETWEEN_LOOKS = 1.0  # seconds, at what another process is at work on


@dataclass
class Going:
    """Where the results of a plan stand."""

    cells: Cells
    sources: Shared
    outcomes: dict[Cell, dict[str, object]] = field(default_factory=dict)
    stopped: str | None = None  # why it ended before the plan did
    signal: int = signal.SIGINT  # by which, where it was interrupted
    _digests: dict[int, dict[str, str]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)  # texts that were told

    def digest(self, config: RunConfig) -> dict[str, str]:
        """The digests of what the run is made from."""
        sources = self.sources(config)
        if id(sources) not in self._digests:
            self._digests[id(sources)] = digest_of(sources)
        return self._digests[id(sources)]

    def done(self, plan: Iterable[Cell]) -> dict[Cell, dict[str, object]]:
        """What runs of the plan that are finished have left."""
        found = {cell: self.cells.read(self._key(cell)) for cell in plan}
        return {cell: one for cell, one in found.items() if one and one["status"] == DONE}

    def through(self, plan: Iterable[Cell], title: str) -> None:
        """Run what is not finished, under one bar with the time left; each outcome is kept at once.

        A run that fails is noted and the others go on, until three equal failures in a row that are not those
        of a rate: a tuning has to try such. Ctrl-C ends it, and what is there stays. UserError if a result
        cannot be written.
        """
        plan = list(plan)
        self.outcomes |= self.done(plan)
        left = [cell for cell in plan if cell not in self.outcomes]
        errors: list[str | None] = []  # None of a run that is done
        with Bar(total=len(plan), initial=len(plan) - len(left), desc=title, bar_format=BAR) as bar:
            try:
                for cell in self._in_turn(left, bar):
                    outcome = self.outcomes[cell]
                    bar.update()
                    self._tell(cell, outcome)
                    error = outcome.get("error")
                    errors = [*errors, error][-EQUAL_FAILURES:]
                    if error and OF_A_RATE not in error and errors == [error] * EQUAL_FAILURES:
                        self.stopped = f"{EQUAL_FAILURES} equal failures in a row: {error}"
                        return
            except KeyboardInterrupt as interrupt:
                self.stopped, self.signal = "interrupted", getattr(interrupt, "signal", signal.SIGINT)

    def _in_turn(self, left: list[Cell], bar: Bar) -> Iterator[Cell]:
        """Each run, once it has an outcome. Those that another process is at work on in the same folder come
        last: what it finishes is read, and what it leaves undone is run.
        """
        waited_for: list[Cell] = []
        while left:
            elsewhere = []
            for number, cell in enumerate(left):
                bar.set_postfix_str(f"{cell}{_time_left([*elsewhere, *left[number:]], self.outcomes)}")
                with self.cells.claimed(self._key(cell)) as mine:
                    if mine:
                        self.outcomes[cell] = self._finished(cell)
                if mine:
                    yield cell
                else:
                    elsewhere.append(cell)
            if elsewhere == left:
                if elsewhere != waited_for:
                    told = "at work in another process, which is waited for; Ctrl-C ends this one"
                    Bar.write(f"{', '.join(map(str, left))}: {told}", file=sys.stderr)
                    waited_for = elsewhere
                time.sleep(BETWEEN_LOOKS)
            left = elsewhere

    def _finished(self, cell: Cell) -> dict[str, object]:
        """What another process has made of the run by now, else what this one makes of it."""
        key = self._key(cell)
        outcome = self.done([cell]).get(cell) or self.cells.write(key, self._run(cell))
        # Kept, or lost by its rate: nothing has to go on from a checkpoint.
        if outcome["status"] == DONE or OF_A_RATE in outcome["error"]:
            Checkpoints(self.cells.checkpoints(key), {}).clear()
        return outcome

    def _key(self, cell: Cell) -> dict[str, object]:
        return key_of(cell.config, self.digest(cell.config))

    def _run(self, cell: Cell) -> dict[str, object]:
        _give_memory_back()
        load, started = _load_average(), time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # also what another run was warned of before
            outcome = self._outcome(cell)
        times = {"load_average": [load, _load_average()], "seconds": time.perf_counter() - started}
        told = dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning)
        return {**outcome, "warnings": list(told), **times}

    def _outcome(self, cell: Cell) -> dict[str, object]:
        try:
            prepared = prepare(cell.config, self.sources(cell.config))
            accounted = account(prepared)
            result = execute(prepared, self._checkpoints(cell))
            metrics = result.training.metrics if result.training else []
            return {
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
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            return {"status": FAILED, "error": kind + first_line(error)}

    def _checkpoints(self, cell: Cell) -> Checkpoints:
        """Those of a run, which goes on where it was interrupted, unless what is there cannot be read."""
        key = self._key(cell)
        folder, found = self.cells.checkpoints(key), None
        try:
            found = newest(folder)
        except (UserError, OSError) as error:
            warnings.warn(f"{first_line(error)}: begun again", stacklevel=2)
        return Checkpoints(folder, key, cell.config.checkpoint_every, found[1] if found else None)

    def _tell(self, cell: Cell, outcome: dict[str, object]) -> None:
        """A line under the bar, and one for each warning that no run has had before."""
        Bar.write(f"{cell}: {_told(outcome)}", file=sys.stderr)
        for text in outcome["warnings"]:
            if text not in self._warned:
                Bar.write(f"warning: {cell}: {text}", file=sys.stderr)
        self._warned.update(outcome["warnings"])


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
    """By what runs took that differ in seed and learning rate alone, else by what all did."""
    took: dict[RunConfig, list[float]] = defaultdict(list)
    for cell, outcome in outcomes.items():
        if outcome["status"] == DONE:
            took[_kind(cell)].append(outcome["seconds"])
    if not took:
        return ""
    usual = [seconds for of_kind in took.values() for seconds in of_kind]
    minutes = sum(mean(took.get(_kind(cell), usual)) for cell in left) / 60
    return f", {minutes:.0f} min left" if minutes >= 1 else ", under a minute left"


def _kind(cell: Cell) -> RunConfig:
    return replace(cell.variant.config, lr=None)


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

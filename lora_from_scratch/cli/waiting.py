"""How long PyTorch's threads spin while they wait for each other: long, unless the machine is busy otherwise.

OpenMP's threads wait for each other at the end of every operation. GNU's OpenMP, PyTorch's on Linux, has them
spin 300,000 times before they sleep; but 100 times where it has more threads than there are CPUs (its manual,
GOMP_SPINCOUNT). Spinning is the fastest way to wait for a partner that runs. Where another program has taken
the partner's core it keeps that core from both, and training falls to a quarter: benchmarks/contended.py.

So while others want the cores that are computed on, threads that do nothing are added to OpenMP's count. The
threads that compute stay as many, and so do all bits.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

INTERVAL = 0.5  # seconds from one look at the machine to the next
SOME = 0.25  # of a core
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # by which users decide it themselves
CPUS = Path("/proc/stat")  # of Linux: what each has done since it was started
NO_WORK = (3, 4)  # columns of it: idle, and waiting for a disk


class Reading(NamedTuple):
    """Seconds until now, summed over the CPUs that this process may run on."""

    busy: float  # with whatever it was
    idle: float
    own: float  # that this process has computed

    @classmethod
    def now(cls) -> "Reading":
        own, mine = os.times(), {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in CPUS.read_text().splitlines()]
        ticks = [[int(word) for word in words[1:9]] for words in lines if words[0] in mine]
        idle = sum(of[column] for of in ticks for column in NO_WORK)
        second = os.sysconf("SC_CLK_TCK")
        return cls((sum(map(sum, ticks)) - idle) / second, idle / second, own.user + own.system)

    def since(self, earlier: "Reading") -> tuple[float, float]:
        """How many cores others took, and how many nobody did."""
        busy, idle, own = (now - before for now, before in zip(self, earlier, strict=True))
        share = len(os.sched_getaffinity(0)) / max(busy + idle, 1e-9)
        return (busy - own) * share, idle * share


class Idlers:
    """Threads that do nothing, so that OpenMP has more of them than there are CPUs."""

    def __init__(self) -> None:
        self._end, self._threads = threading.Event(), []

    def start(self) -> None:
        """Nothing, where PyTorch computes with one thread, or is not loaded."""
        if "torch" not in sys.modules:
            return
        import torch  # whole: another thread may be at it

        computing, cpus = torch.get_num_threads(), len(os.sched_getaffinity(0))
        if computing > 1:
            count = max(0, cpus - computing) // (computing - 1) + 1
            self._threads = [threading.Thread(target=self._wait, daemon=True) for _ in range(count)]
            for thread in self._threads:
                thread.start()

    def _wait(self) -> None:
        import torch

        torch.zeros(1 << 17).exp_()  # large enough for partners, who wait with this thread from now on
        self._end.wait()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._end, self._threads = threading.Event(), []

    def __len__(self) -> int:
        return len(self._threads)


@contextmanager
def waiting_by_load() -> Iterator[None]:
    """Within the block threads wait as the load of the machine suggests, unless the user chose how.

    Elsewhere than on Linux they wait as PyTorch has them.
    """
    try:
        begun = None if any(name in os.environ for name in CHOICES) else Reading.now()
    except (OSError, AttributeError):  # there is no such file, or nobody may read it
        begun = None
    if begun is None:
        yield
        return
    end = threading.Event()
    watcher = threading.Thread(target=_watch, args=(begun, end), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()


def _watch(before: Reading, end: threading.Event) -> None:
    idlers = Idlers()
    while not end.wait(INTERVAL):
        now = Reading.now()
        others, idle = now.since(before)
        before = now
        if others < SOME:
            idlers.stop()
        elif idle < SOME and not idlers:
            idlers.start()
    idlers.stop()

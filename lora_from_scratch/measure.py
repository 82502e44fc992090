"""The instruments: a clock that waits for the device, a count of parameters, a reading of memory."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


class PhaseClock:
    """Seconds of a loop, in all and by phase: `start()`, `lap("forward")` after each phase, `stop()`.

    A GPU works behind the program's back, so wall-clock time means nothing until the two meet: `start` and
    `stop` wait for the device. In between nothing waits: on CUDA a lap only marks its place in the stream
    with an event, and the marks are read at the end. The total is always wall-clock time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.phases: dict[str, float] = {}
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        synchronize(self.device)
        self._started = time.perf_counter()
        self._marks = [("", self._mark())]

    def lap(self, phase: str) -> None:
        """The time since the last lap (or the start) belongs to `phase`."""
        self._marks.append((phase, self._mark()))

    def stop(self) -> None:
        """Adds to `seconds` and `phases`; the clock may be started again."""
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._started
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            self.phases[phase] = self.phases.get(phase, 0.0) + self._between(before, after)

    def _mark(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
        if self.device.type != "cuda":
            return after - before
        return before.elapsed_time(after) / 1000


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters learn, the classifier head apart from the rest, and how many there are."""

    adapter: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        return self.adapter + self.head

    @property
    def share(self) -> float:
        return self.trainable / self.total


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count what has `requires_grad`: in `model.score` as the head, elsewhere as the adapter."""
    head = sum(p.numel() for p in model.score.parameters() if p.requires_grad)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return ParameterCount(trainable - head, head, sum(p.numel() for p in model.parameters()))


@dataclass(frozen=True)
class Memory:
    """A reading in bytes. `kind` says of what.

    "cuda": what PyTorch has allocated on the GPU, now and at its peak since `reset_peak_memory`.
    "resident": the whole process in the CPU's memory, imports and data included, now and at its peak.
    """

    kind: str
    allocated_bytes: int | None
    peak_bytes: int | None


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak. On the CPU the operating system keeps the peak, over the life of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def read_memory(device: torch.device) -> Memory:
    """What the run occupies now and occupied at most."""
    if device.type == "cuda":
        return Memory("cuda", torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():  # Linux: in kB, and of this program alone, where ru_maxrss inherits its parent's
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return Memory("resident", *(int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM")))
    try:
        import resource
    except ImportError:  # Windows
        return Memory("resident", None, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory("resident", None, peak if sys.platform == "darwin" else peak * 1024)

"""The instruments: a clock that waits for the device, a count of parameters, a reading of memory."""

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from lora_from_scratch.base.quantised import stored_weights

PROC = Path("/proc/self")


class PhaseClock:
    """Seconds of a loop, in all and by phase: `start()`, `lap("forward")` after each phase, `stop()`.

    A GPU works behind the program's back: `start` and `stop` wait for it, so that wall-clock time, the total,
    means something. In between nothing waits: on CUDA a lap only marks its place in the stream of that device
    with an event, and the marks are read at the end. Other such devices have no phases, only the total.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0
        self.phases: dict[str, float] = {}

    def start(self) -> None:
        synchronize(self.device)
        self._started = time.perf_counter()
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.lap("")

    def lap(self, phase: str) -> None:
        """The time since the last lap (or the start) belongs to `phase`."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._marks.append((phase, event))
        elif self.device.type == "cpu":
            self._marks.append((phase, time.perf_counter()))

    def stop(self) -> None:
        """Adds to `seconds` and `phases`; the clock may be started again."""
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._started
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            passed = after - before if self.device.type == "cpu" else before.elapsed_time(after) / 1000
            self.phases[phase] = self.phases.get(phase, 0.0) + passed


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
    total = sum(p.numel() for p in model.parameters()) + stored_weights(model)
    return ParameterCount(trainable - head, head, total)


@dataclass(frozen=True)
class Memory:
    """A reading in bytes, now and at its peak since `reset_peak_memory`; None where it cannot be had.

    `parts` says what is known by arithmetic (weights, gradients, moments of the optimizer); the rest of the
    peak is what the forward pass keeps for the backward one, copies of weights, and on a CPU the program.
    """

    kind: str  # "cuda": allocated by PyTorch; "resident": the whole process; "process": also since its birth
    allocated_bytes: int | None
    peak_bytes: int | None
    parts: dict[str, int] = field(default_factory=dict)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """What this process holds of them."""
    local = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def reset_peak_memory(device: torch.device) -> bool:
    """Start a new peak; False where the operating system keeps one for the life of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (PROC / "clear_refs").write_text("5")  # Linux: sets VmHWM back to what is resident now
    except OSError:
        return False
    return _status("VmHWM") is not None


def read_memory(device: torch.device, reset: bool = True, **parts: int) -> Memory:
    """What the run occupies now, and at most since `reset_peak_memory`, whose answer is `reset`."""
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated(device)
        return Memory("cuda", allocated, torch.cuda.max_memory_allocated(device), parts)
    resident, peak = _status("VmRSS"), _status("VmHWM")
    if peak is None:
        reset, peak = False, _peak_of_process()
    return Memory("resident" if reset else "process", resident, peak, parts)


class PeakMemory:
    """What a loop occupies at most: `start()`, `stop()`, and both again for its next stretch.

    What comes and goes between two stretches is left out, but on a CPU not what the allocator holds back of
    it afterwards; and where the system keeps one peak for the life of a process, nothing is left out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._reset = device, True
        self.peak: int | None = None  # the highest of all stretches so far, in bytes, where it could be had

    def start(self) -> None:
        self._reset &= reset_peak_memory(self.device)

    def stop(self) -> None:
        self._last = read_memory(self.device, self._reset)
        self.peak = max((p for p in (self.peak, self._last.peak_bytes) if p is not None), default=None)

    def reading(self, **parts: int) -> Memory:
        """What was occupied at the last stop, and at most over all stretches."""
        return replace(self._last, peak_bytes=self.peak, parts=parts)


def _status(key: str) -> int | None:
    """A line of Linux's account of this process, in bytes; None where there is no such line."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", (PROC / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _peak_of_process() -> int | None:
    if sys.platform == "win32":
        return None
    import resource  # which Windows has not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

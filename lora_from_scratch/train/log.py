"""What each step of a training leaves behind, and what it comes to."""

import math
from dataclasses import dataclass

from torch import Tensor

from lora_from_scratch.core.loop import Step
from lora_from_scratch.errors import UserError
from lora_from_scratch.train.measure import Memory, PhaseClock

LOOK_EVERY = 20  # steps; looking at the loss makes a GPU wait, so not at every step


@dataclass(frozen=True)
class Training:
    """What a training did and what it took. Tokens are real ones, padding apart."""

    steps: int
    sentences: int
    tokens: int
    padding_efficiency: float
    seconds: float
    phases: dict[str, float]  # seconds of data, forward, backward, optimizer; empty where not measured
    memory: Memory
    decay: dict[str, float]  # what weight decay alone made of a row of wte or wpe without a gradient
    # One entry a step; no gradient norm where fp16 overflowed, what was validated where it was.
    metrics: list[dict[str, float | None]]


class StepLog:
    """Losses stay on the device until somebody looks.

    They have their places from the start: small tensors kept from every step would lie between the large ones
    that come and go, and the allocator could never give that memory back.
    """

    def __init__(self, steps: int, like: Tensor) -> None:
        self._losses, self._norms = like.new_empty(steps), like.new_empty(steps)
        self._rows: list[dict[str, float | None]] = []
        self._padded = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: Step, lengths: Tensor) -> None:
        """Note a step over sentences of these lengths, `(B,)` tokens."""
        self._losses[len(self)], self._norms[len(self)] = step.loss, step.gradient_norm
        self._rows.append({"lr": step.lr, "sentences": len(lengths), "tokens": int(lengths.sum())})
        self._padded += len(lengths) * int(lengths.max())

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps, and after the last one, is to be done now."""
        return len(self) % every == 0 or len(self) == len(self._losses)

    def add_validation(self, measured: dict[str, float | None]) -> None:
        """Note what the model was measured to be after the last step."""
        self._rows[-1] |= measured

    def recent_loss(self, lr: float) -> float:
        """The mean loss of the last steps; refuses to go on once it is no number."""
        steps, loss = len(self), self._losses[: len(self)][-LOOK_EVERY:].mean().item()
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} after {steps} steps: --lr {lr:g} is too high for this run")
        return loss

    def summary(self, clock: PhaseClock, memory: Memory, decay: dict[str, float]) -> Training:
        """The whole of the training, once its last step is noted."""
        metrics = []
        for loss, norm, row in zip(self._losses.tolist(), self._norms.tolist(), self._rows, strict=True):
            seen = {"loss": loss, "gradient_norm": norm if math.isfinite(norm) else None}
            metrics.append({"step": len(metrics) + 1, **seen, **row})
        sentences, tokens = (sum(row[key] for row in metrics) for key in ("sentences", "tokens"))
        efficiency, seconds, phases = tokens / self._padded, clock.seconds, clock.phases
        return Training(len(self), sentences, tokens, efficiency, seconds, phases, memory, decay, metrics)

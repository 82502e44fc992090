"""What each step of a training leaves behind, and what it comes to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_from_scratch.core.loop import Step
from lora_from_scratch.train.measure import Memory, PhaseClock

LOOK_EVERY = 20  # steps; looking at the loss makes a GPU wait, so not at every step
Validation = dict[str, float | None]


@dataclass(frozen=True)
class Training:
    """What a training did and what it took. Tokens are real ones, padding apart."""

    steps: int
    sentences: int
    tokens: int
    padding_efficiency: float
    seconds: float
    phases: dict[str, float]  # seconds of data, forward, backward, optimizer; empty where not measured
    checkpoint_seconds: float  # not among the others
    memory: Memory
    decay: dict[str, float]  # what weight decay alone made of a row of wte or wpe without a gradient
    # One entry a step; no gradient norm where fp16 overflowed, what was validated where it was.
    metrics: list[dict[str, float | None]]

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out, since fp16 gradients overflowed."""
        return sum(row["gradient_norm"] is None for row in self.metrics)


class StepLog:
    """Losses stay on the device until somebody looks.

    They have their places from the start: small tensors kept from every step would lie between the large ones
    that come and go, and the allocator could never give that memory back.
    """

    def __init__(self, steps: int, device: torch.device, dtype: torch.dtype) -> None:
        self._losses, self._norms = (torch.empty(steps, device=device, dtype=dtype) for _ in range(2))
        self._rates = torch.empty(steps, dtype=torch.float64)
        self._sizes = torch.empty(3, steps, dtype=torch.int64)  # sentences, tokens, tokens with padding
        self._validated: dict[int, Validation] = {}  # by step
        self._steps = 0

    def __len__(self) -> int:
        return self._steps

    @property
    def is_complete(self) -> bool:
        return self._steps == len(self._losses)

    @property
    def sentences(self) -> int:
        return int(self._sizes[0, : self._steps].sum())

    def add(self, step: Step, parts: Sequence[Tensor]) -> None:
        """Note a step over sentences of these lengths, `(B,)` tokens for each part of its batch."""
        i, self._steps = self._steps, self._steps + 1
        self._losses[i], self._norms[i], self._rates[i] = step.loss, step.gradient_norm, step.lr
        sizes = [(len(lengths), int(lengths.sum()), len(lengths) * int(lengths.max())) for lengths in parts]
        self._sizes[:, i] = torch.tensor(sizes).sum(dim=0)

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps, and after the last one, is to be done now."""
        return self._steps % every == 0 or self.is_complete

    def add_validation(self, measured: Validation) -> None:
        """Note what the model was measured to be after the last step."""
        self._validated[self._steps] = measured

    def recent_loss(self) -> float:
        """The mean loss of the last steps."""
        return self._recent().mean().item()

    def not_finite(self) -> tuple[int, float] | None:
        """The first of the last steps whose loss is no number, counted from 1, and that loss."""
        losses = self._recent().tolist()
        wrong = [(i, loss) for i, loss in enumerate(losses) if not math.isfinite(loss)]
        return (self._steps - len(losses) + 1 + wrong[0][0], wrong[0][1]) if wrong else None

    def _recent(self) -> Tensor:
        return self._losses[max(0, self._steps - LOOK_EVERY) : self._steps]

    def tensors(self) -> dict[str, Tensor]:
        """The steps so far, `(steps,)` or `(3, steps)` each; `validated` stands beside them."""
        columns = {"losses": self._losses, "norms": self._norms, "rates": self._rates, "sizes": self._sizes}
        return {name: column[..., : self._steps] for name, column in columns.items()}

    @property
    def validated(self) -> list[tuple[int, Validation]]:
        return list(self._validated.items())

    def restore(self, tensors: dict[str, Tensor], validated: list[tuple[int, Validation]]) -> None:
        """Stand where another log of the same training stood."""
        self._steps = len(tensors["losses"])
        for name, column in self.tensors().items():
            column.copy_(tensors[name])
        self._validated = dict(validated)

    def summary(
        self, clock: PhaseClock, checkpoint_seconds: float, memory: Memory, decay: dict[str, float]
    ) -> Training:
        """The whole of the training, once its last step is noted."""
        losses, norms, rates = (column.tolist() for column in (self._losses, self._norms, self._rates))
        sentences, tokens, padded = self._sizes.tolist()
        metrics = []
        for i, norm in enumerate(norms):
            seen = {"loss": losses[i], "gradient_norm": norm if math.isfinite(norm) else None, "lr": rates[i]}
            read = {"sentences": sentences[i], "tokens": tokens[i]}
            metrics.append({"step": i + 1, **seen, **read, **self._validated.get(i + 1, {})})
        return Training(
            len(self),
            sum(sentences),
            sum(tokens),
            sum(tokens) / sum(padded),
            clock.seconds,
            clock.phases,
            checkpoint_seconds,
            memory,
            decay,
            metrics,
        )

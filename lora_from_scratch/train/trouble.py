"""What goes wrong in the numbers of a training, and how it is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lora_from_scratch.errors import UserError, first_line

# How PyTorch's allocator of a CPU's memory says it.
ALLOCATION = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "bad allocation")


class LossNotFinite(UserError):
    """The loss of a step is infinite or no number; `indices`, `(B,)`, are those of its sentences."""

    def __init__(self, step: int, loss: float, lr: float, indices: Tensor) -> None:
        super().__init__(f"the loss is {loss} after {step} steps: --lr {lr:g} is too high for this run")
        self.indices = indices


@contextmanager
def out_of_memory_told(shares: Callable[[], list[list[Tensor]]]) -> Iterator[None]:
    """UserError where memory ends within the block: at which batch, and what helps.

    `shares` tells of that batch, for each process, the lengths of its sentences in tokens, part by part.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        computed = shares()
        batch = torch.cat([part for own in computed for part in own])
        size = f"{len(batch)} sentences x {int(batch.max())} tokens"
        parts = max(map(len, computed))
        more = min(2 * parts, max(sum(map(len, own)) for own in computed))
        smaller = f"--gradient-accumulation {more} computes the same in smaller parts; or "
        advice = f"{smaller * (more > parts)}lower --max-length"
        raise UserError(f"out of memory at a batch of {size} ({first_line(error)[:60]}); {advice}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says so, of whatever device."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(said in str(error) for said in ALLOCATION)

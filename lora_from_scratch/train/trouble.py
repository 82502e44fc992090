"""What goes wrong in the numbers of a training, and how it is told."""

from collections.abc import Iterator
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
def out_of_memory_told(shape: "list[tuple[int, int]]", accumulation: int) -> Iterator[None]:
    """UserError where memory ends within the block: the shape of the batch that was there last, what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(said in str(error) for said in ALLOCATION):
            raise
        size = " of {} sentences x {} tokens".format(*shape[-1]) if shape else ""
        raise UserError(
            f"out of memory at a batch{size}: --gradient-accumulation {2 * accumulation} computes the same in "
            f"smaller parts, --max-length shortens sentences ({first_line(error)[:60]})"
        ) from error

"""Several processes that train one model together, on PyTorch's own engine: torch.distributed.

Each step's sentences are shared out over the processes. PyTorch averages the gradients over processes, as
if each had as many sentences; a sentence weighs the same wherever it lands because each process's loss is
scaled by its share. Alone, everything here does nothing.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from lora_from_scratch.core.loop import Batch, Forward
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch
from lora_from_scratch.errors import UserError

# A process that dies is noticed at once; one that only stands still, after this. Writing a large checkpoint,
# for which all wait, has to fit in.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """How many there are, and which this one is. What exchanges something has to be called by all of them."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def own(self, items: Sequence[Tensor]) -> Sequence[Tensor]:
        """What of the items, in their order, falls to this process: every `count`-th."""
        return items[self.rank :: self.count]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensors, where this one is."""
        if self.count == 1:
            return tensor
        sent = tensor.to(_device_of_messages(tensor.device))
        distributed.all_reduce(sent)
        return sent.to(tensor.device)

    def largest(self, *numbers: int) -> list[int]:
        """Each number as the largest that any process has."""
        if self.count == 1:
            return list(numbers)
        sent = torch.tensor(numbers, device=_device_of_messages())
        distributed.all_reduce(sent, distributed.ReduceOp.MAX)
        return sent.tolist()

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor of one shape, by rank."""
        if self.count == 1:
            return [tensor]
        sent = tensor.to(_device_of_messages(tensor.device))
        received = [torch.empty_like(sent) for _ in range(self.count)]
        distributed.all_gather(received, sent)
        return [one.to(tensor.device) for one in received]

    def check_equal(self, what: str, text: str) -> None:
        """UserError on all of them where one was given another text than the others."""
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        high, low = self.largest(number, -number)
        if high != -low:
            raise UserError(f"the processes have not the same {what}; give each the same files and flags")


def processes() -> Processes:
    """Those of torch.distributed, or this one alone."""
    if not distributed.is_initialized():
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())


def started() -> int:
    """How many processes torchrun started, joined yet or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what the processes hold of it together, for which all of them have to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within the block this process works with the others that torchrun started, if it did."""
    if started() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # from where messages go that are of no device
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    distributed.destroy_process_group()  # not after an error: it would wait for the others


def _device_of_messages(otherwise: torch.device | None = None) -> torch.device:
    """Where a tensor has to be to be sent."""
    if distributed.get_backend() != "nccl":
        return torch.device("cpu")
    on_gpu = otherwise is not None and otherwise.type == "cuda"
    return otherwise if on_gpu else torch.device("cuda", torch.cuda.current_device())


def split(indices: Tensor, processes: Processes, parts: Callable[[Tensor], int]) -> list[list[Tensor]]:
    """One step's sentences, `(B,)`, shared out: for each process its own, in so many parts as they need."""
    shares = (indices[rank :: processes.count] for rank in range(processes.count))
    return [list(share.tensor_split(parts(share))) if len(share) else [] for share in shares]


def own_batches(
    examples: TokenizedExamples,
    shares: list[list[Tensor]],
    processes: Processes,
    device: torch.device,
    forward: Forward,
) -> Iterator[Batch]:
    """This process's batches of one step, in turn; gradients are exchanged with the last one.

    All compute as many batches, since they wait for each other: one that has fewer begins with a sentence of
    the first process's, of no weight.
    """
    own, total = shares[processes.rank], sum(len(part) for parts in shares for part in parts)
    batches = [(shares[0][0][:1], 0.0)] * (max(map(len, shares)) - len(own))
    batches += [(part, processes.count * len(part) / total) for part in own]
    for number, (indices, share) in enumerate(batches, start=1):
        alone = getattr(forward, "no_sync", nullcontext) if number < len(batches) else nullcontext
        with alone():
            yield pad_batch(examples, indices, device, share)

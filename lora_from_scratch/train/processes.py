"""Several processes that train one model together, on PyTorch's own engine: torch.distributed.

Each step's sentences are shared out over the processes. PyTorch averages the gradients over processes, as
if each had as many sentences; a sentence weighs the same wherever it lands because each process's loss is
scaled by its share. Alone, everything here does nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core.loop import Batch, Forward
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch


@dataclass(frozen=True)
class Processes:
    """How many there are, and which this one is."""

    rank: int = 0
    count: int = 1

    def own(self, items: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
        """What of the items, in their order, falls to this process: every `count`-th."""
        return items[self.rank :: self.count]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; all of them have to ask."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def largest(self, *numbers: int) -> list[int]:
        """Each number as the largest that any process has; all of them have to ask."""
        if self.count == 1:
            return list(numbers)
        together = torch.tensor(numbers, device=_device_of_messages())
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
        return together.tolist()

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """That tensor of every process, on the CPU, by rank; all of them have to ask."""
        if self.count == 1:
            return [tensor]
        sent = tensor.to(_device_of_messages())
        received = [torch.empty_like(sent) for _ in range(self.count)]
        distributed.all_gather(received, sent)
        return [one.cpu() for one in received]


def _device_of_messages() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


def processes() -> Processes:
    """Those of torch.distributed, or this one alone."""
    if not distributed.is_initialized():
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())


class Parallel:
    """The forward pass through DistributedDataParallel, which averages the gradients of the backward pass.

    Frozen weights and the start of what learns have to be the same everywhere; nothing is sent at the start.
    """

    def __init__(self, model: GPT2ForSequenceClassification, forward: Forward) -> None:
        device = model.score.weight.device
        ids = [device] if device.type == "cuda" else None
        classifier = _Classifier(model, forward)
        self._wrapped = DistributedDataParallel(
            classifier, device_ids=ids, broadcast_buffers=False, init_sync=False
        )

    def __call__(self, model: GPT2ForSequenceClassification, input_ids: Tensor, lengths: Tensor) -> Tensor:
        return self._wrapped(input_ids, lengths)

    def no_sync(self) -> AbstractContextManager[None]:
        """Within the block gradients add up here alone."""
        return self._wrapped.no_sync()


class _Classifier(nn.Module):
    """A module whose `forward` is the function: DistributedDataParallel wraps modules alone."""

    def __init__(self, model: GPT2ForSequenceClassification, function: Forward) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.function(self.model, input_ids, lengths)


def split(indices: Tensor, processes: Processes, parts: int) -> list[list[Tensor]]:
    """One step's sentences, `(B,)`, shared out: for each process its own, in so many parts or fewer."""
    shares = (indices[rank :: processes.count] for rank in range(processes.count))
    return [list(share.chunk(parts)) if len(share) else [] for share in shares]


def own_batches(
    examples: TokenizedExamples,
    shares: list[list[Tensor]],
    processes: Processes,
    device: torch.device,
    forward: Forward,
) -> Iterator[Batch]:
    """This process's batches of one step, in turn; gradients are exchanged with the last one.

    A process without a sentence reads one of another's, of no weight: the others wait for its gradients.
    """
    own, total = shares[processes.rank], sum(len(part) for parts in shares for part in parts)
    if not own:
        yield pad_batch(examples, shares[0][0][:1], device, share=0.0)
    for number, part in enumerate(own, start=1):
        alone = getattr(forward, "no_sync", nullcontext) if number < len(own) else nullcontext
        with alone():
            yield pad_batch(examples, part, device, share=processes.count * len(part) / total)

"""The forward pass of several processes: each with the whole model, or with its share of it.

A forward pass here is a function; PyTorch's engines wrap modules, and hear of their calls.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import signature

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core.loop import Forward
from lora_from_scratch.train.processes import processes

# What tells DistributedDataParallel not to send buffers, by its version.
BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)


class Classifier(nn.Module):
    """A module whose `forward` is the function."""

    def __init__(self, model: GPT2ForSequenceClassification, function: Forward) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.function(self.model, input_ids, lengths)


class Replicated:
    """A forward pass whose backward pass averages the gradients over the processes.

    What learns has to be the same everywhere to begin with, and is not sent.
    """

    def __init__(self, model: GPT2ForSequenceClassification, forward: Forward) -> None:
        device = model.score.weight.device
        ids = [device] if device.type == "cuda" else None
        buffers = {BUFFERS: False}  # they are constants
        module = Classifier(model, forward)
        self._module = DistributedDataParallel(module, device_ids=ids, init_sync=False, **buffers)

    def __call__(self, _: GPT2ForSequenceClassification, input_ids: Tensor, lengths: Tensor) -> Tensor:
        return self._module(input_ids, lengths)

    def no_sync(self) -> AbstractContextManager[None]:
        """Within the block gradients add up here alone."""
        return self._module.no_sync()


class Sharded:
    """A forward pass over a model of which each process keeps a share: of weights, gradients and moments.

    The weights of a block are gathered when its turn comes, and dropped behind it (Zhao et al. 2023, "PyTorch
    FSDP"). The model's parameters are other objects afterwards: make the optimizer from those.
    """

    def __init__(self, model: GPT2ForSequenceClassification, forward: Forward, device: torch.device) -> None:
        # That layers return views, which nobody changes in place here.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(device.type, (processes().count,))
        for block in model.transformer.h:
            # By layer, as the forward pass calls them: nobody calls the block itself.
            layers = [m for m in block.modules() if next(m.parameters(recurse=False), None) is not None]
            fully_shard(layers, mesh=mesh)
        self._module = fully_shard(Classifier(model, forward), mesh=mesh)

    def __call__(self, _: GPT2ForSequenceClassification, input_ids: Tensor, lengths: Tensor) -> Tensor:
        return self._module(input_ids, lengths)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within the block gradients add up here alone."""
        self._module.set_requires_gradient_sync(False)
        yield
        self._module.set_requires_gradient_sync(True)

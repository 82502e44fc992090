"""What a training step holds, in bytes: weights, gradients, moments and activations, without allocating it.

The first three are sums over parameters, and over what layers keep in buffers: quantised weights, PiSSA's A0
and B0. Activations are counted: the forward pass runs on tensors that have a shape and no memory, and what
autograd keeps of it for the backward pass is added up, every piece of memory once and weights left out. Under
autocast that includes the rounded copies of weights.

Not in the account is what comes and goes within a pass or a step of the optimizer, what `fast/` lays out anew
(packed weights, the few rows of the embeddings), and the program itself.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # what torch.compile looks ahead with
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.base.quantised import kept_weights
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.core.loop import Forward
from lora_from_scratch.fast.embedding_rows import occurring_rows
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.packed_weights import keep_frozen_in_bf16
from lora_from_scratch.runs.prepare import Prepared
from lora_from_scratch.train.measure import tensor_bytes
from lora_from_scratch.train.parts import Parting
from lora_from_scratch.train.precision import DTYPES


def account(prepared: Prepared) -> dict[str, int]:
    """Of a run as it trains, fast or plain, in its precision, on the largest batch that its sentences may
    make, or on the largest part of one (see `Parting`)."""
    config, examples, precision = prepared.config, prepared.train_examples, DTYPES[prepared.config.precision]
    shape = _largest_part(prepared)
    model = _without_memory(prepared.model, FakeTensorMode(allow_non_fake_inputs=True))
    if config.plain:
        return account_model(model, *shape, precision)
    stored = prepared.base_weights if config.way.trains else None
    with occurring_rows(model, examples, stored) as occurring:
        if precision == torch.bfloat16:
            keep_frozen_in_bf16(model)
        accounted = account_model(model, *shape, precision, fast_classify)
    return {**accounted, "weights": tensor_bytes(kept_weights(model)) - occurring.spared_bytes}


def _largest_part(prepared: Prepared) -> tuple[int, int]:
    """Sentences, and tokens of each: of batches of every length that occurs the part of most tokens."""
    config, lengths = prepared.config, prepared.train_examples.lengths
    parting = Parting.of(prepared.model, config.gradient_accumulation)
    size = min(config.batch_size, len(lengths))
    shapes = [(-(-size // parting.parts(longest.expand(size))), int(longest)) for longest in lengths.unique()]
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))


def account_model(
    model: GPT2ForSequenceClassification,
    sentences: int,
    tokens: int,
    precision: torch.dtype = torch.float32,
    forward: Forward = plain_classify,
    as_on_a_gpu: bool = False,
) -> dict[str, int]:
    """Of an adapted model, which may be on the meta device, on a batch of sentences of so many tokens each.

    Args:
        precision: what the forward pass is autocast to.
        as_on_a_gpu: dropout's masks take a byte an element; a CPU keeps them as floats to multiply by.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = _without_memory(model, mode).train()
    gradients = tensor_bytes(p for p in model.parameters() if p.requires_grad)
    with mode, _ByteMasks() if as_on_a_gpu else nullcontext():
        activations = _saved_bytes(model, sentences, tokens, precision, forward)
    return {
        "weights": tensor_bytes(kept_weights(model)),
        "gradients": gradients,
        "moments": 2 * gradients,
        "activations": activations,
    }


def _without_memory(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy whose tensors have shape, dtype and device, but no numbers; meta ones are on the CPU."""

    def fake(tensor: Tensor) -> Tensor:
        device = "cpu" if tensor.is_meta else tensor.device
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

    with mode:
        fakes = {id(tensor): fake(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, fakes)


def _saved_bytes(
    model: GPT2ForSequenceClassification,
    sentences: int,
    tokens: int,
    precision: torch.dtype,
    forward: Forward,
) -> int:
    """What autograd keeps of the forward pass up to the loss."""
    device = model.score.weight.device
    input_ids = torch.zeros(sentences, tokens, dtype=torch.long, device=device)
    lengths = torch.full((sentences,), tokens, device=device)
    weights = {tensor.untyped_storage()._cdata for tensor in kept_weights(model)}
    kept = {}  # held until the end: an address would else be given out twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    autocast = torch.autocast(device.type, precision, enabled=precision != torch.float32)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        with autocast:
            logits = forward(model, input_ids, lengths)
        cross_entropy(logits, torch.zeros_like(lengths))
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


class _ByteMasks(TorchFunctionMode):
    """Within the block dropout is the kernel that a GPU uses, whose mask is of bytes."""

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if function is not nn.functional.dropout:
            return function(*args, **(kwargs or {}))

        def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            return torch.native_dropout(x, p, True)[0] if training and p else x

        return dropout(*args, **(kwargs or {}))

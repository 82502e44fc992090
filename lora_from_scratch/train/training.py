"""A whole training around the loop of `core/`: state, batches, bar, clock, log."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core import loop
from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch, training_batches
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.train.log import LOOK_EVERY, StepLog, Training
from lora_from_scratch.train.measure import PeakMemory, PhaseClock, tensor_bytes
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import make_scaler

# From what decay alone has made of the embeddings' rows without a gradient (see `Training.decay`) to what was
# measured, by name.
Validate = Callable[[dict[str, float]], dict[str, float | None]]


def train(
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    precision: torch.dtype,
    generator: torch.Generator,
    max_steps: int | None = None,
    groups: list[dict[str, object]] | None = None,
    forward: loop.Forward = classify,
    validate: Validate | None = None,
    eval_every: int | None = None,
) -> Training:
    """Train what has `requires_grad`, with a learning rate that falls linearly from `lr` to 0.

    Args:
        precision: what the forward pass is autocast to; the trained weights and the loss stay fp32.
        generator: draws the order of the sentences, and nothing else. Dropout draws from torch's global one.
        max_steps: stop after so many steps; the learning rate then reaches 0 there.
        groups: the optimizer's parameter groups; by default only matrices are decayed.
        forward: from model, token ids and lengths to logits; by default the plain one of `core/`.
        validate: measures the model as it stands, after every `eval_every` steps and after the last one.
            Neither its time nor its memory is counted (see `PeakMemory`), nor has it a share in the result.

    Raises UserError where the loss is no longer finite.
    """
    device = model.score.weight.device
    steps = min(epochs * math.ceil(len(examples) / batch_size), max_steps or math.inf)
    optimizer = make_optimizer(groups or decay_matrices(model.parameters(), weight_decay), lr)
    schedule, scaler = make_schedule(optimizer, steps), make_scaler(precision, device)
    state = loop.TrainState(model, optimizer, schedule, scaler, precision, forward)
    log, clock, memory = StepLog(steps, state.trainable[0]), PhaseClock(device), PeakMemory(device)
    memory.start()
    clock.start()
    order = list(training_batches(examples, batch_size, steps, generator))
    for _ in _steps(state, examples, order, log, clock):
        if validate and log.is_due(eval_every):
            with _stopped(clock, memory):
                log.add_validation(validate(_decay_of_embeddings(state)))
    clock.stop()
    memory.stop()
    return log.summary(clock, memory.reading(**_known_parts(state)), _decay_of_embeddings(state))


def _steps(
    state: loop.TrainState, examples: TokenizedExamples, order: list[Tensor], log: StepLog, clock: PhaseClock
) -> Iterator[None]:
    """Take a step for each batch of indices, into the log and onto a bar."""
    device = state.model.score.weight.device
    batches = (pad_batch(examples, indices).to(device) for indices in order)
    with tqdm(total=sum(map(len, order)), desc="train", unit=" sentences", leave=None) as bar:
        for indices, step in zip(order, loop.train(state, batches, clock.lap), strict=True):
            log.add(step, examples.lengths[indices])
            if log.is_due(LOOK_EVERY):
                loss = log.recent_loss(state.optimizer.defaults["lr"])
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(len(indices))
            yield


@contextmanager
def _stopped(clock: PhaseClock, memory: PeakMemory) -> Iterator[None]:
    """Nothing counts within the block."""
    clock.stop()
    memory.stop()
    yield
    memory.start()
    clock.start()


def _known_parts(state: loop.TrainState) -> dict[str, int]:
    """Bytes, by arithmetic."""
    entries = state.optimizer.state.values()
    moments = [entry[key] for entry in entries for key in ("exp_avg", "exp_avg_sq")]
    return {"gradients": tensor_bytes(state.trainable), "moments": tensor_bytes(moments)}


def _decay_of_embeddings(state: loop.TrainState) -> dict[str, float]:
    groups = zip(state.decays, state.optimizer.param_groups, strict=True)
    decays = {parameter: decay for decay, group in groups for parameter in group["params"]}
    weights = {name: getattr(state.model.transformer, name).weight for name in ("wte", "wpe")}
    return {name: decays[weight] for name, weight in weights.items() if weight in decays}

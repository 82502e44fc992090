"""A whole training around the loop of `core/`: state, batches, bar, clock, log, checkpoints."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core import loop
from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.data.batches import TokenizedExamples, training_batches
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.train.checkpoints import Checkpoints
from lora_from_scratch.train.interrupts import Interrupted, Wish, listening
from lora_from_scratch.train.log import LOOK_EVERY, StepLog, Training, Validation
from lora_from_scratch.train.measure import PeakMemory, PhaseClock, tensor_bytes
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import make_scaler
from lora_from_scratch.train.processes import own_batches, processes, split
from lora_from_scratch.train.state import TrainingState
from lora_from_scratch.train.trouble import LossNotFinite, out_of_memory_told

# From what decay alone has made of the embeddings' rows without a gradient (see `Training.decay`) to what was
# measured, by name.
Validate = Callable[[dict[str, float]], Validation]


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
    gradient_accumulation: int = 1,
    validate: Validate | None = None,
    eval_every: int | None = None,
    checkpoints: Checkpoints | None = None,
    rows: Mapping[str, Tensor] | None = None,
) -> Training:
    """Train what has `requires_grad`, with a learning rate that falls linearly from `lr` to 0.

    Args:
        precision: what the forward pass is autocast to; the trained weights and the loss stay fp32.
        generator: draws the order of the sentences, and nothing else. Dropout draws from torch's global one.
        max_steps: stop after so many steps; the learning rate then reaches 0 there.
        groups: the optimizer's parameter groups; by default only matrices are decayed.
        forward: from model, token ids and lengths to logits; by default the plain one of `core/`.
        gradient_accumulation: into how many parts a batch is split, to hold less in memory at a time.
        validate: measures the model as it stands, after every `eval_every` steps and after the last one.
            Neither its time nor its memory is counted (see `PeakMemory`), nor has it a share in the result.
        checkpoints: where the state is written, and may be taken from; likewise not counted. With them
            Ctrl-C and SIGTERM wait for the step, leave a checkpoint and raise `Interrupted`.
        rows: which rows of an embedding stand in the model, by its name, where it was cut.

    Raises LossNotFinite, a UserError, where the loss is no longer finite, and UserError out of memory.
    """
    device, epoch = model.score.weight.device, math.ceil(len(examples) / batch_size)  # in steps
    steps = min(epochs * epoch, max_steps or math.inf)
    optimizer = make_optimizer(groups or decay_matrices(model.parameters(), weight_decay), lr)
    schedule, scaler = make_schedule(optimizer, steps), make_scaler(precision, device)
    stepped = loop.TrainState(model, optimizer, schedule, scaler, precision, forward)
    log = StepLog(steps, device, stepped.trainable[0].dtype)
    state = TrainingState(stepped, log, PhaseClock(device), PeakMemory(device), rows or {})
    state.memory.start()
    state.clock.start()
    order = list(training_batches(examples, batch_size, steps, generator))
    if checkpoints and checkpoints.resumed:
        state.restore(checkpoints.resumed)
    with listening() if checkpoints else nullcontext(Wish()) as wish:
        for looks in _steps(state, examples, order, gradient_accumulation):
            asked = overdue = 0
            if looks:
                _check_loss(state, order)
                wishes = wish.signal or 0, bool(checkpoints and checkpoints.are_overdue)
                asked, overdue = processes().largest(*wishes)
            if validate and log.is_due(eval_every):
                with _stopped(state):
                    log.add_validation(validate(_decay_of_embeddings(stepped)))
            due = checkpoints and (overdue or checkpoints.are_due(len(log), len(log) % epoch == 0))
            if checkpoints and (asked or (due and not log.is_complete)):
                _check_loss(state, order)
                with _stopped(state):
                    checkpoints.write(state)
            if asked:
                raise Interrupted("", asked)
    state.clock.stop()
    state.memory.stop()
    memory = state.memory.reading(**_known_parts(stepped))
    return log.summary(state.clock, state.checkpoint_seconds, memory, _decay_of_embeddings(stepped))


def _steps(
    state: TrainingState, examples: TokenizedExamples, order: list[Tensor], parts: int
) -> Iterator[bool]:
    """Take the steps that are left, into the log and onto a bar; yields whether the loss may be looked at.

    On a CPU that is always so; elsewhere, where it means waiting, after every so many steps.
    """
    log, device, together = state.log, state.clock.device, processes()
    done, look_every = len(log), 1 if state.clock.device.type == "cpu" else LOOK_EVERY
    shared = [split(indices, together, parts) for indices in order[done:]]
    steps = (own_batches(examples, shares, together, device, state.loop.forward) for shares in shared)
    sizes = {"initial": log.sentences, "total": sum(map(len, order))}
    bar = tqdm(**sizes, desc="train", unit=" sentences", leave=None)
    with bar, out_of_memory_told(lambda: examples.lengths[order[len(log)]], parts):
        for shares, step in zip(shared, loop.train(state.loop, steps, state.clock.lap), strict=True):
            loss = together.summed(step.loss) / together.count
            log.add(replace(step, loss=loss), [examples.lengths[part] for own in shares for part in own])
            bar.update(len(order[len(log) - 1]))
            if log.is_due(LOOK_EVERY):
                bar.set_postfix(loss=f"{log.recent_loss():.3f}", refresh=False)
            yield log.is_due(look_every)


def _check_loss(state: TrainingState, order: list[Tensor]) -> None:
    if wrong := state.log.not_finite():
        step, loss = wrong
        raise LossNotFinite(step, loss, state.loop.optimizer.defaults["lr"], order[step - 1])


@contextmanager
def _stopped(state: TrainingState) -> Iterator[None]:
    """Nothing counts within the block."""
    state.clock.stop()
    state.memory.stop()
    yield
    state.memory.start()
    state.clock.start()


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

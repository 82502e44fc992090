"""A whole training around the loop of `core/`: state, batches, bar, clock, log, checkpoints."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core import loop
from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.data.batches import TokenizedExamples, training_batches
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.train.bar import Bar
from lora_from_scratch.train.checkpoints import Checkpoints
from lora_from_scratch.train.interrupts import Interrupted, Wish, listening
from lora_from_scratch.train.log import LOOK_EVERY, StepLog, Training, Validation
from lora_from_scratch.train.measure import PeakMemory, PhaseClock, tensor_bytes
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.parts import Parting
from lora_from_scratch.train.precision import make_scaler
from lora_from_scratch.train.processes import own_batches, processes, split, whole
from lora_from_scratch.train.state import TrainingState
from lora_from_scratch.train.trouble import LossNotFinite, out_of_memory_told

# From what decay alone has made of the embeddings' rows without a gradient (see `Training.decay`) to what was
# measured, by name.
Validate = Callable[[dict[str, float]], Validation]


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a training goes."""

    epochs: int
    batch_size: int
    lr: float  # to begin with; it falls in a straight line to 0
    weight_decay: float
    precision: torch.dtype  # what the forward pass is autocast to; the trained weights and the loss stay fp32
    generator: torch.Generator  # of the order of the sentences alone; dropout draws from the global one
    max_steps: int | None = None  # stop after so many; the learning rate then reaches 0 there
    groups: list[dict[str, object]] | None = None  # the optimizer's; by default only matrices are decayed
    forward: loop.Forward = classify  # from model, token ids and lengths to logits; this is the plain one
    gradient_accumulation: int = 1  # parts that a batch is computed in, or more (see `Parting`)
    # Measures the model as it stands, after every so many steps and after the last one. Neither its time nor
    # its memory is counted (see `PeakMemory`), nor has it a share in the result.
    validate: Validate | None = None
    eval_every: int | None = None
    checkpoints: Checkpoints | None = None  # likewise not counted; see `train`
    rows: Mapping[str, Tensor] = field(default_factory=dict)  # of embeddings that were cut, by name


def train(model: GPT2ForSequenceClassification, examples: TokenizedExamples, course: Course) -> Training:
    """Train what has `requires_grad`.

    With checkpoints it goes on from the one they were made with, and Ctrl-C and SIGTERM wait for the step,
    leave a checkpoint and raise `Interrupted`. Raises LossNotFinite, a UserError, where the loss is no longer
    finite, and UserError out of memory.
    """
    epoch = math.ceil(len(examples) / course.batch_size)  # in steps
    steps = min(course.epochs * epoch, course.max_steps or math.inf)
    state = _at_the_start(model, steps, course)
    log, checkpoints = state.log, course.checkpoints
    state.memory.start()
    state.clock.start()
    order = list(training_batches(examples, course.batch_size, steps, course.generator))
    if checkpoints and checkpoints.resumed:
        state.restore(checkpoints.resumed)
        checkpoints.resumed.tensors.clear()  # copied
    with listening() if checkpoints else nullcontext(Wish()) as wish:
        for looks in _steps(state, examples, order, Parting.of(model, course.gradient_accumulation)):
            asked = overdue = 0
            if looks:
                _check_loss(state, order)
            if course.validate and log.is_due(course.eval_every):
                with _stopped(state):
                    log.add_validation(course.validate(_decay_of_embeddings(state.loop)))
            if looks or processes().count == 1:  # several wait for each other to ask
                wishes = wish.signal or 0, bool(checkpoints and checkpoints.are_overdue)
                asked, overdue = processes().largest(*wishes)
            due = checkpoints and (overdue or checkpoints.are_due(len(log), len(log) % epoch == 0))
            if checkpoints and (asked or (due and not log.is_complete)):
                _check_loss(state, order)
                with _stopped(state):
                    checkpoints.write(state)
            if asked:
                processes().largest(0)  # torchrun ends all where one has left: wait for who writes
                raise Interrupted("", asked)
    state.clock.stop()
    state.memory.stop()
    memory = state.memory.reading(**_known_parts(state.loop))
    return log.summary(state.clock, state.checkpoint_seconds, memory, _decay_of_embeddings(state.loop))


def _at_the_start(model: GPT2ForSequenceClassification, steps: int, course: Course) -> TrainingState:
    device = model.score.weight.device
    groups = course.groups or decay_matrices(model.parameters(), course.weight_decay)
    optimizer = make_optimizer(groups, course.lr)
    schedule, scaler = make_schedule(optimizer, steps), make_scaler(course.precision, device)
    state = loop.TrainState(model, optimizer, schedule, scaler, course.precision, course.forward)
    log = StepLog(steps, device, state.trainable[0].dtype)
    return TrainingState(state, log, PhaseClock(device), PeakMemory(device), course.rows)


def _steps(
    state: TrainingState, examples: TokenizedExamples, order: list[Tensor], parting: Parting
) -> Iterator[bool]:
    """Take the steps that are left, into the log and onto a bar; yields whether the loss may be looked at.

    On a CPU that is always so; elsewhere, where it means waiting, after every so many steps.
    """
    log, device, together = state.log, state.clock.device, processes()
    done, look_every = len(log), 1 if state.clock.device.type == "cpu" else LOOK_EVERY

    def parts(indices: Tensor) -> int:
        return parting.parts(examples.lengths[indices])

    shared = [split(indices, together, parts) for indices in order[done:]]
    steps = (own_batches(examples, shares, together, device, state.loop.forward) for shares in shared)
    sizes = {"initial": log.sentences, "total": sum(map(len, order))}
    bar = Bar(**sizes, desc="train", unit=" sentences", leave=None)

    def at_work() -> list[list[Tensor]]:
        return [[examples.lengths[part] for part in own] for own in shared[len(log) - done]]

    with bar, out_of_memory_told(at_work):
        for shares, step in zip(shared, loop.train(state.loop, steps, state.clock.lap), strict=True):
            loss = together.summed(step.loss) / together.count
            norm = whole(step.gradient_norm)
            log.add(
                replace(step, loss=loss, gradient_norm=norm),
                [examples.lengths[part] for own in shares for part in own],
            )
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
    decays = {parameter: float(whole(decay)) for decay, group in groups for parameter in group["params"]}
    weights = {name: getattr(state.model.transformer, name).weight for name in ("wte", "wpe")}
    return {name: decays[weight] for name, weight in weights.items() if weight in decays}

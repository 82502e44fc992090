"""A whole training around the loop of `core/`: state, batches, bar, clock, log."""

import math

import torch
from tqdm import tqdm
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core import loop
from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch, training_batches
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.train.log import LOOK_EVERY, StepLog, Training
from lora_from_scratch.train.measure import PhaseClock, read_memory, reset_peak_memory, tensor_bytes
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import make_scaler


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
) -> Training:
    """Train what has `requires_grad`, with a learning rate that falls linearly from `lr` to 0.

    Args:
        precision: what the forward pass is autocast to; the trained weights and the loss stay fp32.
        generator: draws the order of the sentences, and nothing else. Dropout draws from torch's global one.
        max_steps: stop after so many steps; the learning rate then reaches 0 there.
        groups: the optimizer's parameter groups; by default only matrices are decayed.
        forward: from model, token ids and lengths to logits; by default the plain one of `core/`.

    Raises UserError where the loss is no longer finite.
    """
    device = model.score.weight.device
    steps = min(epochs * math.ceil(len(examples) / batch_size), max_steps or math.inf)
    optimizer = make_optimizer(groups or decay_matrices(model.parameters(), weight_decay), lr)
    schedule, scaler = make_schedule(optimizer, steps), make_scaler(precision, device)
    state = loop.TrainState(model, optimizer, schedule, scaler, precision, forward)
    log, clock, reset = StepLog(steps, state.trainable[0]), PhaseClock(device), reset_peak_memory(device)
    clock.start()
    order = list(training_batches(examples, batch_size, steps, generator))
    batches = (pad_batch(examples, indices).to(device) for indices in order)
    with tqdm(total=sum(map(len, order)), desc="train", unit=" sentences") as bar:
        for indices, step in zip(order, loop.train(state, batches, clock.lap), strict=True):
            log.add(step, examples.lengths[indices])
            if len(log) % LOOK_EVERY == 0 or len(log) == steps:
                bar.set_postfix(loss=f"{log.recent_loss(lr):.3f}", refresh=False)
            bar.update(len(indices))
        clock.stop()
    moments = [entry[key] for entry in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    parts = {"gradients": tensor_bytes(state.trainable), "moments": tensor_bytes(moments)}
    return log.summary(clock, read_memory(device, reset, **parts), _decay_of_embeddings(state))


def _decay_of_embeddings(state: loop.TrainState) -> dict[str, float]:
    groups = zip(state.decays, state.optimizer.param_groups, strict=True)
    decays = {parameter: decay for decay, group in groups for parameter in group["params"]}
    weights = {name: getattr(state.model.transformer, name).weight for name in ("wte", "wpe")}
    return {name: decays[weight] for name, weight in weights.items() if weight in decays}

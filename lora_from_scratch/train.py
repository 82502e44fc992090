"""The training loop, in the open: forward, loss, backward, clip, step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GPT2ForSequenceClassification, get_scheduler

from lora_from_scratch.batches import TokenizedExamples, bucketed_batches, pad_batch
from lora_from_scratch.errors import UserError
from lora_from_scratch.gpt2 import classify
from lora_from_scratch.measure import PhaseClock

CLIP_NORM = 1.0
LOOK_EVERY = 20  # steps; looking at the loss makes a GPU wait, so not at every step


@dataclass(frozen=True)
class Training:
    """What a training did and what it took. Tokens are real ones, padding apart."""

    steps: int
    sentences: int
    tokens: int
    padding_efficiency: float
    seconds: float
    phases: dict[str, float]  # seconds of data, forward, backward, optimizer
    decay: float  # what weight decay alone made of a weight that got no gradient, as a factor
    metrics: list[dict[str, float | None]]  # one entry a step; no gradient norm where fp16 overflowed


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over whatever has `requires_grad`; biases and LayerNorm (every vector) are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = trainable[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=fused)


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
) -> Training:
    """Train what has `requires_grad`, with a learning rate that falls linearly from `lr` to 0.

    Args:
        precision: torch.float32, or the dtype that the forward pass is autocast to; the trained weights and
            the loss stay fp32. float16 gets a GradScaler, for gradients too small for its exponent.
        generator: draws the order of the sentences, and nothing else. Dropout draws from torch's global one.
        max_steps: stop after so many steps; the learning rate then reaches 0 there.

    Raises:
        UserError: the loss is no longer finite.
    """
    device = model.score.weight.device
    trainable = [p for p in model.parameters() if p.requires_grad]
    steps = epochs * math.ceil(len(examples) / batch_size)
    steps = min(steps, max_steps or steps)
    optimizer = make_optimizer(model, lr, weight_decay)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    loss_dtype = torch.promote_types(precision, model.score.weight.dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    decay = 1.0
    log = _StepLog(steps, trainable[0])
    clock = PhaseClock(device)
    model.train()

    with tqdm(total=min(epochs * len(examples), steps * batch_size), desc="train", unit=" sentences") as bar:
        clock.start()
        for indices in _batches_of_all_epochs(examples, batch_size, steps, generator):
            batch = pad_batch(examples, indices).to(device)
            clock.lap("data")

            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = classify(model, batch.input_ids, batch.lengths)
            loss = cross_entropy(logits.to(loss_dtype), batch.labels)
            clock.lap("forward")

            scaler.scale(loss).backward()
            clock.lap("backward")

            scaler.unscale_(optimizer)
            gradient_norm = nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            step_lr = schedule.get_last_lr()[0]
            if scaler.get_scale() >= scale:  # else fp16 gradients overflowed and the step was left out
                schedule.step()
                decay *= 1 - step_lr * weight_decay
            optimizer.zero_grad()
            clock.lap("optimizer")

            log.add(loss.detach(), gradient_norm, step_lr, indices.numel(), examples.lengths[indices])
            if len(log) % LOOK_EVERY == 0 or len(log) == steps:
                bar.set_postfix(loss=f"{log.recent_loss(lr):.3f}", refresh=False)
            bar.update(indices.numel())
        clock.stop()
    return log.summary(clock, decay)


def _batches_of_all_epochs(
    examples: TokenizedExamples, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    left = steps
    while left > 0:
        epoch = bucketed_batches(examples.lengths, batch_size, generator)[:left]
        yield from epoch
        left -= len(epoch)


class _StepLog:
    """What each step leaves behind. Losses stay on the device until somebody looks.

    They have their places from the start: small tensors kept from every step would lie between the large ones
    that come and go, and the allocator could never give that memory back.
    """

    def __init__(self, steps: int, like: torch.Tensor) -> None:
        self._losses = like.new_empty(steps)
        self._norms = like.new_empty(steps)
        self._rows: list[dict[str, float | None]] = []
        self._padded = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, loss: torch.Tensor, norm: torch.Tensor, lr: float, sentences: int, lengths: torch.Tensor
    ) -> None:
        self._losses[len(self)] = loss
        self._norms[len(self)] = norm
        self._rows.append({"lr": lr, "sentences": sentences, "tokens": int(lengths.sum())})
        self._padded += sentences * int(lengths.max())

    def recent_loss(self, lr: float) -> float:
        """The mean loss of the last steps; refuses to go on once it is no number."""
        loss = self._losses[max(0, len(self) - LOOK_EVERY) : len(self)].mean().item()
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} after {len(self)} steps: --lr {lr:g} is too high for this run"
            )
        return loss

    def summary(self, clock: PhaseClock, decay: float) -> Training:
        losses, norms = self._losses.tolist(), self._norms.tolist()
        metrics = [
            {"step": step, "loss": loss, "gradient_norm": norm if math.isfinite(norm) else None, **row}
            for step, (loss, norm, row) in enumerate(zip(losses, norms, self._rows, strict=True), start=1)
        ]
        tokens = sum(row["tokens"] for row in self._rows)
        return Training(
            steps=len(self),
            sentences=sum(row["sentences"] for row in self._rows),
            tokens=tokens,
            padding_efficiency=tokens / self._padded,
            seconds=clock.seconds,
            phases=clock.phases,
            decay=decay,
            metrics=metrics,
        )

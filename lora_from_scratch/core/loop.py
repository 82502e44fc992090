"""The training loop, in the open: forward, loss, backward, clip, step. And the same forward, to measure."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core.gpt2 import classify

CLIP_NORM = 1.0

Forward = Callable[[GPT2ForSequenceClassification, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """B sentences padded on the right to the longest of them, T tokens."""

    input_ids: torch.Tensor  # (B, T)
    lengths: torch.Tensor  # (B,), how many tokens of each row are real
    labels: torch.Tensor  # (B,)

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device, non_blocking=True) for t in (self.input_ids, self.lengths, self.labels)))


@dataclass
class TrainState:
    """All that a step reads and changes."""

    model: GPT2ForSequenceClassification
    optimizer: torch.optim.Optimizer  # over what learns, and nothing else
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler  # enabled for fp16 alone
    precision: torch.dtype = torch.float32  # of the forward pass; what learns stays as it is
    forward: Forward = classify
    # What weight decay alone has made of a weight that gets no gradient, as a factor, by parameter group.
    decays: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.decays = self.decays or [1.0] * len(self.optimizer.param_groups)

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class Step:
    """What one step leaves: tensors stay on the device until somebody looks."""

    loss: torch.Tensor
    gradient_norm: torch.Tensor  # before clipping
    lr: float


def train(
    state: TrainState, batches: Iterable[Batch], lap: Callable[[str], None] = lambda phase: None
) -> Iterator[Step]:
    """Take one step for each batch; `lap` hears the name of each phase when it ends."""
    state.model.train()
    for batch in batches:
        lap("data")
        yield train_step(state, batch, lap)


def train_step(state: TrainState, batch: Batch, lap: Callable[[str], None]) -> Step:
    """Forward in the state's precision, backward, clip to a norm of 1, AdamW, schedule."""
    optimizer, schedule, scaler = state.optimizer, state.schedule, state.scaler
    with torch.autocast(batch.labels.device.type, state.precision, enabled=state.precision != torch.float32):
        logits = state.forward(state.model, batch.input_ids, batch.lengths)  # (B, num_labels)
    loss = cross_entropy(logits, batch.labels)
    lap("forward")

    scaler.scale(loss).backward()
    lap("backward")

    scaler.unscale_(optimizer)
    gradient_norm = nn.utils.clip_grad_norm_(state.trainable, CLIP_NORM)
    scale, lr = scaler.get_scale(), schedule.get_last_lr()[0]
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() >= scale:  # else fp16 gradients overflowed and the step was left out
        groups = zip(state.decays, optimizer.param_groups, strict=True)
        state.decays = [decay * (1 - group["lr"] * group["weight_decay"]) for decay, group in groups]
        schedule.step()
    optimizer.zero_grad()
    lap("optimizer")
    return Step(loss.detach(), gradient_norm, lr)


@torch.no_grad()
def predict(
    model: GPT2ForSequenceClassification,
    batches: Iterable[Batch],
    precision: torch.dtype = torch.float32,
    forward: Forward = classify,
) -> Iterator[torch.Tensor]:
    """Logits `(B, num_labels)` of each batch, fp32 on the CPU, dropout off; the model stays in eval mode."""
    model.eval()
    for batch in batches:
        with torch.autocast(batch.labels.device.type, precision, enabled=precision != torch.float32):
            logits = forward(model, batch.input_ids, batch.lengths)
        yield logits.float().cpu()

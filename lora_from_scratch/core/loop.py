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
    share: float = 1.0  # of the step's loss, where several batches make one step


Steps = Iterable[Iterable[Batch]]  # for each step its batch, or the parts that the batch was split into
Lap = Callable[[str], None]


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
    decays: list[float | torch.Tensor] = field(default_factory=list)  # under fp16 they stay on the device

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


def train(state: TrainState, steps: Steps, lap: Lap = lambda phase: None) -> Iterator[Step]:
    """Take one step for each batch, whole or in parts; `lap` hears the name of each phase when it ends."""
    state.model.train()
    for parts in steps:
        yield train_step(state, parts, lap)


def train_step(state: TrainState, parts: Iterable[Batch], lap: Lap) -> Step:
    """Forward in the state's precision and backward, for each part; clip to a norm of 1, AdamW, schedule."""
    optimizer, schedule, scaler = state.optimizer, state.schedule, state.scaler
    enabled, whole_loss = state.precision != torch.float32, 0.0
    for batch in parts:
        lap("data")
        with torch.autocast(batch.labels.device.type, state.precision, enabled=enabled):
            logits = state.forward(state.model, batch.input_ids, batch.lengths)  # (B, num_labels)
        loss = batch.share * cross_entropy(logits, batch.labels)
        whole_loss += loss.detach()
        lap("forward")
        scaler.scale(loss).backward()
        lap("backward")

    scaler.unscale_(optimizer)
    gradient_norm = nn.utils.clip_grad_norm_(state.trainable, CLIP_NORM)
    lr = schedule.get_last_lr()[0]
    scaler.step(optimizer)  # or not, where fp16 gradients overflowed; asking the scaler would make a GPU wait
    scaler.update()
    taken = gradient_norm.isfinite().double() if scaler.is_enabled() else 1.0
    groups = zip(state.decays, optimizer.param_groups, strict=True)
    state.decays = [decay * (1 - taken * group["lr"] * group["weight_decay"]) for decay, group in groups]
    schedule.step()  # in either case, or the rate would not end at 0
    optimizer.zero_grad()
    lap("optimizer")
    return Step(whole_loss, gradient_norm, lr)


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

"""One pretraining between its first step and its last, and the same as named tensors and plain facts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy
import torch
from pretraining_model import (
    Settings,
    learning_rate,
    make_optimizers,
    model_config,
    next_token_loss,
    save_weights,
)
from pretraining_text import SENTENCE_ENDS, encode, window_starts, windows
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_from_scratch.core.loop import Step
from lora_from_scratch.errors import UserError
from lora_from_scratch.train.bar import Bar
from lora_from_scratch.train.checkpoints import Checkpoints
from lora_from_scratch.train.interrupts import Interrupted, Wish, listening
from lora_from_scratch.train.log import StepLog
from lora_from_scratch.train.state import MOMENTS, WEIGHTS, Snapshot

Loss = Callable[[GPT2LMHeadModel, Tensor], Tensor]
MOMENTS_OF = {torch.optim.Muon: ("momentum_buffer",), torch.optim.AdamW: MOMENTS}


class Pretraining:
    """The state of one pretraining: the model, the text it reads, its optimizers, and what it has noted.

    Nothing draws after the first step but the order of the windows, which is a function of the seed alone:
    the place in it is the number of steps that the log holds.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer, documents: list[str], device: str) -> None:
        """Draw the model and lay the documents out; the last `held_out` of them are kept for validation."""
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.draw = numpy.random.default_rng(settings.seed)
        documents = [documents[i] for i in self.draw.permutation(len(documents))]
        split = len(documents) - max(1, round(settings.held_out * len(documents)))
        self.stream = encode(tokenizer, documents[:split])
        self.held_out = encode(tokenizer, documents[split:])
        self.sentence_ends = [i for i in map(tokenizer.token_to_id, SENTENCE_ENDS) if i is not None]
        self.model = GPT2LMHeadModel(model_config(settings, dropout=0.0)).to(device)  # few epochs: no dropout
        self.model.set_attn_implementation("eager")  # the fastest for short windows once compiled
        self.optimizers = make_optimizers(self.model, settings)
        self.log = StepLog(settings.steps, self.model.device, torch.float32)
        self.started = time.time()
        self.checkpoint_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Since the start, in all stretches together, without what checkpoints took."""
        return time.time() - self.started - self.checkpoint_seconds

    def text_digest(self) -> str:
        """SHA-256 over the tokens of the text."""
        digest = hashlib.sha256(self.stream)
        digest.update(self.held_out)
        return digest.hexdigest()

    def starts(self) -> Iterator[list[int]]:
        """Where the windows of each batch start, endlessly: a new order and new places in every epoch."""
        queue: list[int] = []
        length, size = self.settings.n_positions, self.settings.batch_size
        while True:
            offset = int(self.draw.integers(length))
            epoch = window_starts(self.stream, self.sentence_ends, length, offset)
            if not epoch:
                raise UserError(
                    f"the text is too short: {len(self.stream)} tokens make no window of {length}"
                )
            queue += self.draw.permutation(epoch).tolist()
            while len(queue) >= size:
                yield queue[:size]
                del queue[:size]

    def train(self, out: Path, compiled: bool = False, checkpoints: Checkpoints | None = None) -> float:
        """Train, saving to `out` at every validation; returns the last validation loss in nats.

        With checkpoints it goes on from the one they were made with, and Ctrl-C and SIGTERM wait for the
        step, leave a checkpoint and raise `Interrupted`.
        """
        loss_function = torch.compile(next_token_loss) if compiled else next_token_loss
        if checkpoints and checkpoints.resumed:
            self.restore(checkpoints.resumed)
        done, total = len(self.log), self.settings.steps
        starts = islice(self.starts(), done, total)  # what was read is drawn again, and left aside
        self.model.train()
        with listening() if checkpoints else nullcontext(Wish()) as wish:
            for batch in Bar(starts, desc="pretrain", unit="step", initial=done, total=total):
                self._step(batch, loss_function)
                if len(self.log) % self.settings.validate_every == 0 and not self.log.is_complete:
                    self._validate(out)
                if checkpoints and (wish.signal or self._is_due(checkpoints)):
                    checkpoints.write(self)
                if wish.signal:
                    raise Interrupted("", wish.signal)
        return self._validate(out)

    def _is_due(self, checkpoints: Checkpoints) -> bool:
        due = checkpoints.are_due(len(self.log), ends_epoch=False) or checkpoints.are_overdue
        return due and not self.log.is_complete

    def _step(self, starts: list[int], loss_function: Loss) -> None:
        settings, lr = self.settings, learning_rate(len(self.log), self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        batch = windows(self.stream, starts, settings.n_positions).to(self.model.device)
        loss = loss_function(self.model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.log.add(Step(loss.detach(), norm, lr), [torch.full((len(batch),), settings.n_positions)])

    def _validate(self, out: Path) -> float:
        """The validation loss, shown, and the weights as they are, saved."""
        held_out = self.validation_loss()
        last = self.log.tensors()["losses"][-1]
        Bar.write(f"step {len(self.log)}: training loss {last:.4f}, validation loss {held_out:.4f}")
        save_weights(self.model, self.settings, out)
        return held_out

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean next-token loss over the windows of the held-out documents, in nats."""
        length = self.settings.n_positions
        starts = window_starts(self.held_out, self.sentence_ends, length)
        batch = windows(self.held_out, starts, length).to(self.model.device)
        self.model.eval()
        losses = [next_token_loss(self.model, part) * len(part) for part in batch.split(64)]
        self.model.train()
        return (sum(losses) / len(batch)).item()

    @property
    def is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())

    def snapshot(self) -> Snapshot:
        """Where the pretraining stands. The tensors are its own: write them before the next step."""
        tensors = {f"{WEIGHTS}{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, moments, keys in self._moments():
            tensors |= {f"{key}.{name}": moments[key] for key in keys}
        tensors |= {f"log.{name}": column for name, column in self.log.tensors().items()}
        return Snapshot(tensors, {"seconds": self.seconds, "checkpoint_seconds": self.checkpoint_seconds})

    @torch.no_grad()
    def restore(self, found: Snapshot) -> None:
        """Stand where the snapshot was taken, by a pretraining of the same settings and text."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(found.tensors[f"{WEIGHTS}{name}"])
        for name, moments, keys in self._moments():
            for key in keys:
                moments[key] = found.tensors[f"{key}.{name}"].to(self.model.device, copy=True)
        self.log.restore(found.under("log."), [])
        self.checkpoint_seconds = found.facts["checkpoint_seconds"]
        self.started = time.time() - found.facts["seconds"] - self.checkpoint_seconds

    def _moments(self) -> Iterator[tuple[str, dict[str, Tensor], tuple[str, ...]]]:
        """Of each parameter its name, what its optimizer keeps of it, and the names of that."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield names[parameter], optimizer.state[parameter], MOMENTS_OF[type(optimizer)]

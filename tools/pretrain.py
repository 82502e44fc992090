"""How the bundled mini-gpt2 was made: plain text in, a pretrained GPT-2 of a few million parameters out.

    python tools/pretrain.py TEXT [TEXT ...] --out FOLDER --compile

Each TEXT is a UTF-8 file, `.gz` or not, with one document a line. Everything that decides the outcome is a
field of `Settings`; `pretraining.json`, written beside the weights, says which and from what text.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy
import torch
from pretraining_text import (
    END_OF_TEXT,
    SENTENCE_ENDS,
    encode,
    read_documents,
    train_tokenizer,
    window_starts,
    windows,
)
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from tqdm import tqdm, trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lora_from_scratch.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Every choice of the pretraining. Lengths are in tokens."""

    vocab_size: int = 8192
    n_positions: int = 128
    n_embd: int = 256
    n_layer: int = 4
    n_head: int = 4
    batch_size: int = 64
    steps: int = 6000
    warmup_steps: int = 100
    lr: float = 8e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    held_out: float = 0.01  # of the documents, for the validation loss
    validate_every: int = 1000
    seed: int = 0


def next_token_loss(model: GPT2LMHeadModel, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each token given those before it; bf16 products, fp32 loss."""
    with torch.autocast(batch.device.type, torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def make_optimizers(model: GPT2LMHeadModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW without decay for embeddings, biases and LayerNorm.

    Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") orthogonalises each
    update; scaled to AdamW's update size (Liu et al. 2025, arXiv:2502.16982) it shares AdamW's learning rate.
    """
    blocks = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if ".h." not in name or p.ndim < 2]
    return [
        torch.optim.Muon(
            blocks, lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then linear decay to zero."""
    left = (settings.steps - step) / (settings.steps - settings.warmup_steps)
    return settings.lr * min((step + 1) / settings.warmup_steps, left)


class Pretraining:
    """The state of one pretraining: the model, the text it reads, and its optimizers."""

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

    def batches(self) -> Iterator[torch.Tensor]:
        """Endless batches of windows, in a new order and at new places in every epoch."""
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
                yield windows(self.stream, queue[:size], length).to(self.model.device)
                del queue[:size]

    def train(self, out: Path, compiled: bool = False) -> float:
        """Train, saving to `out` at every validation; returns the last validation loss in nats."""
        settings, model = self.settings, self.model
        loss_function = torch.compile(next_token_loss) if compiled else next_token_loss
        batches = self.batches()
        model.train()
        for step in trange(settings.steps, desc="pretrain", unit="step"):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, settings)
            loss = loss_function(model, next(batches))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps:
                held_out = self.validation_loss()
                tqdm.write(
                    f"step {step + 1}: training loss {loss.item():.4f}, validation loss {held_out:.4f}"
                )
                save_weights(model, settings, out)
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


def model_config(settings: Settings, dropout: float) -> GPT2Config:
    """GPT-2's architecture at the size of the settings; the end-of-text token is id 0."""
    return GPT2Config(
        vocab_size=settings.vocab_size,
        n_positions=settings.n_positions,
        n_embd=settings.n_embd,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        activation_function="gelu_pytorch_tanh",  # gelu_new as one fused operation
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def save_weights(model: GPT2LMHeadModel, settings: Settings, out: Path) -> None:
    """Write config.json and model.safetensors in bf16, with GPT-2's own dropout for whoever fine-tunes it.

    The configuration asks for fp32: who loads it without naming a type, as PEFT does, computes in that.
    """
    copy = GPT2LMHeadModel(model_config(settings, dropout=0.1))
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(out)
    copy.config.dtype = "float32"
    copy.config.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)


def pretrain(
    texts: list[Path], out: Path, settings: Settings, device: str = "cpu", compiled: bool = False
) -> None:
    """Tokenizer, model and record into the folder `out`."""
    started = time.time()
    documents = list(read_documents(texts))
    tokenizer = train_tokenizer(documents, settings.vocab_size)
    settings = replace(settings, vocab_size=tokenizer.get_vocab_size())
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=settings.n_positions,
    ).save_pretrained(out)
    run = Pretraining(settings, tokenizer, documents, device)
    record = {
        "settings": asdict(settings),
        "texts": [path.name for path in texts],
        "documents": len(documents),
        "tokens_in_text": len(run.stream),
        "tokens_read": settings.steps * settings.batch_size * settings.n_positions,
        "parameters": run.model.num_parameters(),
        "validation_loss_nats": run.train(out, compiled),
        "hours": (time.time() - started) / 3600,
        "torch": torch.__version__,
    }
    (out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "texts", nargs="+", type=Path, metavar="TEXT", help="UTF-8, .gz or not, one document a line"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="twice as fast; needs a C++ compiler")
    flags = parser.parse_args()
    try:
        pretrain(flags.texts, flags.out, Settings(steps=flags.steps), flags.device, flags.compile)
    except (UserError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

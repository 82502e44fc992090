"""Runs of a few steps on a tiny base of random weights, dropout on, and all that comes out of them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from conftest import tiny_config
from safetensors.torch import save_file
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.base.load import BUNDLED_MODEL
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import evaluate_prepared, train_prepared
from lora_from_scratch.runs.prepare import Prepared, prepare
from lora_from_scratch.runs.sources import Sources, find_sources
from lora_from_scratch.train import checkpoints as of_checkpoints
from lora_from_scratch.train.checkpoints import Checkpoints, found_in
from lora_from_scratch.train.log import Training

STEPS = 8  # two epochs of 14 sentences, by 4: the last batch of each is short
METHODS = ("lora", "full", "prelayer", "prefix")
RELATIVES = ("dora", "lora-fa", "bitfit", "ia3")


def write_base(folder: Path, **changes: object) -> Path:
    """The tiny GPT-2, dropout 0.1 unless changed, with the bundled tokenizer."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(vocab_size=8192, initializer_range=0.2, **changes))
    model.config.save_pretrained(folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "score.weight"}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_MODEL / name, folder / name)
    return folder


def write_sentences(path: Path) -> Path:
    """16 of them, of which 2 are held out."""
    rows = [f"{'so ' * i}{word},{word}\n" for i in range(8) for word in ("good", "dull")]
    path.write_text(f"text,label\n{''.join(rows)}", encoding="utf-8")
    return path


@cache
def _sources() -> tuple[dict[str, object], Sources]:
    with tempfile.TemporaryDirectory() as name:
        base, dataset = write_base(Path(name, "base")), write_sentences(Path(name, "reviews.csv"))
        asked = {"model": str(base), "dataset": str(dataset), "device": "cpu", "precision": "fp32"}
        asked |= {"epochs": 2, "batch_size": 4}
        return asked, find_sources(RunConfig(**asked), keep=True)


def ready(**changes: object) -> Prepared:
    asked, sources = _sources()
    return prepare(RunConfig(**{**asked, **changes}), sources)


@dataclass(frozen=True)
class Outcome:
    """All that has to be equal, bit for bit."""

    metrics: str  # JSON: every loss, norm, rate, size, and what was validated
    scores: str
    decay: dict[str, float]
    weights: dict[str, torch.Tensor]
    drawn_next: bytes  # the state of torch's global generator

    def __eq__(self, other: Outcome) -> bool:
        assert self.metrics == other.metrics
        assert self.weights.keys() == other.weights.keys()
        differing = [n for n, t in self.weights.items() if not torch.equal(t, other.weights[n])]
        assert differing == []
        rest = (self.scores, self.decay, self.drawn_next)
        assert rest == (other.scores, other.decay, other.drawn_next)
        return True


def outcome(prepared: Prepared, training: Training) -> Outcome:
    drawn_next = torch.get_rng_state().numpy().tobytes()
    scores = json.dumps(evaluate_prepared(prepared).probabilities)
    weights = {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}
    return Outcome(json.dumps(training.metrics), scores, dict(training.decay), weights, drawn_next)


def trained(prepared: Prepared, checkpoints: Checkpoints | None = None) -> Outcome:
    return outcome(prepared, train_prepared(prepared, checkpoints))


@contextmanager
def all_kept() -> Iterator[None]:
    """Within the block no checkpoint makes room for the next."""
    kept, of_checkpoints.KEPT = of_checkpoints.KEPT, 10**6
    try:
        yield
    finally:
        of_checkpoints.KEPT = kept


def with_all_checkpoints(folder: Path, **changes: object) -> tuple[Outcome, list[Path]]:
    """A run that wrote one after every step, and these, the oldest first."""
    with all_kept():
        outcome = trained(ready(**changes), Checkpoints(folder, {}, every=1))
    return outcome, found_in(folder)[::-1]

"""Logits, predictions, and how good they are."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core import loop
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch, sorted_batches
from lora_from_scratch.errors import UserError
from lora_from_scratch.fast.gpt2 import classify
from lora_from_scratch.fast.packed_weights import packed_layers
from lora_from_scratch.train.measure import Memory, read_memory, reset_peak_memory
from lora_from_scratch.train.precision import DTYPES


@dataclass(frozen=True)
class Score:
    """`accuracy` and `f1` in percent; `margin` is half the accuracy's 95 % confidence interval."""

    accuracy: float
    f1: float
    margin: float


@dataclass(frozen=True)
class Evaluation:
    """What a model was measured to be, sentence by sentence in the order of the data."""

    precision: str
    seconds: float
    score: Score
    predictions: list[int]  # label ids
    probabilities: list[float]  # of these labels
    memory: Memory


def predict_logits(
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    batch_size: int = 64,
    precision: torch.dtype = torch.float32,
    plain: bool = False,
) -> Tensor:
    """Logits `(N, num_labels)`, fp32 on the CPU, in the order of the examples, dropout off.

    With `plain` they are computed by `core/` alone, without `fast/`.
    """
    was_training = model.training
    logits = torch.empty(len(examples), model.config.num_labels)
    indices = sorted_batches(examples.lengths, batch_size)
    bar = tqdm(indices, desc="evaluate", unit="batch", leave=False)
    batches = (pad_batch(examples, part).to(model.score.weight.device) for part in bar)
    forward, block = (plain_classify, nullcontext()) if plain else (classify, packed_layers(model, precision))
    try:
        with torch.no_grad(), block:
            for part, result in zip(indices, loop.predict(model, batches, precision, forward), strict=True):
                logits[part] = result
    finally:
        model.train(was_training)
    return logits


def evaluate(
    model: GPT2ForSequenceClassification, examples: TokenizedExamples, precision: str, plain: bool = False
) -> Evaluation:
    """Measure a model on labelled sentences. Raises UserError where a logit is infinite or no number."""
    device = model.score.weight.device
    reset, started = reset_peak_memory(device), perf_counter()
    logits = predict_logits(model, examples, precision=DTYPES[precision], plain=plain)
    seconds = perf_counter() - started  # the logits are on the CPU by now: the device has finished
    if not logits.isfinite().all():
        raise UserError("this model's logits are not finite, so it has no accuracy; a lower --lr may help")
    probabilities, predictions = logits.softmax(dim=1).max(dim=1)
    reached = score(predictions, examples.labels, logits.shape[1])
    memory = read_memory(device, reset)
    return Evaluation(precision, seconds, reached, predictions.tolist(), probabilities.tolist(), memory)


def score(predictions: Tensor, labels: Tensor, num_labels: int) -> Score:
    """Accuracy and F1 of predicted label ids, both `(N,)`.

    F1 = 2 TP / (2 TP + FP + FN) of the positive class, label 1; with more than two labels the mean over all
    classes (macro). A class that is neither predicted nor present counts 0. The margin is the normal
    approximation, 1.96 * sqrt(a (1 - a) / N).
    """
    right = predictions == labels
    accuracy = right.double().mean().item()
    margin = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(labels))
    hits, *named = (ids.bincount(minlength=num_labels) for ids in (labels[right], predictions, labels))
    f1s = (2 * hits.double() / sum(named).clamp(min=1)).tolist()  # named: TP + FP and TP + FN of each class
    f1 = f1s[1] if num_labels == 2 else sum(f1s) / num_labels
    return Score(100 * accuracy, 100 * f1, 100 * margin)


@dataclass(frozen=True)
class Difference:
    """How far two sets of logits lie apart."""

    largest: float  # max |delta logit|
    scale: float  # max |logit|, at least 1
    flipped: int  # predictions that differ
    not_finite: int  # values

    def within(self, tolerance: float) -> bool:
        """All finite, and no logit off by more than `tolerance` times the largest: a flip is then a tie."""
        return not self.not_finite and self.largest <= tolerance * self.scale

    def __str__(self) -> str:
        counts = f"flipped predictions {self.flipped}, non-finite values {self.not_finite}"
        return f"max |delta logit| {self.largest:.1e}, {counts}"


def compare(logits: Tensor, expected: Tensor) -> Difference:
    """Two `(N, num_labels)` tensors of logits for the same sentences."""
    finite = logits.isfinite() & expected.isfinite()
    return Difference(
        largest=(logits - expected)[finite].abs().max().item() if finite.any() else math.nan,
        scale=max([1.0, *expected[finite].abs().tolist()]),
        flipped=int((logits.argmax(dim=1) != expected.argmax(dim=1)).sum()),
        not_finite=int((~finite).sum()),
    )

"""Logits, predictions, and how good they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter

import torch
from tqdm import tqdm
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core import loop
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch, sorted_batches
from lora_from_scratch.errors import UserError
from lora_from_scratch.fast.gpt2 import classify
from lora_from_scratch.fast.packed import packed_layers
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
) -> torch.Tensor:
    """The model's logits, `(N, num_labels)` in fp32 on the CPU, in the order of the examples, dropout off.

    Args:
        plain: compute by `core/` alone, without `fast/`.
    """
    was_training = model.training
    logits = torch.empty(len(examples), model.config.num_labels)
    indices = sorted_batches(examples.lengths, batch_size)
    bar = tqdm(indices, desc="evaluate", unit="batch", leave=False)
    batches = (pad_batch(examples, part).to(model.score.weight.device) for part in bar)
    try:
        if plain:
            results = list(loop.predict(model, batches, precision, plain_classify))
        else:
            with torch.no_grad(), packed_layers(model, precision):
                results = list(loop.predict(model, batches, precision, classify))
    finally:
        model.train(was_training)
    for part, result in zip(indices, results, strict=True):
        logits[part] = result
    return logits


def evaluate(
    model: GPT2ForSequenceClassification, examples: TokenizedExamples, precision: str, plain: bool = False
) -> Evaluation:
    """Measure a model on labelled sentences.

    Raises:
        UserError: a logit is infinite or no number.
    """
    device = model.score.weight.device
    reset, started = reset_peak_memory(device), perf_counter()
    logits = predict_logits(model, examples, precision=DTYPES[precision], plain=plain)
    seconds = perf_counter() - started  # the logits are on the CPU by now: the device has finished
    if not logits.isfinite().all():
        raise UserError("this model's logits are not finite, so it has no accuracy; a lower --lr may help")
    probabilities, predictions = logits.softmax(dim=1).max(dim=1)
    return Evaluation(
        precision,
        seconds,
        score(predictions, examples.labels, logits.shape[1]),
        predictions.tolist(),
        probabilities.tolist(),
        read_memory(device, reset),
    )


def score(predictions: torch.Tensor, labels: torch.Tensor, num_labels: int) -> Score:
    """Accuracy and F1 of predicted label ids, both `(N,)`.

    F1 = 2 TP / (2 TP + FP + FN) of the positive class, label 1; with more than two labels the mean over all
    classes (macro). A class that is neither predicted nor present counts 0. The margin is the normal
    approximation, 1.96 * sqrt(a (1 - a) / N).
    """
    accuracy = (predictions == labels).double().mean().item()
    classes = [1] if num_labels == 2 else range(num_labels)
    f1 = sum(_f1(predictions == c, labels == c) for c in classes) / len(classes)
    margin = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(labels))
    return Score(100 * accuracy, 100 * f1, 100 * margin)


def _f1(predicted: torch.Tensor, actual: torch.Tensor) -> float:
    true_positives = int((predicted & actual).sum())
    named = int(predicted.sum()) + int(actual.sum())  # 2 TP + FP + FN
    return 2 * true_positives / named if named else 0.0


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
        return (
            f"max |delta logit| {self.largest:.1e}, flipped predictions {self.flipped}, "
            f"non-finite values {self.not_finite}"
        )


def compare(logits: torch.Tensor, expected: torch.Tensor) -> Difference:
    """Two `(N, num_labels)` tensors of logits for the same sentences."""
    finite = logits.isfinite() & expected.isfinite()
    return Difference(
        largest=(logits - expected)[finite].abs().max().item() if finite.any() else float("nan"),
        scale=max(1.0, expected[finite].abs().max().item() if finite.any() else 1.0),
        flipped=int((logits.argmax(dim=1) != expected.argmax(dim=1)).sum()),
        not_finite=int((~finite).sum()),
    )

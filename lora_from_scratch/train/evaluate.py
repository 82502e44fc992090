"""Logits, predictions, and how good they are."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import NormalDist
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core import loop
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch, sorted_batches
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.fast.gpt2 import classify
from lora_from_scratch.fast.packed_weights import packed_layers
from lora_from_scratch.train.bar import Bar
from lora_from_scratch.train.measure import Memory, read_memory, reset_peak_memory
from lora_from_scratch.train.precision import DTYPES
from lora_from_scratch.train.processes import processes

Z_95 = NormalDist().inv_cdf(0.975)  # 1.96
SENTENCES, TOKENS = 64, 1024  # in a batch of an evaluation, at most


@dataclass(frozen=True)
class Score:
    """All in percent; `interval` is the accuracy's 95 % confidence interval."""

    accuracy: float
    f1: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """What a model was measured to be, sentence by sentence in the order of the data."""

    precision: str
    seconds: float
    score: Score
    loss: float  # the mean cross entropy, in nats
    predictions: list[int]  # label ids
    probabilities: list[float]  # of these labels
    memory: Memory


def predict_logits(
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    precision: torch.dtype = torch.float32,
    plain: bool = False,
) -> Tensor:
    """Logits `(N, num_labels)`, fp32 on the CPU, in the order of the examples, dropout off.

    Several processes share the sentences out, and each gets the logits of all.
    With `plain` they are computed by `core/` alone, without `fast/`.
    """
    was_training = model.training
    logits = torch.zeros(len(examples), model.config.num_labels, dtype=torch.float32)
    indices = processes().own(sorted_batches(examples.lengths, SENTENCES, TOKENS))
    bar = Bar(indices, desc="evaluate", unit="batch", leave=False)
    batches = (pad_batch(examples, part, model.score.weight.device) for part in bar)
    forward, block = (plain_classify, nullcontext()) if plain else (classify, packed_layers(model, precision))
    try:
        with torch.no_grad(), block:
            for part, result in zip(indices, loop.predict(model, batches, precision, forward), strict=True):
                logits[part] = result
    finally:
        model.train(was_training)
    return processes().summed(logits)


def evaluate(
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    precision: str,
    plain: bool = False,
    positive: int | None = None,
) -> Evaluation:
    """Measure a model on labelled sentences; F1 is that of label id `positive`, see `score`.

    Raises UserError where a logit is infinite or no number.
    """
    device = model.score.weight.device
    reset, started = reset_peak_memory(device), perf_counter()
    logits = predict_logits(model, examples, precision=DTYPES[precision], plain=plain)
    seconds = perf_counter() - started  # the logits are on the CPU by now: the device has finished
    if not logits.isfinite().all():
        raise UserError("this model's logits are not finite, so it has no accuracy; a lower --lr may help")
    probabilities, predictions = logits.softmax(dim=1).max(dim=1)
    reached = score(predictions, examples.labels, logits.shape[1], positive)
    loss, memory = cross_entropy(logits, examples.labels).item(), read_memory(device, reset)
    return Evaluation(precision, seconds, reached, loss, predictions.tolist(), probabilities.tolist(), memory)


def validate(
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    precision: torch.dtype,
    plain: bool = False,
) -> dict[str, float | None]:
    """The mean cross entropy in nats and the accuracy in percent, as training notes them beside a step.

    None where a logit is infinite or no number. Nothing is drawn, and the model stays as it is.
    """
    logits = predict_logits(model, examples, precision=precision, plain=plain)
    loss = accuracy = None
    if logits.isfinite().all():
        loss = cross_entropy(logits, examples.labels).item()
        accuracy = score(logits.argmax(dim=1), examples.labels, logits.shape[1]).accuracy
    return {"validation_loss": loss, "validation_accuracy": accuracy}


def score(predictions: Tensor, labels: Tensor, num_labels: int, positive: int | None = None) -> Score:
    """Accuracy and F1 of predicted label ids, both `(N,)`.

    F1 = 2 TP / (2 TP + FP + FN) of the class `positive`; where None is named, of label 1 of two, and with
    more labels the mean over all classes (macro). A class that is neither predicted nor present counts 0.
    """
    ids = (labels[predictions == labels], predictions, labels)
    hits, *named = (some.bincount(minlength=num_labels) for some in ids)
    f1s = (2 * hits.double() / sum(named).clamp(min=1)).tolist()  # named: TP + FP and TP + FN of each class
    if positive is None and num_labels == 2:
        positive = 1
    f1 = sum(f1s) / num_labels if positive is None else f1s[positive]
    right, total = len(ids[0]), len(labels)
    return Score(100 * right / total, 100 * f1, wilson(right, total))


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval, in percent, of a share of which `right` of `total` were seen.

    It holds each p that lies within 1.96 of its own standard errors, sqrt(p (1 - p) / total), of what was
    seen (Wilson 1927). So it stays within 0 .. 100, and has a width also where all were right, unlike the
    one with the standard error of the share that was seen.
    """
    share, spread = right / total, Z_95**2 / total
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = ((middle + sign * half) / (1 + spread) for sign in (-1, 1))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def positive_id(asked: str | None, label_names: list[str]) -> int | None:
    """The label id of the class whose F1 is asked for, by name; UserError if there is no such label."""
    if asked is None:
        return None
    if asked not in label_names:
        names = quoted(*label_names)
        raise UserError(f"--positive-class {quoted(asked)}: there is no such label; choose one of {names}")
    return label_names.index(asked)


def class_counts(labels: Tensor, label_names: list[str]) -> dict[str, int]:
    """How often each class, by name, is among label ids `(N,)`."""
    return dict(zip(label_names, labels.bincount(minlength=len(label_names)).tolist(), strict=True))


def baseline(seen: dict[str, int], measured: dict[str, int]) -> dict[str, str | float]:
    """What always saying the commonest class of `seen` scores, in percent, on `measured`: counts by name.

    Of classes that are equally common in `seen` it is the one that scores more.
    """
    label = max(seen, key=lambda name: (seen[name], measured[name]))
    return {"label": label, "accuracy": 100 * measured[label] / sum(measured.values())}


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

"""Logits, predictions, and how good they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.batches import TokenizedExamples, pad_batch, sorted_batches
from lora_from_scratch.gpt2 import classify
from lora_from_scratch.packed import packed_layers


@dataclass(frozen=True)
class Score:
    """`accuracy` and `f1` in percent; `margin` is half the accuracy's 95 % confidence interval."""

    accuracy: float
    f1: float
    margin: float


@torch.no_grad()
def predict_logits(
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    batch_size: int = 64,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The model's logits, `(N, num_labels)` in fp32 on the CPU, in the order of the examples, dropout off."""
    device = model.score.weight.device
    was_training = model.training
    model.eval()
    logits = torch.empty(len(examples), model.config.num_labels)
    batches = sorted_batches(examples.lengths, batch_size)
    with (
        packed_layers(model, precision),
        torch.autocast(device.type, precision, enabled=precision != torch.float32),
    ):
        for indices in tqdm(batches, desc="evaluate", unit="batch", leave=False):
            batch = pad_batch(examples, indices).to(device)
            logits[indices] = classify(model, batch.input_ids, batch.lengths).float().cpu()
    model.train(was_training)
    return logits


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

"""Metrics against scikit-learn; logits in the order of the sentences."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config
from sklearn.metrics import accuracy_score, f1_score
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.data.batches import pad_batch
from lora_from_scratch.train.evaluate import predict_logits, score


@pytest.mark.parametrize("num_labels", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_accuracy_and_f1_agree_with_scikit_learn(num_labels, seed):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_labels, (57,), generator=draw)
    noise = torch.randint(num_labels, (57,), generator=draw)
    predictions = torch.where(torch.rand(57, generator=draw) < 0.6, labels, noise)
    ours = score(predictions, labels, num_labels)
    average = "binary" if num_labels == 2 else "macro"
    assert ours.accuracy == pytest.approx(100 * accuracy_score(labels, predictions), rel=1e-12)
    assert ours.f1 == pytest.approx(100 * f1_score(labels, predictions, average=average), rel=1e-12)


def test_scores_by_hand():
    # predicted 1 1 0 0 1, actual 1 0 0 1 1: TP 2, FP 1, FN 1, so F1 = 4 / 6; 3 of 5 right
    ours = score(torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 1, 1]), num_labels=2)
    assert ours.accuracy == pytest.approx(60)
    assert ours.f1 == pytest.approx(100 * 4 / 6)
    assert ours.margin == pytest.approx(100 * 1.96 * (0.6 * 0.4 / 5) ** 0.5)
    nothing = score(torch.tensor([0, 0]), torch.tensor([0, 0]), num_labels=2)
    assert (nothing.accuracy, nothing.f1, nothing.margin) == (100, 0, 0)


def test_an_absent_class_counts_zero_in_the_macro_mean():
    predictions, labels = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    expected = f1_score(labels, predictions, labels=[0, 1, 2], average="macro", zero_division=0)
    assert score(predictions, labels, num_labels=3).f1 == pytest.approx(100 * expected)


def test_the_margin_is_the_one_the_design_gives():
    """With n = 872 the 95 % interval at 92 % is about +-1.8 points."""
    labels = torch.ones(872, dtype=torch.long)
    predictions = labels.clone()
    predictions[: round(0.08 * 872)] = 0
    assert score(predictions, labels, 2).margin == pytest.approx(1.8, abs=0.05)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_logits_come_in_the_order_of_the_sentences(tiny_gpt2, tiny_examples, batch_size):
    tiny_gpt2.train()  # predict_logits turns dropout off and puts the mode back
    logits = predict_logits(tiny_gpt2, tiny_examples, batch_size)
    assert tiny_gpt2.training and not logits.requires_grad
    tiny_gpt2.eval()
    for i in range(len(tiny_examples)):
        alone = pad_batch(tiny_examples, torch.tensor([i])).input_ids
        with torch.no_grad():
            torch.testing.assert_close(logits[i], tiny_gpt2(input_ids=alone).logits[0], rtol=1e-5, atol=1e-5)


def test_logits_of_three_labels_in_bf16(tiny_examples):
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(num_labels=3)).eval()
    exact = predict_logits(model, tiny_examples)
    rounded = predict_logits(model, tiny_examples, precision=torch.bfloat16)
    assert exact.shape == (48, 3) and rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02)

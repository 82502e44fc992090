"""Metrics against scikit-learn; logits in the order of the sentences."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.data.batches import pad_batch
from lora_from_scratch.errors import UserError
from lora_from_scratch.train.evaluate import (
    baseline,
    class_counts,
    positive_id,
    predict_logits,
    score,
    wilson,
)


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
    assert ours.interval == wilson(3, 5)
    nothing = score(torch.tensor([0, 0]), torch.tensor([0, 0]), num_labels=2)
    assert (nothing.accuracy, nothing.f1) == (100, 0)


@pytest.mark.parametrize("num_labels", [2, 4])
def test_f1_is_that_of_the_class_that_is_named(num_labels):
    draw = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(num_labels, (2, 57), generator=draw)
    each = f1_score(labels, predictions, average=None)
    ours = [score(predictions, labels, num_labels, positive).f1 for positive in range(num_labels)]
    assert ours == pytest.approx(list(100 * each), rel=1e-12)
    assert len({round(f1, 6) for f1 in ours}) == num_labels


def test_a_class_is_named_by_its_label_alone():
    names = ["bad", "good", "so-so"]
    assert [positive_id(name, names) for name in (None, "bad", "so-so")] == [None, 0, 2]
    for wrong in ("1", "Good", ""):
        with pytest.raises(UserError, match="there is no such label; choose one of 'bad', 'good', 'so-so'"):
            positive_id(wrong, names)


def test_an_absent_class_counts_zero_in_the_macro_mean():
    predictions, labels = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    expected = f1_score(labels, predictions, labels=[0, 1, 2], average="macro", zero_division=0)
    assert score(predictions, labels, num_labels=3).f1 == pytest.approx(100 * expected)


@pytest.mark.parametrize(
    ("right", "total"), [(0, 1), (1, 1), (0, 30), (30, 30), (29, 30), (387, 498), (802, 872), (4, 10**6)]
)
def test_the_interval_is_scipys(right, total):
    low, high = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right, total) == pytest.approx((100 * low, 100 * high), abs=1e-9)
    assert 0 <= wilson(right, total)[0] < wilson(right, total)[1] <= 100


def test_the_interval_is_as_wide_as_the_design_says():
    """With n = 872 the 95 % interval at 92 % is about 1.8 points either way."""
    low, high = wilson(802, 872)
    assert (high - low) / 2 == pytest.approx(1.8, abs=0.05)


def test_the_baseline_is_the_commonest_class_of_train_on_what_is_measured():
    names = ["a", "b", "c"]
    train = class_counts(torch.tensor([2, 0, 2, 0, 0]), names)
    validation = class_counts(torch.tensor([2, 2, 2, 0]), names)
    assert (train, validation) == ({"a": 3, "b": 0, "c": 2}, {"a": 1, "b": 0, "c": 3})
    assert baseline(train, validation) == {"label": "a", "accuracy": 25}
    assert baseline(validation, validation) == {"label": "c", "accuracy": 75}
    assert baseline({**train, "c": 3}, validation) == {"label": "c", "accuracy": 75}


@pytest.mark.parametrize(("sentences", "tokens"), [(1, 1024), (7, 1024), (64, 1024), (64, 20)])
def test_logits_come_in_the_order_of_the_sentences(tiny_gpt2, tiny_examples, monkeypatch, sentences, tokens):
    monkeypatch.setattr("lora_from_scratch.train.evaluate.SENTENCES", sentences)
    monkeypatch.setattr("lora_from_scratch.train.evaluate.TOKENS", tokens)
    tiny_gpt2.train()  # predict_logits turns dropout off and puts the mode back
    logits = predict_logits(tiny_gpt2, tiny_examples)
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


def test_another_default_dtype_does_not_reach_the_logits(tiny_gpt2, tiny_examples, request):
    expected = predict_logits(tiny_gpt2, tiny_examples)
    request.getfixturevalue("float64_by_default")
    found = predict_logits(tiny_gpt2, tiny_examples)
    assert found.dtype == torch.float32 and torch.equal(found, expected)

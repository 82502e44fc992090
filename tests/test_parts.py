"""A batch computed in parts, as many as were asked for or as spare memory: the result is the same."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import DEVICES, tiny_config
from small_runs import ready
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, adapt
from lora_from_scratch.compare.accounting import account, account_model
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.core.loop import Batch
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch
from lora_from_scratch.fast.embedding_rows import Occurring
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.switch import fast_training
from lora_from_scratch.train import parts as parts_of_a_batch
from lora_from_scratch.train import processes
from lora_from_scratch.train.log import Training
from lora_from_scratch.train.parts import Parting
from lora_from_scratch.train.training import Course, train

METHODS = {"lora": {"rank": 2, "dropout": 0.0}, "full": {}, "prelayer": {}, "prefix": {"prefix_length": 3}}


def still_config() -> GPT2Config:
    """Without dropout, and with weights large enough for the sentences to differ."""
    return tiny_config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, initializer_range=0.2)


def trained_in_parts(
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    parts: int,
    fast: bool,
    lr: float = 1e-3,
) -> Training:
    """One epoch of five batches, the last of which has 8 sentences, not 10."""
    block = fast_training(model, examples, torch.float32) if fast else nullcontext(Occurring(examples))
    with block as occurring:
        course = Course(
            epochs=1,
            batch_size=10,
            lr=lr,
            weight_decay=0.1,
            precision=torch.float32,
            generator=torch.Generator().manual_seed(0),
            forward=fast_classify if fast else plain_classify,
            gradient_accumulation=parts,
            rows=occurring.rows,
        )
        training = train(model, occurring.examples, course)
        occurring.decay = training.decay
    return training


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_parts_gives_the_result_of_a_whole_one(method, fast, tiny_examples):
    torch.manual_seed(0)
    start = adapt(GPT2ForSequenceClassification(still_config()), RunConfig(method=method, **METHODS[method]))
    whole = copy.deepcopy(start)
    expected = trained_in_parts(whole, tiny_examples, 1, fast)
    assert [row["sentences"] for row in expected.metrics].count(8) == 1
    assert not torch.equal(whole.score.weight, start.score.weight)
    for parts in (1, 2, 3, 16, 17):  # of 10: 10; 5 and 5; 4, 3 and 3; ten times 1
        model = copy.deepcopy(start)
        training = trained_in_parts(model, tiny_examples, parts, fast)
        for row, other in zip(training.metrics, expected.metrics, strict=True):
            assert row == pytest.approx(other, rel=1e-6, abs=1e-6)
        assert_same_weights(model, whole)


def test_with_dropout_the_parts_of_a_batch_draw_other_masks(tiny_examples):
    torch.manual_seed(0)
    start = adapt(GPT2ForSequenceClassification(tiny_config(embd_pdrop=0.5)), RunConfig(method="full"))
    losses = []
    for parts in (1, 1, 2):
        torch.manual_seed(1)
        losses.append(trained_in_parts(copy.deepcopy(start), tiny_examples, parts, False).metrics[0]["loss"])
    assert losses[0] == losses[1] != pytest.approx(losses[2], rel=1e-4)


@pytest.mark.parametrize(
    ("lengths", "least", "tokens", "parts"),
    [
        ([9] * 16, 1, 144, 1),
        ([9] * 16, 1, 143, 2),  # 15 sentences would do, and 16 are two times 8
        ([9] * 16, 3, 143, 3),
        ([2] * 15 + [9], 1, 36, 4),  # padding counts
        ([9] * 16, 1, 8, 16),  # a single sentence is not cut
        ([9] * 3, 8, None, 3),
        ([9] * 16, 1, None, 1),
        ([600], 1, 512, 1),
    ],
)
def test_so_many_parts_that_none_has_more_tokens(lengths, least, tokens, parts):
    batch = torch.tensor(lengths)
    assert Parting(least, tokens).parts(batch) == parts
    for part in batch.tensor_split(parts):
        assert tokens is None or len(part) == 1 or len(part) * int(part.max()) <= tokens


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("width", "tokens"), [(768, 512), (256, 1536), (1600, 245)])
def test_a_part_is_as_wide_as_long_on_a_cpu_and_as_asked_on_a_gpu(device, width, tokens):
    config = tiny_config(n_embd=width, n_head=4, n_layer=1)
    model = GPT2ForSequenceClassification(config).to(device)
    assert Parting.of(model, 2) == Parting(2, tokens if device == "cpu" else None)
    model.score.weight.full_tensor = "as one that is shared out has"
    assert Parting.of(model, 2) == Parting(2, None)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_a_long_batch_is_computed_in_parts_unasked_with_the_same_result(fast, tiny_examples, monkeypatch):
    torch.manual_seed(0)
    start = adapt(GPT2ForSequenceClassification(still_config()), RunConfig(method="full"))
    whole, model, shapes = copy.deepcopy(start), copy.deepcopy(start), []
    expected = trained_in_parts(whole, tiny_examples, 1, fast)
    most = 4 * int(tiny_examples.lengths.max())
    monkeypatch.setattr(parts_of_a_batch, "NUMBERS", most * start.config.n_embd)

    def padded(*batch: object) -> Batch:
        shapes.append((part := pad_batch(*batch)).input_ids.shape)
        return part

    monkeypatch.setattr(processes, "pad_batch", padded)
    training = trained_in_parts(model, tiny_examples, 1, fast)
    assert max(rows * tokens for rows, tokens in shapes) <= most
    assert 5 < len(shapes) < len(tiny_examples), "some of the five batches in parts, none in single sentences"
    for row, other in zip(training.metrics, expected.metrics, strict=True):
        assert row == pytest.approx(other, rel=1e-6, abs=1e-6)
    assert_same_weights(model, whole)


def test_the_account_of_memory_is_that_of_the_part_of_most_tokens(monkeypatch):
    """Not always of the longest sentences: a part of at most 40 tokens holds 5 of 8 tokens, or 4 of 9."""
    asked = {"method": "lora", "batch_size": 14, "plain": True}
    prepared = ready(**asked)
    lengths = torch.tensor([7, 8, 9] * 5)
    prepared = replace(prepared, train_examples=replace(prepared.train_examples, lengths=lengths))

    def activations(sentences: int, tokens: int) -> int:
        return account_model(prepared.model, sentences, tokens)["activations"]

    assert account(prepared)["activations"] == activations(14, 9)
    monkeypatch.setattr(parts_of_a_batch, "NUMBERS", 40 * prepared.model.config.n_embd)
    assert account(prepared)["activations"] == activations(5, 8) > activations(4, 9)
    seven = replace(prepared, config=replace(prepared.config, gradient_accumulation=7))
    assert account(seven)["activations"] == activations(2, 9)


def assert_same_weights(
    model: GPT2ForSequenceClassification, expected: GPT2ForSequenceClassification
) -> None:
    for name, tensor in without_key_biases(expected).items():
        torch.testing.assert_close(without_key_biases(model)[name], tensor, rtol=0, atol=1e-6, msg=name)


def without_key_biases(model: GPT2ForSequenceClassification) -> dict[str, Tensor]:
    """The keys' biases move all scores of a row of attention alike, and so no logit: their gradients are what
    rounding leaves, and AdamW scales that up to steps like any other."""
    weights, width = dict(model.state_dict()), model.config.n_embd
    for name, tensor in weights.items():
        if name.endswith("c_attn.bias"):
            weights[name] = torch.cat([tensor[:width], tensor[2 * width :]])
    return weights

"""Tokenizing, bucketing and padding."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICES
from transformers import AutoTokenizer

from lora_from_scratch.base.load import load_tokenizer
from lora_from_scratch.data.batches import (
    TokenizedExamples,
    bucketed_batches,
    pad_batch,
    padding_efficiency,
    sorted_batches,
    tokenize,
    training_batches,
)
from lora_from_scratch.data.dataset import load_dataset

LENGTHS = torch.randint(1, 40, (1003,), generator=torch.Generator().manual_seed(0))


def draw(seed: int) -> list[torch.Tensor]:
    return bucketed_batches(LENGTHS, 16, torch.Generator().manual_seed(seed), window=10)


def test_every_sentence_comes_once_an_epoch():
    batches = draw(0)
    assert torch.cat(batches).sort().values.tolist() == list(range(1003))
    assert len(batches) == 63 and sorted(map(len, batches)) == [11] + 62 * [16]


def test_batches_change_from_epoch_to_epoch_and_follow_the_generator():
    generator = torch.Generator().manual_seed(0)
    first = bucketed_batches(LENGTHS, 16, generator, window=10)
    second = bucketed_batches(LENGTHS, 16, generator, window=10)
    company = [{frozenset(batch.tolist()) for batch in epoch} for epoch in (first, second)]
    assert not company[0] & company[1]
    assert all(map(torch.equal, first, draw(0)))
    assert not all(map(torch.equal, first, draw(1)))


def test_batches_are_of_like_length_and_in_no_order_of_length():
    batches = draw(0)
    assert padding_efficiency(LENGTHS, batches) > 0.9
    longest = [int(LENGTHS[batch].max()) for batch in batches]
    assert longest != sorted(longest) and longest[:10] != sorted(longest[:10])


def test_padding_efficiency_by_hand():
    lengths = torch.tensor([1, 3, 2, 2])
    # (1 + 3) of 2 * 3, (2 + 2) of 2 * 2
    assert padding_efficiency(lengths, [torch.tensor([0, 1]), torch.tensor([2, 3])]) == 8 / 10


def test_sorted_batches_cover_everything_in_order():
    batches = sorted_batches(LENGTHS, 64, 1024)
    order = torch.cat(batches)
    assert order.sort().values.tolist() == list(range(1003))
    assert LENGTHS[order].tolist() == sorted(LENGTHS.tolist())


def test_sorted_batches_are_as_large_as_both_bounds_allow():
    lengths = torch.tensor([9, 2, 30, 2, 5, 2, 2, 4])
    assert [lengths[part].tolist() for part in sorted_batches(lengths, 3, 12)] == [
        [2, 2, 2],  # the sentences' bound
        [2, 4],  # the tokens': 3 x 5 would be 15
        [5],
        [9],
        [30],  # above the bound alone
    ]
    assert sorted_batches(lengths[:0], 3, 12) == []


def test_pad_batch_by_hand():
    tokenizer = load_tokenizer("bundled")
    examples = tokenize(tokenizer, ["good", "a very good film", "a film"], [1, 0, 1], max_length=128)
    words = tokenizer(["good", "a", "very", "film"], add_special_tokens=False).input_ids
    good, a, very, film = (ids[0] for ids in words)
    assert examples.token_ids.tolist() == [good, a, very, good, film, a, film]
    assert examples.lengths.tolist() == [1, 4, 2] and examples.truncated == 0
    batch = pad_batch(examples, torch.tensor([2, 0]))
    assert batch.input_ids.tolist() == [[a, film], [good, 0]]
    assert batch.lengths.tolist() == [2, 1]
    assert batch.labels.tolist() == [1, 1]


def test_where_sentences_start_is_summed_once(monkeypatch):
    """A sum over 5 million lengths takes longer than a step."""
    lengths = torch.tensor([1, 4, 2])
    examples = TokenizedExamples(torch.arange(7), lengths, torch.zeros(3, dtype=torch.long), truncated=0)
    sums, cumsum = [], torch.Tensor.cumsum
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda *given: sums.append(1) or cumsum(*given))
    batches = [pad_batch(examples, torch.tensor([i])).input_ids.tolist() for i in (0, 1, 2, 1)]
    assert batches == [[[0]], [[1, 2, 3, 4]], [[5, 6]], [[1, 2, 3, 4]]] and len(sums) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_goes_to_a_gpu_from_pinned_memory_and_to_a_cpu_without_a_copy(device, monkeypatch):
    examples = TokenizedExamples(torch.arange(7), torch.tensor([3, 4]), torch.tensor([1, 0]), truncated=0)
    pinned, pin = [], torch.Tensor.pin_memory
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(pin(tensor)) or pinned[-1])
    batch = pad_batch(examples, torch.tensor([1, 0]), torch.device(device))
    assert len(pinned) == (3 if device == "cuda" else 0) and all(tensor.is_pinned() for tensor in pinned)
    assert batch.input_ids.tolist() == [[3, 4, 5, 6], [0, 1, 2, 0]]
    assert batch.lengths.tolist() == [4, 3] and batch.labels.tolist() == [0, 1]
    assert {t.device.type for t in (batch.input_ids, batch.lengths, batch.labels)} == {device}


def test_long_sentences_are_cut_at_the_end_and_counted():
    tokenizer = load_tokenizer("bundled")
    whole = tokenizer("a very good film", add_special_tokens=False).input_ids
    examples = tokenize(tokenizer, ["a very good film", "good"], [0, 1], max_length=2)
    assert examples.token_ids[:2].tolist() == whole[:2]
    assert examples.lengths.tolist() == [2, 1] and examples.truncated == 1


def test_a_sentence_without_tokens_reads_as_end_of_text():
    tokenizer = load_tokenizer("bundled")
    examples = tokenize(tokenizer, ["", "good"], [0, 1], max_length=8)
    assert examples.lengths.tolist() == [1, 1]
    assert examples.token_ids[0] == tokenizer.eos_token_id


def test_sst2_in_gpt2_tokens(shared):
    """The lengths that DESIGN gives, and batches at least 90 % full."""
    dataset = load_dataset(str(shared / "data" / "sst2"))
    tokenizer = AutoTokenizer.from_pretrained(shared / "gpt2")
    examples = tokenize(tokenizer, dataset.train.sentences, dataset.train.labels, max_length=128)
    assert (len(examples), len(dataset.validation)) == (67_349, 872)
    assert int(examples.lengths.sum()) == 765_056
    assert int(examples.lengths.max()) == 64 and int(examples.lengths.median()) == 8
    batches = bucketed_batches(examples.lengths, 16, torch.Generator().manual_seed(0))
    assert padding_efficiency(examples.lengths, batches) >= 0.98
    shuffled = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).split(16)
    assert padding_efficiency(examples.lengths, shuffled) == pytest.approx(0.34, abs=0.01)


def test_end_of_text_spelled_out_at_the_end_is_padding_as_for_transformers():
    """Its classifier looks for the last token that is no padding; so does what is cut here."""
    tokenizer = load_tokenizer("bundled")
    texts = [
        "a film <|endoftext|>",
        "a film <|endoftext|> <|endoftext|>",
        "a <|endoftext|> film",
        "<|endoftext|>",
    ]
    ids = tokenize(tokenizer, texts, [0] * 4, 32)
    film = tokenizer("a film", add_special_tokens=False).input_ids
    parts = [part.tolist() for part in ids.token_ids.split(ids.lengths.tolist())]
    assert parts == [film, film, [film[0], 0, film[1]], [0]]


def test_training_batches_go_on_from_epoch_to_epoch():
    examples = tokenize(load_tokenizer("bundled"), ["a"] * 10, [0] * 10, 8)
    draw = torch.Generator().manual_seed(0)
    batches = list(training_batches(examples, 4, 5, draw))
    assert [len(batch) for batch in batches].count(2) in (1, 2) and len(batches) == 5
    assert torch.cat(batches[:3]).sort().values.tolist() == list(range(10))


def test_a_tokenizer_without_end_of_text_reads_nothing_as_padding():
    tokenizer = load_tokenizer("bundled")
    (good,) = tokenizer("good", add_special_tokens=False).input_ids
    tokenizer.pad_token, tokenizer.eos_token = tokenizer.convert_ids_to_tokens(good), None
    examples = tokenize(tokenizer, ["", "good", "a film"], [0, 1, 1], max_length=8)
    assert examples.lengths.tolist()[:2] == [1, 1] and examples.token_ids[:2].tolist() == [good, good]

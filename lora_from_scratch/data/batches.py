"""Sentences as token ids, and length-bucketed batches of them: what a model reads, with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from lora_from_scratch.core.loop import Batch

WINDOW = 200  # batches; wide enough to sort by length, narrow enough that batches change from epoch to epoch


@dataclass(frozen=True)
class TokenizedExamples:
    """Sentences as token ids, laid end to end: i is `token_ids[starts[i] : starts[i] + lengths[i]]`."""

    token_ids: torch.Tensor  # (total tokens,) int64
    lengths: torch.Tensor  # (N,) int64
    labels: torch.Tensor  # (N,) int64
    truncated: int  # how many sentences were cut at max_length

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> torch.Tensor:  # (N,)
        return self.lengths.cumsum(0) - self.lengths


def tokenize(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], labels: Sequence[int], max_length: int
) -> TokenizedExamples:
    """Sentences to token ids, at most `max_length` each (the rest is cut off at the end).

    A sentence without a single token (it can be empty, or hold nothing the tokenizer keeps) becomes the
    end-of-text token, so that the model has something to read. Padding tokens that a text spells out at its
    end (`<|endoftext|>`) are left out, as transformers' classifier, which looks for them, never reads them.
    """
    ids = tokenizer(list(sentences), add_special_tokens=False).input_ids if len(sentences) else []
    cut = [_without_padding(part[:max_length], tokenizer.pad_token_id) for part in ids]
    cut = [part or [tokenizer.eos_token_id] for part in cut]
    return TokenizedExamples(
        token_ids=torch.tensor([token for sentence_ids in cut for token in sentence_ids], dtype=torch.long),
        lengths=torch.tensor([len(sentence_ids) for sentence_ids in cut], dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        truncated=sum(len(sentence_ids) > max_length for sentence_ids in ids),
    )


def _without_padding(ids: list[int], pad: int | None) -> list[int]:
    end = len(ids)
    while end and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


def training_batches(
    examples: TokenizedExamples, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """The indices of `steps` batches, epoch after epoch, each epoch in an order of its own."""
    while steps > 0:
        epoch = bucketed_batches(examples.lengths, batch_size, generator)[:steps]
        yield from epoch
        steps -= len(epoch)


def bucketed_batches(
    lengths: torch.Tensor, batch_size: int, generator: torch.Generator, window: int = WINDOW
) -> list[torch.Tensor]:
    """One epoch's batches of indices: random, yet each of sentences of like length.

    Shuffle everything; within each window of `window` batches sort by length; cut into batches; shuffle the
    batches. Every index appears exactly once. Random batches of 16 SST-2 sentences padded to their longest
    are 34 % full, these 98.7 %.
    """
    order = torch.randperm(len(lengths), generator=generator)
    batches = []
    for chunk in order.split(window * batch_size):
        batches += chunk[lengths[chunk].argsort(stable=True)].split(batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Batches of indices for evaluation: sorted by length throughout, no draw."""
    return list(lengths.argsort(stable=True).split(batch_size))


def padding_efficiency(lengths: torch.Tensor, batches: Sequence[torch.Tensor]) -> float:
    """The share of real tokens among all that the batches hold, in (0, 1]."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return sum(int(lengths[batch].sum()) for batch in batches) / padded


def pad_batch(examples: TokenizedExamples, indices: torch.Tensor) -> Batch:
    """Gather the sentences at `indices` into one right-padded batch. Padding is id 0: nobody reads it."""
    lengths = examples.lengths[indices]  # (B,)
    positions = torch.arange(int(lengths.max()))  # (T,)
    real = positions < lengths[:, None]  # (B, T)
    where = (examples.starts[indices, None] + positions).clamp_(max=len(examples.token_ids) - 1)
    input_ids = torch.where(real, examples.token_ids[where], 0)
    return Batch(input_ids, lengths, examples.labels[indices])

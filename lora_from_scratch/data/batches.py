"""Sentences as token ids, and length-bucketed batches of them: what a model reads, with little padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerBase

from lora_from_scratch.core.loop import Batch


@dataclass(frozen=True)
class TokenizedExamples:
    """Sentences as token ids, laid end to end: i is `token_ids[starts[i] : starts[i] + lengths[i]]`."""

    token_ids: Tensor  # (total tokens,) int64
    lengths: Tensor  # (N,) int64
    labels: Tensor  # (N,) int64
    truncated: int  # how many sentences were cut at max_length

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> Tensor:  # (N,)
        return self.lengths.cumsum(0) - self.lengths


def tokenize(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], labels: Sequence[int], max_length: int
) -> TokenizedExamples:
    """Sentences to token ids, at most `max_length` each (the rest is cut off at the end).

    Padding tokens that a text spells out at its end (`<|endoftext|>`) are left out, as transformers'
    classifier, which looks for them, never reads them. A sentence without a single token (it can be empty, or
    hold nothing the tokenizer keeps) becomes the end-of-text token, of a tokenizer without one the padding:
    the model needs something to read.
    """
    whole = tokenizer(list(sentences), add_special_tokens=False).input_ids if len(sentences) else []
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    cut = [ids[:max_length] for ids in whole]
    for ids in cut:
        while ids and ids[-1] == padding:
            ids.pop()
        if not ids:
            ids.append(padding if end is None else end)
    token_ids = torch.tensor([token for ids in cut for token in ids], dtype=torch.long)
    lengths = torch.tensor([len(ids) for ids in cut], dtype=torch.long)
    truncated = sum(len(ids) > max_length for ids in whole)
    return TokenizedExamples(token_ids, lengths, torch.tensor(labels, dtype=torch.long), truncated)


def training_batches(
    examples: TokenizedExamples, batch_size: int, steps: int, generator: Generator
) -> Iterator[Tensor]:
    """The indices of `steps` batches, epoch after epoch, each epoch in an order of its own."""
    while steps > 0:
        epoch = bucketed_batches(examples.lengths, batch_size, generator)[:steps]
        yield from epoch
        steps -= len(epoch)


def bucketed_batches(
    lengths: Tensor, batch_size: int, generator: Generator, window: int = 200
) -> list[Tensor]:
    """One epoch's batches of indices: random, every index once, yet each of sentences of like length.

    Shuffle everything; within each window of `window` batches (wide enough to sort by length, narrow enough
    that batches change from epoch to epoch) sort by length; cut into batches; shuffle the batches. Random
    batches of 16 SST-2 sentences padded to their longest are 34 % full, these 98.7 %.
    """
    order = torch.randperm(len(lengths), generator=generator)
    batches = []
    for chunk in order.split(window * batch_size):
        batches += chunk[lengths[chunk].argsort(stable=True)].split(batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: Tensor, batch_size: int, tokens: int) -> list[Tensor]:
    """Batches of indices for evaluation: sorted by length throughout, no draw.

    Of at most `tokens` tokens with padding each, unless a single sentence has more: long sentences would
    otherwise decide how much memory an evaluation takes.
    """
    order = lengths.argsort(stable=True)
    longest, sizes, start = lengths[order].tolist(), [], 0
    while start < len(longest):
        size = min(batch_size, len(longest) - start)
        while size > 1 and size * longest[start + size - 1] > tokens:
            size -= 1
        sizes.append(size)
        start += size
    return list(order.split(sizes)) if sizes else []


def padding_efficiency(lengths: Tensor, batches: Sequence[Tensor]) -> float:
    """The share of real tokens among all that the batches hold, in (0, 1]."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return sum(int(lengths[batch].sum()) for batch in batches) / padded


def pad_batch(
    examples: TokenizedExamples, indices: Tensor, device: torch.device | None = None, share: float = 1.0
) -> Batch:
    """Gather the sentences at `indices` into one right-padded batch on the device, the CPU by default.

    Padding is id 0, whatever the tokenizer names: nobody reads it. `share` is the batch's of its step's loss.
    """
    lengths = examples.lengths[indices]  # (B,)
    positions = torch.arange(int(lengths.max()))  # (T,)
    where = (examples.starts[indices, None] + positions).clamp_(max=len(examples.token_ids) - 1)  # (B, T)
    input_ids = torch.where(positions < lengths[:, None], examples.token_ids[where], 0)  # (B, T)
    tensors = [input_ids, lengths, examples.labels[indices]]
    if device is not None and device.type == "cuda":  # from pinned memory alone a copy lets nobody wait
        tensors = [tensor.pin_memory() for tensor in tensors]
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors), share)

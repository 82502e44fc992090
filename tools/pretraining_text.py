"""Plain text for pretraining: documents, a tokenizer made of them, and windows of token ids."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lora_from_scratch.train.bar import Bar

END_OF_TEXT = "<|endoftext|>"
SENTENCE_ENDS = (END_OF_TEXT, "Ġ.", "Ġ!", "Ġ?")


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """One document a line, with a space put back where a line break was lost between two sentences."""
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as lines:
            for line in lines:
                if line.strip():
                    yield re.sub(r"(?<=[a-z0-9)\"'][.!?])(?=[A-Z\"(])", " ", line.strip())


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over lower-cased words; plain and Treebank spelling give the same tokens.

    SST-2 is written `it is n't a -lrb- good -rrb- film .`, people `It isn't a (good) film.`: both become
    `it is n't a ( good ) film .`. Accents are dropped. Every word carries its leading space, so a small
    vocabulary holds no word twice.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace("-lrb-", "("),
            normalizers.Replace("-rrb-", ")"),
            normalizers.Replace(Regex("``|''|[“”]"), '"'),
            normalizers.Replace(Regex("[‘’`´]"), "'"),
            normalizers.Replace(Regex("[–—]"), "--"),
            normalizers.Replace("…", "..."),
        ]
    )
    word = r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+|\.{2,}|-{2,}|[^\w\s]"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> numpy.ndarray:
    """All documents as one stream of token ids, each opened by the end-of-text token."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    chunks = []
    for start in Bar(range(0, len(documents), 1000), desc="encode", unit="k documents"):
        for encoding in tokenizer.encode_batch(documents[start : start + 1000]):
            chunks.append(numpy.array([end_of_text, *encoding.ids], dtype=numpy.uint16))
    return numpy.concatenate(chunks)


def window_starts(stream: numpy.ndarray, sentence_ends: list[int], length: int, offset: int = 0) -> list[int]:
    """Where to cut windows of `length` tokens: each begins where a sentence does.

    So do the sentences that will be classified. A window starts at the last sentence start inside the one
    before it, so a sentence cut at the end of one is whole at the start of the next. The first starts at or
    after `offset`: other windows in every epoch.
    """
    begins = numpy.append(0, numpy.flatnonzero(numpy.isin(stream, sentence_ends)) + 1)
    starts: list[int] = []
    position = begins[begins >= offset][0] if offset <= begins[-1] else len(stream)
    while position + length < len(stream):  # one token more than `length`: the last target
        starts.append(int(position))
        inside = begins[numpy.searchsorted(begins, position + length, side="right") - 1]
        position = inside if inside > position else position + length
    return starts


def windows(stream: numpy.ndarray, starts: list[int], length: int) -> torch.Tensor:
    """`(B, length + 1)` token ids: the inputs are all but the last, the targets all but the first."""
    return torch.from_numpy(stream[numpy.add.outer(starts, numpy.arange(length + 1))].astype(numpy.int64))

"""Whole sentences held out of train, with every row that is part of them.

SST-2's train split is mostly phrases of its own sentences: a random tenth of its rows would be made of words
that the rest was trained on, and a method that memorises would win.
"""

import random
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping

from lora_from_scratch.data.dataset import Dataset, Split
from lora_from_scratch.errors import UserError

SHARE, MOST = 0.1, 1000  # of the whole sentences; the 95 % interval of 1,000 is about 4 points wide
START = 4  # words by which a row is looked up
Row = tuple[str, ...]


def with_held_out(dataset: Dataset, seed: int = 0) -> Dataset:
    """The dataset of a tuning: validation is held out of train; the one that was there is not looked at."""
    rest, held_out = hold_out(dataset.train, seed)
    if not len(rest):
        raise UserError("nothing is left to train on: every row is part of a sentence held out; add others")
    return Dataset(rest, held_out, dataset.label_names, f"{len(held_out):,} sentences held out of train")


def hold_out(train: Split, seed: int = 0) -> tuple[Split, Split]:
    """(the rest, the held-out sentences): rows that are part of no other, drawn by the seed.

    A row stays in the rest only if it is no part, word by word, of a held-out sentence.
    """
    rows = [tuple(sentence.split()) for sentence in train.sentences]
    distinct = dict.fromkeys(rows)
    sizes: dict[Row, set[int]] = defaultdict(set)
    for row in distinct:
        sizes[row[:START]].add(len(row))
    inner = {part for row in distinct for part in _parts(row, distinct, sizes) if part != row}
    whole = [i for i, row in enumerate(rows) if row not in inner]
    count = max(1, min(MOST, round(SHARE * len(whole))))
    chosen = sorted(random.Random(seed).sample(whole, count))
    leaking = {part for i in chosen for part in _parts(rows[i], distinct, sizes)}
    return train.take([i for i, row in enumerate(rows) if row not in leaking]), train.take(chosen)


def _parts(words: Row, rows: Container[Row], sizes: Mapping[Row, set[int]]) -> Iterator[Row]:
    """The rows that are runs of consecutive words of this one, itself included; `sizes` has how long rows
    are that begin with given words."""
    for first in range(len(words)):
        for start in range(1, min(START, len(words) - first) + 1):
            for size in sizes.get(words[first : first + start], ()):
                if (part := words[first : first + size]) in rows:
                    yield part

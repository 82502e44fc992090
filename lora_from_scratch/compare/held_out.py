"""Whole sentences held out of train, with every row that is part of them.

SST-2's train split is mostly phrases of its own sentences: a random tenth of its rows would be made of words
that the rest was trained on, and a method that memorises would win.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from lora_from_scratch.data.dataset import Dataset, Split
from lora_from_scratch.errors import UserError

SHARE, MOST = 0.1, 1000  # of the whole sentences; the 95 % interval of 1,000 is about 4 points wide
START = 4  # words by which a row is looked up


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
    inner = {part for i, part in _parts(rows, range(len(rows))) if rows[part] != rows[i]}
    whole = [i for i in range(len(rows)) if i not in inner]
    count = max(1, min(MOST, round(SHARE * len(whole))))
    chosen = sorted(random.Random(seed).sample(whole, count))
    leaking = {part for _, part in _parts(rows, chosen)}
    return train.take([i for i in range(len(rows)) if i not in leaking]), train.take(chosen)


def _parts(rows: Sequence[tuple[str, ...]], wholes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(i, j): row j is a run of consecutive words of row i, i itself included."""
    starting: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for j, row in enumerate(rows):
        starting[row[:START]].append(j)
    for i in wholes:
        words = rows[i]
        for first in range(len(words)):
            for size in range(1, START + 1):
                for j in starting.get(words[first : first + size], ()) if first + size <= len(words) else ():
                    if words[first : first + len(rows[j])] == rows[j]:
                        yield i, j

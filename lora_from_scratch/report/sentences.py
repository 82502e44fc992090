"""What became of each sentence: which flip, which nobody gets right, what is taken for what."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy

Dataset = dict[str, object]


@dataclass(frozen=True)
class Answers:
    """What the finished runs of one variant said."""

    label: str
    trains: bool
    predictions: numpy.ndarray  # (runs, n), ids
    right: numpy.ndarray  # (n,) of how many runs

    @property
    def runs(self) -> int:
        return len(self.predictions)

    @property
    def share(self) -> numpy.ndarray:
        """(n,) of the runs that are right, from 0 to 1."""
        return self.right / self.runs


def answers(dataset: Dataset) -> list[Answers]:
    """Of every variant that has a finished run."""
    truth, found = numpy.array(dataset["labels"]), []
    for variant in dataset["variants"]:
        said = [run["predictions"] for run in variant["runs"] if run["status"] == "done"]
        if said:
            predictions = numpy.array(said).reshape(len(said), len(truth))
            right = (predictions == truth).sum(axis=0)
            found.append(Answers(variant["label"], bool(variant["trainable_parameters"]), predictions, right))
    return found


def flips(found: list[Answers]) -> list[int]:
    """Sentences that one variant gets right in most of its runs and another wrong in most of its, those
    first on which two variants are furthest apart; what was not trained has no say."""
    shares = _shares(found)
    if len(shares) < 2:
        return []
    spread = shares.max(axis=0) - shares.min(axis=0)
    flip = (shares.max(axis=0) > 0.5) & (shares.min(axis=0) < 0.5)
    return [int(i) for i in numpy.argsort(-spread, kind="stable") if flip[i]]


def missed(found: list[Answers]) -> list[int]:
    """Sentences that every trained variant gets wrong in most of its runs, the most often missed first."""
    shares = _shares(found)
    if not len(shares):
        return []
    return [int(i) for i in numpy.argsort(shares.mean(axis=0), kind="stable") if (shares[:, i] < 0.5).all()]


def wrong_anywhere(found: list[Answers]) -> list[int]:
    """Sentences that a run of a trained variant gets wrong, in the order of the data."""
    shares = _shares(found)
    return numpy.flatnonzero((shares < 1).any(axis=0)).tolist() if len(shares) else []


def only(a: Answers, b: Answers) -> int:
    """How many sentences `a` gets right in most of its runs and `b` wrong in most of its."""
    return int(((a.share > 0.5) & (b.share < 0.5)).sum())


def said(answer: Answers, sentence: int, truth: int) -> tuple[int, int] | None:
    """The commonest wrong answer and of how many runs it is; None where all are right."""
    wrong = Counter(int(p) for p in answer.predictions[:, sentence] if p != truth)
    return min(wrong.items(), key=lambda item: (-item[1], item[0])) if wrong else None


def confusion(dataset: Dataset, answer: Answers) -> numpy.ndarray:
    """(classes, classes): sentences of the row's class that were taken for the column's, over all runs."""
    classes, truth = len(dataset["label_names"]), numpy.array(dataset["labels"])
    pairs = truth * classes + answer.predictions
    return numpy.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)


def _shares(found: list[Answers]) -> numpy.ndarray:
    return numpy.array([answer.share for answer in found if answer.trains])

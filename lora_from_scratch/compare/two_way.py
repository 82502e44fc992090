"""Where chance comes into an accuracy: which sentences, which seeds, and what neither of them explains.

Two-way random effects over `Correct`, seeds x sentences, as in multi-reader studies of diagnosis (Obuchowski
and Rockette 1995; Hillis 2007) and in two-way clustering (Cameron, Gelbach and Miller 2011), on the paired
differences of the sentences (Miller 2024, arXiv 2411.00640). In points, and variances in points squared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lora_from_scratch.compare.student_t import quantile

Correct = np.ndarray  # (k, n) bool: seeds x sentences, True where the sentence was labelled rightly

NO_VARIANCE = 1e-11  # less than one answer in a million makes, more than rounding does


@dataclass(frozen=True)
class Parts:
    """The mean squares of one method's answers, or of two methods' difference."""

    n: int  # sentences
    seeds: tuple[int, ...]  # k_m of each method
    among_sentences: float  # S_D^2: of each sentence's mean over the seeds, or of the difference of two
    among_seeds: tuple[float, ...]  # S_m^2: of each seed's accuracy
    rest: tuple[float, ...]  # M_m: of the answers less both means; of S_m^2, M_m / n comes from the sentences

    @property
    def variance(self) -> float:
        """V = S_D^2 / n + sum over methods of max(0, S_m^2 / k - M_m / (n k))."""
        each = zip(self.seeds, self.among_seeds, self.rest, strict=True)
        return self.among_sentences / self.n + sum(max(0.0, s / k - m / (self.n * k)) for k, s, m in each)

    @property
    def degrees_of_freedom(self) -> float:
        """V^2 / ((S_D^2 / n)^2 / (n - 1) + sum over methods of (S_m^2 / k)^2 / (k - 1)) (Satterthwaite).

        Never less than the least n - 1 or k - 1, as it could not be without the M_m in V; else two methods
        that answer all but alike would have next to none.
        """
        below = (self.among_sentences / self.n) ** 2 / (self.n - 1)
        below += sum((s / k) ** 2 / (k - 1) for k, s in zip(self.seeds, self.among_seeds, strict=True))
        return max(self.variance**2 / below, min(self.n, *self.seeds) - 1.0)

    def detectable(self, level: float = 0.05) -> float:
        """The smallest true difference that a test at this level sees with a power of 80 %."""
        if self.variance < NO_VARIANCE:
            return 0.0
        nu = self.degrees_of_freedom
        return (quantile(1 - level / 2, nu) + quantile(0.80, nu)) * math.sqrt(self.variance)

    def expected(self, n: int, seeds: tuple[int, ...]) -> Parts:
        """What these lead to expect of other numbers of sentences and seeds."""
        own = self.among_sentences - sum(m / k for k, m in zip(self.seeds, self.rest, strict=True))
        among_sentences = max(0.0, own) + sum(m / k for k, m in zip(seeds, self.rest, strict=True))
        each = zip(self.among_seeds, self.rest, strict=True)
        among_seeds = tuple(max(0.0, s - m / self.n) + m / n for s, m in each)
        return Parts(n, seeds, among_sentences, among_seeds, self.rest)


def parts_of(*methods: Correct) -> Parts:
    """Of one method or of two over the same sentences; each `(k, n)` with k and n at least 2."""
    answers = [100.0 * method for method in methods]
    sentences = [each.mean(axis=0) for each in answers]
    seeds = [each.mean(axis=1) for each in answers]
    rest = []
    for each, row, column in zip(answers, seeds, sentences, strict=True):
        left = each - row[:, None] - column + each.mean()
        rest.append(float((left**2).sum()) / ((each.shape[0] - 1) * (each.shape[1] - 1)))
    difference = sentences[0] - sum(sentences[1:])
    return Parts(
        len(difference),
        tuple(map(len, seeds)),
        float(difference.var(ddof=1)),
        tuple(float(each.var(ddof=1)) for each in seeds),
        tuple(rest),
    )

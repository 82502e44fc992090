"""Numbers of one update, and of two: the equations, each with its source.

LoRA: Hu et al. 2021, arXiv:2106.09685, section 7. Intruders: Shuttleworth et al. 2024, arXiv:2410.21228.
"""

import math

import torch
from torch import Tensor

from lora_from_scratch.lens.updates import SVD, Update

EPSILON = 0.5  # below it a singular vector of the tuned matrix is called an intruder
TOP = 10  # of its singular vectors are looked at for intruders
DIRECTIONS = 4  # that amplification is measured along where the whole weight learned: the paper's smaller r
MOST = 64  # directions of each of two updates whose overlap is written down: the paper's larger r
ROUNDING = 2.0**-24  # of a number by fp32, at most
FUSED, PARTS = ".attn.c_attn", ("q", "k", "v")  # GPT-2's Wq, Wk and Wv, one below the other


def layer_record(update: Update) -> dict[str, object]:
    """All that is said of one layer, as JSON."""
    U0, S0, Vh0 = torch.linalg.svd(update.base, full_matrices=False)
    U, _, _ = torch.linalg.svd(update.base + update.kept(len(update.S)), full_matrices=False)
    cosines = closest(U, U0)
    return {
        "layer": update.layer,
        "shape": list(update.base.shape),
        "norm": update.norm,
        "base_norm": S0.norm().item(),
        "rank": numerical_rank(update),
        "effective_rank": effective_rank(update.S),
        "singular_values": update.S.tolist(),
        "amplification": amplification(update, (U0, S0, Vh0)),
        "parts": parts(update),
        "cosines": [round(value, 6) for value in cosines.tolist()],
        "intruders": int((cosines[:TOP] < EPSILON).sum()),
        "intruders_of_all": int((cosines < EPSILON).sum()),
    }


def effective_rank(S: Tensor) -> float:
    """exp(H(p)) with p = S / sum(S) and H Shannon's entropy (Roy & Vetterli 2007); 0 of a zero matrix.

    1 where one direction is all, k where k are equally large.
    """
    if not S.any():
        return 0.0
    return torch.special.entr(S / S.sum()).sum().exp().item()


def energy(S: Tensor) -> Tensor:
    """The squared norm in the first 0, 1, ... k directions, `(k + 1,)`.

    Over the last of them it is the share that is kept; one less that, under a root, is what a truncation
    loses of the norm.
    """
    return torch.cat([S.new_zeros(1), (S**2).cumsum(0)])


def numerical_rank(update: Update) -> int:
    """How many singular values are above what rounding alone may add to one.

    A weight in fp32 is off by up to 2^-24 of itself, a matrix by 2^-24 of its norm, and no singular value of
    a sum moves by more than the norm of what is added (Weyl).
    """
    added = ROUNDING * (update.base.norm() + update.norm)
    return int(update.S.gt(added).sum())


def amplification(update: Update, base: SVD) -> dict[str, float | int | None]:
    """The paper's table 7: norms of U^T W0 V, with U and V from delta W, from W0 itself, and at random.

    `factor` is the norm of delta W over the first of these: by how much what delta W emphasises is amplified
    (section 7.3). `inside` is the share of delta W's squared norm within W0's own first directions, on both
    sides; `inside_by_chance` is r^2 / (m n).
    """
    U0, S0, Vh0 = base
    r, (m, n) = min(DIRECTIONS if update.A is None else len(update.A), len(update.S)), update.base.shape
    by_update = (update.U[:, :r].T @ update.base @ update.Vh[:r].T).norm().item()
    inside = (U0[:, :r].T @ update.U * update.S) @ (update.Vh @ Vh0[:r].T)
    norm = update.norm
    return {
        "directions": r,
        "by_update": by_update,
        "by_base": S0[:r].norm().item(),
        "by_chance": random_norm(r, S0.norm().item(), m, n),
        "factor": norm / by_update if norm and by_update else None,
        "inside": (inside.norm().item() / norm) ** 2 if norm else None,
        "inside_by_chance": r * r / (m * n),
    }


def random_norm(r: int, norm: float, m: int, n: int) -> float:
    """The norm of U^T W V where U and V are r random directions each: r norm(W) / sqrt(m n), as the root of
    the mean square. In the paper's table 7, with a norm of 61.95 and m = n = 12,288, 0.020 and 0.323."""
    return r * norm / math.sqrt(m * n)


def parts(update: Update) -> dict[str, dict[str, float]] | None:
    """Of the fused c_attn: the norms of Wq's, Wk's and Wv's own rows of delta W and of W0, and the share of
    delta W's squared norm; None of another layer."""
    if not update.name.endswith(FUSED):
        return None
    rows = len(update.base) // len(PARTS)
    changes = [(part * update.S).norm().item() for part in update.U.split(rows)]
    bases = [part.norm().item() for part in update.base.split(rows)]
    return {
        part: {"norm": change, "base_norm": base, "share": (change / update.norm) ** 2 if change else 0.0}
        for part, change, base in zip(PARTS, changes, bases, strict=True)
    }


def overlap(V: Tensor, other: Tensor) -> Tensor:
    """phi(i, j) = norm(V_i^T V'_j)^2 / min(i, j) of the first i rows of one and j of the other (eq. 4).

    Both hold orthonormal rows, `(k, d)` and `(l, d)`; the result is `(k, l)`, each value from 0 (nothing in
    common) to 1 (the smaller span lies in the larger). At random it is `overlap_by_chance`.
    """
    sums = ((V @ other.T) ** 2).cumsum(0).cumsum(1)
    counts = [torch.arange(1, size + 1, dtype=V.dtype) for size in sums.shape]
    return sums / torch.minimum(counts[0][:, None], counts[1])


def overlap_by_chance(i: int, j: int, width: int) -> float:
    """The mean of phi(i, j) over random spans in `width` dimensions: i j / width over min(i, j)."""
    return max(i, j) / width


def closest(U: Tensor, U0: Tensor) -> Tensor:
    """For each column of U `(m, k)` the largest |cosine| with a column of U0 `(m, l)`: `(k,)`.

    Of the tuned matrix's left singular vectors one is an intruder where it is below `EPSILON`
    (2410.21228; PEFT's `reduce_intruder_dimension` counts the same way).
    """
    return (U.T @ U0).abs().amax(dim=1)

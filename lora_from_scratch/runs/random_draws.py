"""What a run draws at random: a generator of its own for each purpose, and the sentences of a subset."""

import hashlib

import torch

from lora_from_scratch.data.dataset import Split


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose, so that what one draws moves none of the others."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def limited(split: Split, limit: int | None, seed: int) -> Split:
    """So many of its sentences, drawn by the seed; all of them without a limit."""
    if limit is None or limit >= len(split):
        return split
    order = torch.randperm(len(split), generator=generator_for(seed, "subset"))
    return split.take(order[:limit].tolist())

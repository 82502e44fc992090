"""The published table that this project answers, as data: its rows, and what stands behind their figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row, beside which method it is shown, and the settings that it was made with."""

    name: str
    method: str
    accuracy: float  # percent
    f1: float  # of class 1, percent
    trainable: str | None = None
    seconds: float | None = None
    allocated: str | None = None
    settings: tuple[tuple[str, float], ...] = (("lr", 2e-4),)


SOURCE = "https://github.com/sergiolbarreto/LoRA"
SENTENCES = 872  # SST-2's validation sentences; the figures say nothing beside others
PRELAYER = {"accuracy": 83.14, "f1": 83.72, "trainable": "46K", "seconds": 2662.89, "allocated": "0.49 GB"}
ROWS = (
    Published(name="no fine-tuning", method="none", accuracy=50.46, f1=21.45),
    Published(
        name="full",
        method="full",
        accuracy=83.26,
        f1=83.41,
        trainable="124M",
        seconds=3492.40,
        allocated="1.89 GB",
    ),
    Published(
        name="LoRA",
        method="lora",
        accuracy=86.93,
        f1=87.42,
        trainable="148K",
        seconds=2464.95,
        allocated="0.49 GB",
        settings=(("lr", 2e-4), ("rank", 4), ("alpha", 16)),
    ),
    Published(name="PreLayer, by its name", method="prelayer", **PRELAYER),
    Published(name="PreLayer, by its count", method="prefix", **PRELAYER),
)
BASE = "GPT-2 small (124 million parameters), one seed, on a T4 GPU"
FLAWS = (  # docs/published-table.md has them at length
    "Every sentence was padded on the left to 128 tokens, without position ids: real tokens sat at positions "
    "that GPT-2 reads differently. Here padding is on the right, to the longest sentence of a batch.",
    "SST-2's sentences have 11.4 tokens on average, so padding to 128 does 11.3 times the work that is "
    "needed: the published times are those of padding.",
    "Every method had LoRA's learning rate, 2e-4. The same author's first notebook gave full fine-tuning "
    "5e-5 and LoRA 5e-4 and measured 88.30 and 86.24: the order turns round.",
    "The row called PreLayer counts 46,080 parameters: 12 blocks of 5 learned prefixes of 768 numbers, with "
    "a frozen random head. Its description is that of the embeddings, which hold 39.4 million.",
    "One seed and no error bars: with 872 sentences, chance alone makes about 2 points either way.",
    "The published memory is what stays allocated, not the peak: the notebook's own peaks are 6.01 GB for "
    "full and 2.99 GB for LoRA.",
    "GLUE's sentences end in a space, which GPT-2 reads as a token of its own, and the head classified that "
    "token's state. Here sentences are stripped.",
)


def beside(dataset: dict[str, object]) -> dict[str, Published]:
    """By the label of a variant the published row that is shown beside it: each at the one variant of its
    method that shares most of its settings, the first of equals; none for other sentences than SST-2's."""
    found = {}
    for row in ROWS if len(dataset["labels"]) == SENTENCES else ():
        variants = [variant for variant in dataset["variants"] if variant["method"] == row.method]
        if variants:
            found[max(variants, key=lambda variant: _shared(row, variant))["label"]] = row
    return found


def _shared(row: Published, variant: dict[str, object]) -> int:
    return sum(variant["config"].get(name) == value for name, value in row.settings)

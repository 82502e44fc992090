"""The record of a comparison (see `compare/summary.py`), as the page, its pictures and its tables read it."""

from __future__ import annotations

from lora_from_scratch.report.tables import f1_title

Comparison = dict[str, object]
Dataset = dict[str, object]
Variant = dict[str, object]
Run = dict[str, object]
MEASURED = ("accuracy", "interval", "f1", "lr", "train_seconds", "sentences_per_second", "load_average")
NOT_DONE = dict.fromkeys((*MEASURED, "peak_bytes", "predictions", "error")) | {"losses": (), "validation": ()}


def datasets(comparison: Comparison) -> list[Dataset]:
    """Each with what holds for all; a run that is not done has None for what it would have measured."""
    common = {"reference": comparison["reference"], "margin": comparison["margin"]}
    return [
        {**common, **dataset, "variants": [_whole(variant) for variant in dataset["variants"]]}
        for dataset in comparison["datasets"]
    ]


def _whole(variant: Variant) -> Variant:
    return {**variant, "runs": [{**NOT_DONE, **run} for run in variant["runs"]]}


def done(variant: Variant) -> list[Run]:
    """Its finished runs."""
    return [run for run in variant["runs"] if run["status"] == "done"]


def finished(dataset: Dataset) -> list[Variant]:
    """The variants that have a mean."""
    return [variant for variant in dataset["variants"] if variant["accuracy"]]


def named(variant: Variant) -> str:
    """Its label, and of how many runs its figures are where some are missing."""
    whole = variant["done"] == variant["planned"]
    return (
        variant["label"] if whole else f"{variant['label']} ({variant['done']} of {variant['planned']} runs)"
    )


def learning_rate(variant: Variant) -> float | None:
    """That of its finished runs; None where nothing was trained."""
    return next((run["lr"] for run in done(variant) if run["lr"] is not None), None)


def f1_column(dataset: Dataset) -> str:
    """The title of the column of F1, which names the class."""
    known = [variant["f1_of"] for variant in dataset["variants"] if variant["f1_of"]]
    return f1_title(known[0]) if known else "F1 (%)"

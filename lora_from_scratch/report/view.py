"""What the page says about one dataset, as text: the template only sets it."""

from __future__ import annotations

from lora_from_scratch.report import numbers, published, sentences
from lora_from_scratch.report.compared import Dataset, Variant, done, f1_column, finished, learning_rate
from lora_from_scratch.report.figures import Looks
from lora_from_scratch.report.numbers import NOTHING
from lora_from_scratch.report.sentences import Answers

Cell = dict[str, object]


def verdicts(dataset: Dataset, looks: Looks, found: list[Answers]) -> list[dict[str, object]]:
    """A row a comparison: its sentence, its figures, and how many sentences flip."""
    methods = {variant["label"]: variant["method"] for variant in dataset["variants"]}
    said = {answer.label: answer for answer in found}
    rows = []
    for one in dataset["comparisons"]:
        row = {"look": looks[methods[one["a"]]], "figures": [], **one}
        if one["difference"] is not None:
            row["figures"] = [
                ("difference, points", numbers.points(one["difference"])),
                ("95 % interval", numbers.between(one["interval"], ".2f")),
                ("SE", f"{one['standard_error']:.2f}"),
                ("p after Holm", f"{one['p_holm']:.3f}" if one["p_holm"] >= 0.001 else "< 0.001"),
                ("least visible, points", f"{one['detectable']:.2f}"),
                ("bootstrap", numbers.between(one["bootstrap"], ".2f")),
            ]
            a, b = said[one["a"]], said[one["b"]]
            row["figures"].append(("flips", f"{sentences.only(a, b):,} to {sentences.only(b, a):,}"))
        rows.append(row)
    return rows


def table(dataset: Dataset, looks: Looks) -> tuple[list[str], list[dict[str, object]]]:
    """Titles of the published columns, and a row a variant: each cell a value and the lines under it."""
    best = max((variant["accuracy"]["mean"] for variant in finished(dataset)), default=None)
    quickest = min((v["seconds"]["median"] for v in dataset["variants"] if v["seconds"]), default=None)
    beside = published.beside(dataset)
    titles = ["accuracy (%)", "to the best (points)", f1_column(dataset)]
    titles += ["trainable", "training time", "memory"]
    rows = []
    for variant in dataset["variants"]:
        other = beside.get(variant["label"])
        cells = [
            _accuracy(variant, other),
            _to_the_best(variant, best),
            _f1(variant, other),
            _trainable(variant, other),
            _time(variant, quickest, other),
            _memory(variant, other),
        ]
        rows.append(
            {"look": looks[variant["method"]], "variant": variant, "cells": cells, "published": other}
        )
    return titles, rows


def _cell(value: str | None, *lines: str | None, published: str | None = None) -> Cell:
    kept = [line for line in lines if line] if value else []
    return {"value": value or NOTHING, "lines": kept, "published": published}


def _accuracy(variant: Variant, other: published.Published | None) -> Cell:
    found, theirs = variant["accuracy"], other and numbers.percent(other.accuracy)
    if not found:
        return _cell(None, published=theirs)
    alone = found["kind"] == "wilson"
    interval = f"{'Wilson' if alone else '95 %'}: {numbers.between(found['interval'])}"
    lines = (_sd(found["sd"]), interval, "this checkpoint only" if alone else None)
    return _cell(numbers.percent(found["mean"]), *lines, published=theirs)


def _to_the_best(variant: Variant, best: float | None) -> Cell:
    if not variant["accuracy"]:
        return _cell(None)
    below = variant["accuracy"]["mean"] - best
    return _cell(numbers.points(below) if below else "best")


def _f1(variant: Variant, other: published.Published | None) -> Cell:
    found, theirs = variant["f1"], other and numbers.percent(other.f1)
    return _cell(found and numbers.percent(found["mean"]), found and _sd(found["sd"]), published=theirs)


def _trainable(variant: Variant, other: published.Published | None) -> Cell:
    count, total = variant["trainable_parameters"], variant["total_parameters"]
    if count is None:
        return _cell(None, published=other and other.trainable)
    lines = (f"{100 * count / total:.4g} % of {total:,}", _adapter_and_head(variant)) if count else ()
    return _cell(f"{count:,}", *lines, published=other and other.trainable)


def _adapter_and_head(variant: Variant) -> str:
    return f"{variant['adapter_parameters']:,} + head {variant['head_parameters']:,}"


def _time(variant: Variant, quickest: float | None, other: published.Published | None) -> Cell:
    found, load = variant["seconds"], numbers.loads(done(variant))
    theirs = f"{other.seconds:,.2f} s" if other and other.seconds else None
    if not found:
        return _cell(None, published=theirs)
    spread = f"{found['min']:,.1f} to {found['max']:,.1f} s" if variant["done"] > 1 else None
    ratio = f"{found['median'] / quickest:.2f} times the quickest"
    lines = (spread, ratio, f"load average {load}" if load else None)
    return _cell(numbers.seconds(found["median"]), *lines, published=theirs)


def _memory(variant: Variant, other: published.Published | None) -> Cell:
    peak, theirs = variant["peak_bytes"], other and other.allocated and f"{other.allocated} allocated"
    return _cell(
        None if peak is None else numbers.size(peak), f"{variant['memory_kind']} peak", published=theirs
    )


def _sd(sd: float | None) -> str | None:
    return None if sd is None else f"SD {sd:.2f}"


def memory_sentence(dataset: Dataset) -> str | None:
    """What gradients and moments take where they take most and least, and how much of the peak that is."""
    known = [
        v for v in dataset["variants"] if v["accounted"] and v["peak_bytes"] and v["trainable_parameters"]
    ]
    if len(known) < 2:
        return None

    def learning(variant: Variant) -> int:
        return variant["accounted"]["gradients"] + variant["accounted"]["moments"]

    most, least = max(known, key=learning), min(known, key=learning)
    shares = [f"{100 * learning(v) / v['peak_bytes']:.3g} % of its peak" for v in (most, least)]
    told = [
        f"{numbers.size(learning(v))} for {v['label']} ({share})"
        for v, share in zip((most, least), shares, strict=True)
    ]
    return (
        "Gradients and the optimizer's moments exist only for what learns. By arithmetic they take "
        f"{numbers.listed(told)}. What a method saves is that difference; whatever else a process holds "
        "(libraries, buffers, weights, activations) it holds with every method."
    )


def differing(dataset: Dataset) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Only the settings that differ between variants, the learning rate as it was resolved."""
    variants = dataset["variants"]
    said = ["lr"]  # below, or by the label
    if all(variant["label"].startswith(variant["method"]) for variant in variants):
        said.append("method")
    flags = [flag for flag in dict.fromkeys(f for v in variants for f in v["differs"]) if flag not in said]
    rates = [learning_rate(variant) for variant in variants]
    rows = [
        [numbers.setting(flag, v["config"][flag]) if flag in v["config"] else NOTHING for flag in flags]
        for v in variants
    ]
    if len(set(rates)) > 1 or any("lr" in v["differs"] for v in variants):
        flags.append("learning rate")
        for row, rate in zip(rows, rates, strict=True):
            row.append(numbers.rate(rate) if rate is not None else NOTHING)
    return flags, [(v["label"], row) for v, row in zip(variants, rows, strict=True)]

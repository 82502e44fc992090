"""A comparison as Markdown, for a README, and as CSV, a row for every run."""

from __future__ import annotations

import csv
import html
import io
import re

from lora_from_scratch.report import compared, numbers, published
from lora_from_scratch.report.compared import Dataset, Variant, done, f1_column, named
from lora_from_scratch.report.numbers import NOTHING
from lora_from_scratch.report.tables import markdown_table

RUN = (
    "seed",
    "status",
    "error",
    "accuracy",
    "f1",
    "lr",
    "train_seconds",
    "sentences_per_second",
    "peak_bytes",
)
VARIANT = ("method", "f1_of", "memory_kind", "trainable_parameters", "adapter_parameters", "head_parameters")


def comparison_markdown(comparison: dict[str, object]) -> str:
    """A section a dataset: the verdict, the table, each comparison in a sentence; at the end what was run."""
    parts = []
    for dataset in compared.datasets(comparison):
        told = "\n".join(f"- {_plain(one['sentence'])}" for one in dataset["comparisons"])
        title = f"**{_plain(dataset['headline'])}**"
        parts += [title, _where(comparison, dataset), _table(dataset), _beneath(dataset), told]
    return "\n\n".join(part for part in [*parts, _run(comparison)] if part) + "\n"


def comparison_csv(comparison: dict[str, object]) -> str:
    """One row a run, in the order of the plan, with the flags in which variants differ; figures unrounded."""
    variants = [(d, v) for d in compared.datasets(comparison) for v in d["variants"]]
    flags = [
        flag for flag in dict.fromkeys(f for _, v in variants for f in v["differs"]) if flag not in VARIANT
    ]
    ends = ("interval_low", "interval_high", "load_before", "load_after")
    names = ("dataset", "variant", *VARIANT, *(flag for flag in flags if flag not in RUN), *RUN, *ends)
    buffer = io.StringIO()
    rows = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    rows.writeheader()
    for dataset, variant in variants:
        differs = {flag: variant["differs"].get(flag) for flag in flags}
        same = {name: variant[name] for name in VARIANT} | {
            "dataset": dataset["name"],
            "variant": variant["label"],
        }
        for run in variant["runs"]:
            row = differs | same | {name: run[name] for name in RUN}
            row |= dict(
                zip(ends, [*(run["interval"] or ("", "")), *(run["load_average"] or ())], strict=False)
            )
            rows.writerow({name: _cell(value) for name, value in row.items()})
    return buffer.getvalue()


def _cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _table(dataset: Dataset) -> str:
    others = published.beside(dataset)
    rows = [_cells(variant, others) for variant in dataset["variants"]]
    columns = ["method", "runs", "accuracy (%)", "95 % interval", f1_column(dataset)]
    columns += ["trainable", "training (s), median", "load average", "peak memory", "published accuracy"]
    return markdown_table([row if others else row[:-1] for row in (columns, *rows)])


def _cells(variant: Variant, others: dict[str, published.Published]) -> list[str]:
    accuracy, f1, other = variant["accuracy"], variant["f1"], others.get(variant["label"])
    runs = (
        f"{variant['done']}"
        if variant["done"] == variant["planned"]
        else f"{variant['done']} of {variant['planned']}"
    )
    return [
        _plain(variant["label"]),
        runs,
        _with_sd(accuracy["mean"], accuracy["sd"]) if accuracy else NOTHING,
        numbers.between(accuracy["interval"]) + _alone(accuracy) if accuracy else NOTHING,
        _with_sd(f1["mean"], f1["sd"]) if f1 else NOTHING,
        NOTHING if (count := variant["trainable_parameters"]) is None else f"{count:,}",
        f"{variant['seconds']['median']:,.1f}" if variant["seconds"] else NOTHING,
        numbers.loads(done(variant)) or NOTHING,
        numbers.size(variant["peak_bytes"]) if variant["peak_bytes"] is not None else NOTHING,
        numbers.percent(other.accuracy) if other else NOTHING,
    ]


def _with_sd(mean: float, sd: float | None) -> str:
    return numbers.percent(mean) + (f" (SD {sd:.2f})" if sd is not None else "")


def _alone(accuracy: dict[str, object]) -> str:
    return ", this checkpoint only" if accuracy["kind"] == "wilson" else ""


def _where(comparison: dict[str, object], dataset: Dataset) -> str:
    count = f"{len(dataset['labels']):,} sentences of {_plain(dataset['validation_name'])}"
    trained = f"{_plain(comparison['model'])}, trained on {dataset['train_sentences']:,} sentences"
    return f"{trained}, measured on {count}."


def _beneath(dataset: Dataset) -> str:
    text = "Means over the runs (SD: standard deviation over the seeds), intervals over seeds and sentences."
    if published.beside(dataset):
        text += f" The published figures are those of {published.BASE}, not of this base: "
        text += "nothing follows from a difference."
    missing = [named(v) for v in dataset["variants"] if v["done"] < v["planned"]]
    if missing:
        text += f" Means over those runs that finished: {_plain(numbers.listed(missing))}."
    return text


def _run(comparison: dict[str, object]) -> str:
    place = comparison["environment"]
    return (
        f"{comparison['done']} of {comparison['planned']} runs finished, {comparison['failed']} failed; "
        f"{place['device']}, {place['threads']} threads, torch {place['torch']}, {comparison['date']}.\n"
        f"`{comparison['command']}`"
    )


def _plain(text: str) -> str:
    """On one line, and no HTML: `a < b` stays, `<b>` does not."""
    return re.sub(r"<(?=\S)|&(?=#?\w+;)", lambda match: html.escape(match[0]), " ".join(text.split()))

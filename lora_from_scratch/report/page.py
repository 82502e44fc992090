"""report.html: a comparison as one file, without network and without scripts; and what lies beside it."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from lora_from_scratch.formats.whole_files import appearing
from lora_from_scratch.report import (
    compared,
    costs,
    drawing,
    figures,
    numbers,
    palette,
    published,
    sentence_rows,
    sentences,
    sweeps,
    view,
)
from lora_from_scratch.report.compared import Comparison, Dataset
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.exports import comparison_csv, comparison_markdown
from lora_from_scratch.report.figures import Looks
from lora_from_scratch.report.templates import rendered

GROUPS = {  # where on the page each picture stands
    "verdict": {"differences": figures.differences},
    "accuracy": {
        "accuracy": figures.accuracy,
        "parameters": figures.parameters,
        "rank": sweeps.rank,
        "rate": sweeps.rate,
    },
    "costs": {"time": costs.time, "memory": costs.memory},
    "steps": {"loss": costs.losses, "validation": costs.validation},
}


def comparison_page(comparison: Comparison, pictures: dict[str, Picture] | None = None) -> str:
    """The whole page as HTML; equal comparisons give equal pages. `pictures` are those of the comparison,
    drawn where they are not given."""
    if pictures is None:
        pictures = comparison_pictures(comparison)
    looks = palette.looks(comparison)
    return rendered(
        "page.html",
        comparison=comparison,
        datasets=[_dataset(d, n, looks, pictures) for n, d in enumerate(compared.datasets(comparison))],
        looks=looks,
        facts=_facts(comparison),
        failures=_failures(comparison),
        published=published,
    )


def comparison_pictures(comparison: Comparison) -> dict[str, Picture]:
    """Every picture that has something to show, by its name, which is that of its PNG; of a second dataset
    "accuracy-2"; none without matplotlib."""
    looks, found = palette.looks(comparison), {}
    for number, dataset in enumerate(compared.datasets(comparison) if drawing.available() else ()):
        for name, draw in ((n, f) for group in GROUPS.values() for n, f in group.items()):
            name = _named(name, number)
            picture = draw(dataset, looks, name)
            if picture:
                found[name] = picture
    return found


def write_comparison(comparison: Comparison, folder: Path) -> list[str]:
    """report.html, table.md, runs.csv and a PNG a picture, all or none; returns their names."""
    pictures = comparison_pictures(comparison)
    texts = {
        "report.html": comparison_page(comparison, pictures),
        "table.md": comparison_markdown(comparison),
        "runs.csv": comparison_csv(comparison),
    }
    with appearing(folder) as aside:
        for name, text in texts.items():
            (aside / name).write_bytes(text.encode())
        for name, picture in pictures.items():
            (aside / f"{name}.png").write_bytes(picture.png)
    written = [*texts, *(f"{name}.png" for name in pictures)]
    drawing.remove_earlier(folder, chain(*GROUPS.values()), written)
    return written


def _named(name: str, number: int) -> str:
    return f"{name}-{number + 1}" if number else name


def _dataset(dataset: Dataset, number: int, looks: Looks, pictures: dict[str, Picture]) -> dict[str, object]:
    found = sentences.answers(dataset)
    titles, rows = view.table(dataset, looks)
    flags, settings = view.differing(dataset)
    return {
        "id": f"data{number + 1}",
        "record": dataset,
        "verdicts": view.verdicts(dataset, looks, found),
        "titles": titles,
        "rows": rows,
        "published": any(row["published"] for row in rows),
        "flags": flags,
        "settings": settings,
        "memory": view.memory_sentence(dataset),
        "lists": sentence_rows.lists(dataset, found),
        "answered": [answer.label for answer in found],
        "confusions": sentence_rows.confusions(dataset, looks, found),
        "pictures": {
            group: [pictures[_named(n, number)] for n in names if _named(n, number) in pictures]
            for group, names in GROUPS.items()
        },
        "partly": [compared.named(v) for v in dataset["variants"] if v["done"] < v["planned"]],
    }


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    seeds = comparison["seeds"]
    return [
        ("runs", f"{comparison['done']} of {comparison['planned']} done, {comparison['failed']} failed"),
        ("seeds", numbers.listed(map(str, seeds))),
        ("reference", comparison["reference"]),
        ("margin", "none named" if comparison["margin"] is None else f"{comparison['margin']:g} points"),
        ("measured", " and ".join(f"{len(d['labels']):,} sentences" for d in comparison["datasets"])),
    ]


def _failures(comparison: Comparison) -> list[tuple[str, int, str]]:
    """(variant, seed, error) of every run that failed; of several datasets with the dataset's name."""
    several = len(comparison["datasets"]) > 1
    return [
        (
            f"{variant['label']} on {dataset['name']}" if several else variant["label"],
            run["seed"],
            run["error"],
        )
        for dataset in comparison["datasets"]
        for variant in dataset["variants"]
        for run in variant["runs"]
        if run["status"] == "failed"
    ]

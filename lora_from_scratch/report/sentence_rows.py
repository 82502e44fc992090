"""Sentence by sentence, and class by class, what was answered, as text for the page."""

from __future__ import annotations

from lora_from_scratch.report import numbers, sentences
from lora_from_scratch.report.compared import Dataset
from lora_from_scratch.report.figures import Looks
from lora_from_scratch.report.numbers import short
from lora_from_scratch.report.sentences import Answers
from lora_from_scratch.report.tables import MANY, shown

LONGEST = 300  # letters of a sentence
ROWS = 500  # of a list of sentences
FIRST = 6  # of them that stand open on the page
PAIRS = 12  # of classes that are taken for each other, where there are too many for a matrix


def lists(dataset: Dataset, found: list[Answers]) -> list[dict[str, object]]:
    """Lists of sentences: those that flip, those that all get wrong, all that a run got wrong."""
    total, trained = len(dataset["labels"]), [answer.label for answer in found if answer.trains]
    if not trained:
        return []
    flips, missed, wrong = sentences.flips(found), sentences.missed(found), sentences.wrong_anywhere(found)
    share = f"of {total:,} sentences"
    flip = "one variant gets them right in most of its runs, another wrong in most of its"
    notes = {
        "flips": f"{len(flips):,} {share}: {flip}.",
        "missed": f"{len(missed):,} {share}: every trained variant gets them wrong in most of its runs.",
        "wrong": f"{len(wrong):,} {share}, in the order of the data, for {numbers.listed(trained)}.",
    }
    return [
        {
            "id": name,
            "title": title,
            "note": notes[name] + (f" The first {ROWS} are shown." if len(chosen) > ROWS else ""),
            "rows": [_sentence(dataset, found, i) for i in chosen[:ROWS]],
            "open": 0 if name == "wrong" else FIRST,
        }
        for name, title, chosen in (
            ("flips", "Sentences that flip between methods", flips),
            ("missed", "What every method gets wrong", missed),
            ("wrong", "Every sentence that some run gets wrong", wrong),
        )
    ]


def _sentence(dataset: Dataset, found: list[Answers], index: int) -> dict[str, object]:
    truth, texts, names = dataset["labels"][index], dataset["texts"], dataset["label_names"]
    text = texts[index] if texts else None
    if text and len(text) > LONGEST:
        text = f"{text[: LONGEST - 1]}…"
    cells = []
    for answer in found:
        right, wrong = int(answer.right[index]), sentences.said(answer, index, truth)
        kind = "all" if right == answer.runs else "none" if right == 0 else "some"
        taken = shown(names[wrong[0]]) if wrong and len(names) > 2 else None
        cells.append(
            {
                "value": f"{right}/{answer.runs}",
                "kind": kind,
                "taken": taken,
                "label": short(answer.label, 18),
            }
        )
    return {"number": index + 1, "text": text, "truth": shown(names[truth]), "cells": cells}


def confusions(dataset: Dataset, looks: Looks, found: list[Answers]) -> list[dict[str, object]]:
    """A matrix a variant, counts over all its runs and percent of the row; of many classes the commonest
    mistakes alone."""
    names = [shown(name) for name in dataset["label_names"]]
    methods = {variant["label"]: variant["method"] for variant in dataset["variants"]}
    made = []
    for answer in found:
        counts = sentences.confusion(dataset, answer)
        totals = counts.sum(axis=1)
        of = [(i, j, int(counts[i, j])) for i in range(len(names)) for j in range(len(names)) if i != j]
        worst = sorted((one for one in of if one[2]), key=lambda one: -one[2])[:PAIRS]
        rows = [
            {
                "name": names[i],
                "cells": [
                    {"count": int(n), "share": 100 * n / totals[i] if totals[i] else None, "right": i == j}
                    for j, n in enumerate(row)
                ],
            }
            for i, row in enumerate(counts)
        ]
        few = len(names) <= MANY
        pairs = None if few else [(names[i], names[j], count) for i, j, count in worst]
        about = {"label": answer.label, "runs": answer.runs, "look": looks[methods[answer.label]]}
        made.append({**about, "rows": rows if few else None, "pairs": pairs})
    return made

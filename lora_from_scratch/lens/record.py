"""What lens.json holds: every number of what one adapter learned, and how it lies to others."""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from lora_from_scratch.base.load import display_name
from lora_from_scratch.lens import measures
from lora_from_scratch.lens.curves import Measured, energy_kept, measure
from lora_from_scratch.lens.opened import Opened
from lora_from_scratch.lens.sentences import Sentences
from lora_from_scratch.lens.updates import Update
from lora_from_scratch.runs.record import asked_rank
from lora_from_scratch.train.bar import Bar
from lora_from_scratch.version import __version__

VERSION = 1  # of the record


def lens_record(opened: Opened, beside: Sequence[Opened], sentences: Sentences | None) -> dict[str, object]:
    """All of it. The model of `opened` is measured on the sentences, where there are any, and left merged."""
    labels = _labels([opened, *beside])
    adapters = [_adapter(one, label) for one, label in zip([opened, *beside], labels, strict=True)]
    overlaps = [
        {"label": label, "layers": _overlaps(opened, other)}
        for other, label in zip(beside, labels[1:], strict=True)
    ]
    measured = None
    if sentences:
        found: Measured = measure(opened.adapted.model, opened.updates, sentences.examples)
        measured = {
            "dataset": sentences.dataset,
            "source": sentences.source,
            "sentences": len(sentences.examples),
            **asdict(found),
        }
    return {
        "record": VERSION,
        "kind": "lens",
        "code": {"version": __version__},
        "epsilon": measures.EPSILON,
        "top": measures.TOP,
        "adapters": adapters,
        "overlaps": overlaps,
        "measured": measured,
    }


def _adapter(opened: Opened, label: str) -> dict[str, object]:
    record = opened.record
    layers = Bar(opened.updates, desc=label, unit="layer", leave=False)
    return {
        "label": label,
        "folder": str(opened.folder),
        "method": record.get("method"),
        "trained_on": record.get("dataset"),
        "model": display_name(opened.base_name),
        "low_rank": opened.is_low_rank,
        "directions": opened.rank,
        "asked_rank": asked_rank(record, [len(one.A) for one in opened.updates if one.A is not None]),
        "energy": energy_kept(opened.updates),
        "layers": [measures.layer_record(update) for update in layers],
    }


def _labels(opened: Sequence[Opened]) -> list[str]:
    """The folders' names; whole paths where two have the same."""
    names = [one.folder.resolve().name for one in opened]
    return names if len(set(names)) == len(names) else [str(one.folder) for one in opened]


def _overlaps(one: Opened, other: Opened) -> list[dict[str, object]]:
    """phi of every layer that both adapt: of what delta W reads, and of A, as in section 7.2."""
    ours = {update.name: update for update in one.updates}
    pairs = [(ours[update.name], update) for update in other.updates if update.name in ours]
    return [
        {
            "layer": a.layer,
            "width": a.base.shape[1],
            "of_update": _phi(_read(a), _read(b)),
            "of_A": None if a.A is None or b.A is None else _phi(_spanned(a.A), _spanned(b.A)),
        }
        for a, b in pairs
    ]


def _read(update: Update) -> Tensor:
    """The directions of the input that delta W reads, the strongest first; none of a zero one."""
    return update.Vh[: measures.numerical_rank(update)]


def _spanned(A: Tensor) -> Tensor:
    return torch.linalg.svd(A, full_matrices=False)[2]


def _phi(V: Tensor, other: Tensor) -> list[list[float]]:
    phi = measures.overlap(V[: measures.MOST], other[: measures.MOST])
    return [[round(value, 6) for value in row] for row in phi.tolist()]

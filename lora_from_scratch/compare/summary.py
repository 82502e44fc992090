"""From the cells of a plan to what people look at: one record of all, with what the differences are worth.

It goes through the plan, not through the files: what is missing is counted and named.
"""

from collections.abc import Sequence
from datetime import date
from statistics import mean, median, stdev

import numpy
import torch

from lora_from_scratch.compare import verdicts
from lora_from_scratch.compare.cells import DONE, FAILED, code_version
from lora_from_scratch.compare.going import Going
from lora_from_scratch.compare.plan import Variant
from lora_from_scratch.compare.significance import crossed_mean
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.methods import DEFAULT
from lora_from_scratch.train.device import environment

RECORD = 1  # the version of what is made here
Record = dict[str, object]
# Variants are compared where they answer the same sentences.
OF_DATA = ("dataset", "validation_split", "text_column", "label_column", "drop_blank", "positive_class")


def comparison(
    going: Going,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    command: str,
    reference: str,
    margin: float | None,
) -> Record:
    """What results.json of a comparison holds, and the page shows."""
    groups: dict[tuple, list[Variant]] = {}
    for variant in variants:
        names = going.sources(variant.config).dataset.label_names  # of other classes in train, the ids differ
        key = (*names, *(getattr(variant.config, name) for name in OF_DATA))
        groups.setdefault(key, []).append(variant)
    tables = [_dataset(going, group, seeds, reference, margin) for group in groups.values()]
    runs = [run for table in tables for variant in table["variants"] for run in variant["runs"]]
    common = variants[0].config.as_dict()
    common = {
        key: common[key]
        for key in common
        if all(v.config.as_dict().get(key) == common[key] for v in variants)
    }
    return {
        "record": RECORD,
        "kind": "comparison",
        "command": command,
        "date": date.today().isoformat(),
        "code": code_version(),
        "environment": _environment(going, variants),
        "model": " and ".join(dict.fromkeys(table.pop("model") for table in tables)),
        "reference": reference,
        "margin": margin,
        "seeds": list(seeds),
        "planned": len(runs),
        "done": sum(run["status"] == DONE for run in runs),
        "failed": sum(run["status"] == FAILED for run in runs),
        "stopped": going.stopped,
        "settings": {key: value for key, value in common.items() if key not in ("seed", "output_dir")},
        "datasets": tables,
    }


def _environment(going: Going, variants: Sequence[Variant]) -> Record:
    """Where the runs were made; where they differ in it, all that there is."""
    done = [one["record"]["environment"] for one in going.outcomes.values() if one["status"] == DONE]
    places = done or [environment(torch.device(variants[0].config.device))]
    seen = {key: list(dict.fromkeys(place.get(key) for place in places)) for key in places[0]}
    return {
        key: found[0] if len(found) == 1 else " and ".join(map(str, found)) for key, found in seen.items()
    }


def reference_among(variants: Sequence[Variant], asked: str | None) -> str:
    """The label that the others are compared with: the one that is asked for, else LoRA's first variant."""
    labels = list(dict.fromkeys(variant.label for variant in variants))
    if asked is not None and asked not in labels:
        raise UserError(f"--reference {quoted(asked)} is not compared here; choose one of {quoted(*labels)}")
    first = [variant.label for variant in variants if variant.config.method == DEFAULT]
    trained = [variant.label for variant in variants if variant.config.way.trains]
    return asked or [*first, *trained, *labels][0]


def _dataset(
    going: Going, variants: Sequence[Variant], seeds: Sequence[int], reference: str, margin: float | None
) -> Record:
    """The table of one dataset: its variants, and how they compare; the reference is of another, at times."""
    if reference not in {variant.label for variant in variants}:
        reference = reference_among(variants, None)
    sources = going.sources(variants[0].config)
    validation, labels = sources.dataset.validation, numpy.array(sources.dataset.validation.labels)
    runs = {variant.label: _runs(going, variant, seeds) for variant in variants}
    done = {label: [run for run in of if run["status"] == DONE] for label, of in runs.items()}
    correct = {
        label: numpy.array([run["predictions"] for run in of]) == labels for label, of in done.items() if of
    }
    rows = [_variant(going, v, runs[v.label], correct.get(v.label)) for v in variants]
    compared = _compared(variants, correct, reference, margin)
    means = {row["label"]: row["accuracy"]["mean"] for row in rows if row["accuracy"]}
    records = [
        one["record"]
        for cell, one in going.outcomes.items()
        if cell.variant in variants and one["status"] == DONE
    ]
    record = max(records, key=lambda one: (one["steps"] > 0, one["data"]["train_sentences"]), default=None)
    planned, finished = (sum(row[key] for row in rows) for key in ("planned", "done"))
    partly = f" Of {planned} runs {finished} are done." if 0 < finished < planned else ""
    return {
        "model": " and ".join(dict.fromkeys(one["model"] for one in records)) or sources.model_name,
        "name": record["dataset"] if record else sources.dataset_name,
        "validation_name": sources.dataset.validation_name,
        "label_names": sources.dataset.label_names,
        "labels": validation.labels,
        "texts": validation.sentences,
        "train_sentences": record["data"]["train_sentences"] if record else len(sources.dataset.train),
        "baseline": record["baseline"] if record else None,
        "reference": reference,
        "headline": verdicts.headline(compared, means, reference) + partly,
        "variants": rows,
        "comparisons": [_as_row(one, rows) for one in compared],
    }


def _compared(
    variants: Sequence[Variant], correct: dict[str, numpy.ndarray], reference: str, margin: float | None
) -> list[verdicts.Comparison]:
    """Each against the reference; and the variants of each other method against the first of them."""
    found = verdicts.compare_to(reference, correct, margin) if reference in correct else []
    for method in dict.fromkeys(variant.config.method for variant in variants):
        labels = [v.label for v in variants if v.config.method == method and v.label in correct]
        if len(labels) > 1 and reference not in labels:
            found += verdicts.compare_to(labels[0], {label: correct[label] for label in labels}, margin)
    return found


def _as_row(one: verdicts.Comparison, rows: Sequence[Record]) -> Record:
    e = one.estimate
    partly = [
        f"{row['done']} of {row['planned']} runs of {row['label']}"
        for row in rows
        if row["label"] in (one.a, one.b) and row["done"] < row["planned"]
    ]
    over = f", over {' and '.join(partly)}" if partly else ""
    numbers = {
        "difference": e and e.value,
        "interval": e and [e.low, e.high],
        "standard_error": e and e.standard_error,
        "p": e and e.p,
        "detectable": e and e.detectable,
        "p_holm": one.p_holm,
        "bootstrap": one.bootstrap and list(one.bootstrap),
    }
    words = {"verdict": one.verdict, "sentence": one.sentence + over, "advice": one.advice}
    return {"a": one.a, "b": one.b, **numbers, **words}


def _runs(going: Going, variant: Variant, seeds: Sequence[int]) -> list[Record]:
    outcomes = {cell.seed: one for cell, one in going.outcomes.items() if cell.variant == variant}
    return [_run(seed, outcomes.get(seed)) for seed in seeds]


def _run(seed: int, outcome: Record | None) -> Record:
    if outcome is None:
        return {"seed": seed, "status": "planned", "error": None}
    run = {"seed": seed, "status": outcome["status"], "error": outcome.get("error")}
    run["load_average"] = outcome["load_average"]
    if outcome["status"] == FAILED:
        return run
    record, memory = outcome["record"], outcome["record"]["memory"]
    measured = {
        key: record[key]
        for key in ("accuracy", "f1", "train_seconds", "phase_seconds", "sentences_per_second")
    }
    return {
        **run,
        **measured,
        "interval": record["accuracy_interval_95"],
        "lr": record["config"]["lr"],
        "peak_bytes": memory and memory["peak_bytes"],
        "predictions": record["evaluation"]["predictions"],
        "losses": outcome["losses"],
        "validation": outcome["validation"],
    }


def _variant(going: Going, variant: Variant, runs: list[Record], correct: numpy.ndarray | None) -> Record:
    about = {
        "label": variant.label,
        "method": variant.config.method,
        "differs": variant.differs,
        "config": variant.config.as_dict(),
        "planned": len(runs),
        "done": sum(run["status"] == DONE for run in runs),
        "failed": sum(run["status"] == FAILED for run in runs),
    }
    return {**about, **_measured(going, variant, runs, correct), "runs": runs}


def _measured(going: Going, variant: Variant, runs: list[Record], correct: numpy.ndarray | None) -> Record:
    """What the runs that are done have to say; everything null where none is."""
    done = [run for run in runs if run["status"] == DONE]
    outcome = next(
        (one for c, one in going.outcomes.items() if c.variant == variant and one["status"] == DONE), {}
    )
    record = outcome.get("record", {})
    seconds = [run["train_seconds"] for run in done if record["steps"]]
    peaks = [run["peak_bytes"] for run in done if run["peak_bytes"] is not None]
    f1s = [run["f1"] for run in done]
    counted = ("trainable_parameters", "adapter_parameters", "head_parameters", "total_parameters", "f1_of")
    return {
        **{key: record.get(key) for key in counted},
        "accuracy": _accuracy(done, correct) if done else None,
        "f1": {"mean": mean(f1s), "sd": stdev(f1s) if len(f1s) > 1 else None} if done else None,
        "seconds": {"median": median(seconds), "min": min(seconds), "max": max(seconds)} if seconds else None,
        "phase_seconds": _mean_phases([run["phase_seconds"] for run in done]),
        "peak_bytes": max(peaks) if peaks else None,
        "memory_kind": record["memory"]["kind"] if record.get("memory") else None,
        "accounted": outcome.get("accounted"),
    }


def _mean_phases(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of data, forward, backward and optimizer; empty where they were not measured."""
    phases = runs[0] if runs else {}
    return {phase: mean(run[phase] for run in runs) for phase in phases}


def _accuracy(done: list[Record], correct: numpy.ndarray) -> Record:
    """Over seeds and sentences; of a single run Wilson's interval, which speaks of this checkpoint alone."""
    accuracies = [run["accuracy"] for run in done]
    if len(done) == 1:
        interval = {"interval": done[0]["interval"], "kind": "wilson", "standard_error": None}
        return {"mean": accuracies[0], "sd": None, **interval}
    e = crossed_mean(correct)
    interval = {"interval": [e.low, e.high], "kind": "crossed", "standard_error": e.standard_error}
    return {"mean": mean(accuracies), "sd": stdev(accuracies), **interval}

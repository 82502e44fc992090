"""Why: people predict with transformers' pipeline. How much faster are length-bucketed batches?

    python benchmarks/predict.py --texts ../shared/data/sst2/train.tsv

Trains a LoRA adapter on the bundled base for a moment and merges it. Then 10,000 sentences in five turns:
this project's `predict` on the adapter, the `text-classification` pipeline on the merged checkpoint at its
default settings, and the same at the fastest of several batch sizes, one after the other in every turn, all
in fp32. Ends in one JSON line; ratios are theirs / ours, and our texts a second are by the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from outcome import add_out, finish
from transformers import pipeline
from transformers.utils import logging

from lora_from_scratch.core.surgery import merge_lora
from lora_from_scratch.data.dataset import load_labelled
from lora_from_scratch.formats import checkpoint
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import train_prepared
from lora_from_scratch.runs.folder import write_trained
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.runs.prepare import prepare

TURNS, WARM_UP = 5, 500
BATCH_SIZES = (8, 16, 32, 64, 128)
Answers = list[tuple[str, float]]  # label, probability
Side = Callable[[list[str]], Answers]


def timed(function: Side, texts: list[str]) -> tuple[float, Answers]:
    started = time.perf_counter()
    answers = function(texts)
    return time.perf_counter() - started, answers


def make_ready(folder: Path) -> tuple[Adapted, Callable]:
    """The adapter of a short run, merged in memory, and the pipeline on the checkpoint merged from it."""
    prepared = prepare(RunConfig(model="bundled", dataset="bundled", device="cpu", max_steps=200))
    write_trained(prepared, train_prepared(prepared), folder / "adapter")
    adapted = load_adapted(folder / "adapter")
    merge_lora(adapted.model)
    checkpoint.save(adapted, folder / "merged")
    return adapted, pipeline("text-classification", model=str(folder / "merged"), device="cpu")


def disagreement(ours: Answers, theirs: Answers) -> tuple[int, float]:
    """Labels that differ, and the largest difference of a probability."""
    pairs = list(zip(ours, theirs, strict=True))
    return sum(a[0] != b[0] for a, b in pairs), max(abs(a[1] - b[1]) for a, b in pairs)


def measure(sides: dict[str, Side], texts: list[str], turn: int) -> tuple[dict[str, list[float]], int, float]:
    """Seconds of each side by turn; labels that differ from ours, largest difference of a probability."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    flipped, difference = 0, 0.0
    for start in range(0, len(texts), turn):
        part = texts[start : start + turn]
        answers = {}
        for side, function in sides.items():
            taken, answers[side] = timed(function, part)
            seconds[side].append(taken)
            flips, off = disagreement(answers["ours"], answers[side])
            flipped, difference = flipped + flips, max(difference, off)
    return seconds, flipped, difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", required=True, help="a labelled file; the labels are not used")
    parser.add_argument("--texts-a-turn", type=int, default=2000, metavar="N")
    add_out(parser)
    flags = parser.parse_args()
    logging.set_verbosity_error()
    split, _ = load_labelled(flags.texts, ["0", "1"])
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [split.sentences[i] for i in order[: WARM_UP + TURNS * flags.texts_a_turn]]
    warm_up, texts = texts[:WARM_UP], texts[WARM_UP:]
    with tempfile.TemporaryDirectory() as folder:
        adapted, classify = make_ready(Path(folder))

    def theirs(**options: int) -> Side:
        return lambda texts: [(a["label"], a["score"]) for a in classify(texts, **options)]

    best = min(BATCH_SIZES, key=lambda b: min(timed(theirs(batch_size=b), warm_up)[0] for _ in range(2)))
    sides = {
        "ours": lambda texts: [(p.label, p.probability) for p in predict(adapted, texts)],
        "default": theirs(),
        "best": theirs(batch_size=best),
    }
    for function in sides.values():
        function(warm_up)
    seconds, flipped, difference = measure(sides, texts, flags.texts_a_turn)
    results: dict[str, object] = {"texts": len(texts), "best_batch_size": best, "flipped_labels": flipped}
    results["largest_probability_difference"] = difference
    rates = [flags.texts_a_turn / taken for taken in seconds["ours"]]
    results["texts_per_second"] = {"median": median(rates), "range": [min(rates), max(rates)]}
    rows = [("side", "texts/s", "theirs / ours", "range")]
    for side, taken in seconds.items():
        ratios = [b / a for a, b in zip(seconds["ours"], taken, strict=True)]
        results[f"{side}_ratio"] = {"median": median(ratios), "range": [min(ratios), max(ratios)]}
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        rows.append((side, f"{flags.texts_a_turn / median(taken):,.0f}", f"{median(ratios):.2f}", spread))
    print(markdown_table(rows))
    print(f"labels that differ {flipped}, largest difference of a probability {difference:.1e}")
    finish(flags.out, results)


if __name__ == "__main__":
    main()

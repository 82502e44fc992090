"""Why: people predict with transformers' pipeline. How much faster are length-bucketed batches?

    python benchmarks/predict.py --texts ../shared/data/sst2/train.tsv

Trains a LoRA adapter on the bundled base for a moment and merges it. Then 10,000 sentences in five turns:
this project's `predict` on the adapter, the `text-classification` pipeline on the merged checkpoint at its
default settings, and the same at the fastest of several batch sizes, one after the other in every turn, all
in fp32. Ends in one JSON line; ratios are theirs / ours.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import pipeline
from transformers.utils import logging

from lora_from_scratch.config import RunConfig
from lora_from_scratch.dataset import load_labelled
from lora_from_scratch.experiment import run
from lora_from_scratch.outputs import write_run
from lora_from_scratch.predict import predict
from lora_from_scratch.report import markdown_table
from lora_from_scratch.saved import load_adapted, save_checkpoint
from lora_from_scratch.surgery import merge_lora

TURNS, TEXTS_A_TURN, WARM_UP = 5, 2000, 500
BATCH_SIZES = (8, 16, 32, 64, 128)


def timed(function: Callable[[list[str]], list[tuple[str, float]]], texts: list[str]) -> tuple[float, list]:
    started = time.perf_counter()
    answers = function(texts)
    return time.perf_counter() - started, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", required=True, help="a labelled file; the labels are not used")
    flags = parser.parse_args()
    logging.set_verbosity_error()
    split, _ = load_labelled(flags.texts, ["0", "1"])
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [split.sentences[i] for i in order[: WARM_UP + TURNS * TEXTS_A_TURN]]

    with tempfile.TemporaryDirectory() as folder:
        adapter, merged = Path(folder, "adapter"), Path(folder, "merged")
        result = run(RunConfig(model="bundled", dataset="bundled", device="cpu", max_steps=200))
        write_run(result, adapter)
        plain = load_adapted(adapter)
        save_checkpoint(merge_lora(plain.model), plain.tokenizer, merged)
        adapted = load_adapted(adapter)
        merge_lora(adapted.model)
        classify = pipeline("text-classification", model=str(merged), device="cpu")

    def ours(texts: list[str]) -> list[tuple[str, float]]:
        return [(p.label, p.probability) for p in predict(adapted, texts)]

    def theirs(batch_size: int | None) -> Callable[[list[str]], list[tuple[str, float]]]:
        options = {"batch_size": batch_size} if batch_size else {}
        return lambda texts: [(a["label"], a["score"]) for a in classify(texts, **options)]

    warm_up, texts = texts[:WARM_UP], texts[WARM_UP:]
    best = min(BATCH_SIZES, key=lambda size: min(timed(theirs(size), warm_up)[0] for _ in range(2)))
    sides = {"ours": ours, "pipeline, default": theirs(None), f"pipeline, batch_size={best}": theirs(best)}
    for function in sides.values():
        function(warm_up)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    flipped, difference = 0, 0.0
    for turn in range(TURNS):
        part = texts[turn * TEXTS_A_TURN : (turn + 1) * TEXTS_A_TURN]
        answers = {}
        for side, function in sides.items():
            taken, answers[side] = timed(function, part)
            seconds[side].append(taken)
        for side in list(sides)[1:]:
            for (label, p), (other, q) in zip(answers["ours"], answers[side], strict=True):
                flipped += label != other
                difference = max(difference, abs(p - q))

    results: dict[str, object] = {
        "texts": len(texts),
        "best_batch_size": best,
        "flipped_labels": flipped,
        "largest_probability_difference": difference,
        "threads": torch.get_num_threads(),
    }
    rows = [("side", "texts/s", "theirs / ours", "range")]
    for side, taken in seconds.items():
        ratios = [b / a for a, b in zip(seconds["ours"], taken, strict=True)]
        key = "default" if "default" in side else "best"
        if side != "ours":
            results[f"{key}_ratio"] = median(ratios)
            results[f"{key}_ratio_range"] = [min(ratios), max(ratios)]
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        rows.append((side, f"{TEXTS_A_TURN / median(taken):,.0f}", f"{median(ratios):.2f}", spread))
    print(markdown_table(rows))
    print(f"labels that differ {flipped}, largest difference of a probability {difference:.1e}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()

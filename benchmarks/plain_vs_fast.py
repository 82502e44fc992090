"""Why: the fast twins cost code that a learner need not read. What do they buy over `core/` alone?

    python benchmarks/plain_vs_fast.py --shared ../shared

`run.py --plain` trains by `core/` alone; without the flag the same training runs on `fast/`. LoRA (r=4,
c_attn and head), random weights (speed does not depend on them) in the shapes of GPT-2 small and of the
bundled base, SST-2 sentences, batch 16, in the precision that `auto` picks for both. Each side is a process
of its own; they take turns plain, fast, fast, plain over the same sentences, so that drift falls on both.
Ends in one JSON line; a ratio is plain / fast.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median

import torch
from outcome import add_out, finish
from sides import Ours, Sentences, Side, Work, draw, ratio, sst2_sentences

from lora_from_scratch.base.load import BUNDLED_MODEL
from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.precision import resolve_precision

WARM_UP = 64  # sentences


def compare(model: str, sentences: Sentences, count: int, rounds: int) -> dict[str, object]:
    """Turns A B B A, other sentences in every round."""
    load = os.getloadavg()[0]
    plain, fast = Side(Ours, Work(model, plain=True)), Side(Ours, Work(model))
    generator = torch.Generator().manual_seed(0)
    for side in (plain, fast):
        side.train(draw(sentences, WARM_UP, generator))
    for _ in range(rounds):
        chosen = draw(sentences, count, generator)
        for side in (plain, fast, fast, plain):
            side.turn(chosen)
    plain.close(), fast.close()
    time_ratio, time_range = ratio(plain.seconds, fast.seconds)
    return {
        "time_ratio": time_ratio,
        "time_ratio_range": time_range,
        "memory_ratio": plain.peak_bytes / fast.peak_bytes,
        "plain_ms_per_sentence": 1000 * median(plain.seconds) / count,
        "fast_ms_per_sentence": 1000 * median(fast.seconds) / count,
        "plain_peak_bytes": plain.peak_bytes,
        "fast_peak_bytes": fast.peak_bytes,
        "sentences_per_turn": count,
        "pairs": len(plain.seconds),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/ and data/sst2/")
    parser.add_argument("--rounds", type=int, default=3, help="of four turns")
    parser.add_argument("--sentences", type=int, default=480, help="in each turn")
    add_out(parser)
    flags = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    rows = [("model", "plain / fast", "range", "memory", "ms a sentence: plain, fast", "load average")]
    for name, model in {"gpt2": str(flags.shared / "gpt2"), "bundled": str(BUNDLED_MODEL)}.items():
        sentences = sst2_sentences(model, flags.shared / "data" / "sst2")
        results[name] = one = compare(model, sentences, flags.sentences, flags.rounds)
        cells = [f"{one['time_ratio']:.2f}", "{:.2f} .. {:.2f}".format(*one["time_ratio_range"])]
        times = f"{one['plain_ms_per_sentence']:.2f}, {one['fast_ms_per_sentence']:.2f}"
        loads = "{before:.1f} .. {after:.1f}".format(**one["load_average"])
        rows.append((name, *cells, f"{one['memory_ratio']:.2f}", times, loads))
    print(markdown_table(rows))
    finish(flags.out, results, precision=resolve_precision("auto", resolve_device("auto")))


if __name__ == "__main__":
    main()

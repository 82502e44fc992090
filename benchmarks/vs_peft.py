"""Why: is a hand-written loop slower than PEFT + Trainer? Same model, same sentences, their settings.

    python benchmarks/vs_peft.py --shared ../shared

GPT-2 small (a checkpoint of random weights: speed does not depend on them; its dropout), batch 16, LoRA
r=4 on c_attn with the head, on SST-2 sentences. Theirs, for LoRA:

- published: every sentence padded to 128 tokens, fp32;
- default:   padded to the longest of its batch, fp32;
- best:      grouped by length, fused AdamW, GELU as one kernel, bf16 where this machine multiplies it;
- gelu_new:  the same with GELU as GPT-2's configuration names it, in eight steps;
- bf16_base: best, and the base loaded in bf16, which is no switch of Trainer's, and rounds more.

And for full and prelayer, `Trainer` at its best. It never logs, saves or shows anything. `--switches` instead
compares Trainer at its best with itself under one more switch, to see that best is best. Ours runs in every
setting as `run.py` does: in the precision that `auto` picks, or in --precision.

Trainer sorts by length within a quarter of the data, at most 50 batches. Where it does, turns have 3,200
sentences: it then pads as little as on the whole job (95 % are real tokens, of ours 99 %).

Each side is a process of its own, so that its peak memory is its own. Both set up and warm up; then they take
turns over the same sentences, and in turn go first. Ends in one JSON line; time ratios are theirs / ours,
memory ratios ours / theirs; with `--switches`, best / with the switch.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from outcome import add_out, finish
from sides import Ours, Sentences, Side, Theirs, Work, best, draw, ratio, sst2_sentences, write_checkpoint

from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.precision import resolve_precision

WARM_UP = 64  # sentences
GELU_NEW = "gelu_new"
SETTINGS = {  # what differs from LoRA with Trainer at its best, and sentences in each turn
    "published": ({"trainer": {}, "activation": GELU_NEW, "pad_to": 128}, 96),
    "default": ({"trainer": {}, "activation": GELU_NEW}, 320),
    "best": ({}, 3200),
    "gelu_new": ({"activation": GELU_NEW}, 3200),
    "bf16_base": ({"base_in_bf16": True}, 3200),
    "full": ({"method": "full"}, 3200),
    "prelayer": ({"method": "prelayer"}, 3200),
}
SWITCHES = {
    "a worker loads the data": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    "no gradient clipping": {"max_grad_norm": 0.0},
    "AdamW not fused": {"optim": "adamw_torch"},
    "losses not looked at": {"logging_nan_inf_filter": False},
}


def take_turns(sides: list[Side], sentences: Sentences, count: int, turns: int) -> None:
    """Warm up, then turns: all sides over the same sentences, other ones in each turn."""
    generator = torch.Generator().manual_seed(0)
    for side in sides:
        side.train(draw(sentences, WARM_UP, generator))
    for turn in range(turns):
        chosen = draw(sentences, count, generator)
        for side in sides[:: -1 if turn % 2 else 1]:
            side.turn(chosen)
    for side in sides:
        side.close()


def compare(work: Work, sentences: Sentences, count: int, turns: int) -> dict[str, object]:
    ours, theirs, load = Side(Ours, work), Side(Theirs, work), os.getloadavg()[0]
    take_turns([ours, theirs], sentences, count, turns)
    time_ratio, time_range = ratio(theirs.seconds, ours.seconds)
    return {
        "time_ratio": time_ratio,
        "time_ratio_range": time_range,
        "memory_ratio": ours.peak_bytes / theirs.peak_bytes,
        "ours_ms_per_sentence": 1000 * median(ours.seconds) / count,
        "theirs_ms_per_sentence": 1000 * median(theirs.seconds) / count,
        "ours_peak_bytes": ours.peak_bytes,
        "theirs_peak_bytes": theirs.peak_bytes,
        "sentences_per_turn": count,
        "pairs": turns,
        "load_average": {"before": load, "after": os.getloadavg()[0]},
    }


def compare_switches(work: Work, sentences: Sentences, count: int, turns: int) -> dict[str, object]:
    sides = {
        name: Side(Theirs, replace(work, trainer=work.trainer | switch)) for name, switch in SWITCHES.items()
    }
    at_best = Side(Theirs, work)
    take_turns([at_best, *sides.values()], sentences, count, turns)
    ratios = {name: ratio(at_best.seconds, side.seconds) for name, side in sides.items()}
    return {name: {"time_ratio": middle, "time_ratio_range": ends} for name, (middle, ends) in ratios.items()}


def measure(work: Work, flags: argparse.Namespace) -> dict[str, object]:
    """Every setting that is asked for, or the switches."""
    sentences = sst2_sentences(work.model, flags.shared / "data" / "sst2")
    if flags.switches:
        return compare_switches(work, sentences, flags.sentences or 800, flags.pairs)
    results = {}
    for setting in flags.settings:
        changes, count = SETTINGS[setting]
        count = flags.sentences or count
        results[setting] = compare(replace(work, **changes), sentences, count, flags.pairs)
        print(f"{setting}: {results[setting]['time_ratio']:.2f}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/ and data/sst2/")
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    parser.add_argument("--switches", action="store_true", help="Trainer at its best against itself")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of both sides' best"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sentences", type=int, help="in each turn (default: by setting, see above)")
    add_out(parser)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(flags.shared / "gpt2", Path(folder))
        work = Work(str(model), trainer=best(flags.precision), precision=flags.precision)
        results = measure(work, flags)
    rows = [("setting", "time ratio", "range", "memory ratio", "ms a sentence: ours, theirs")]
    for setting, result in results.items():
        low, high = result["time_ratio_range"]
        cells = [setting, f"{result['time_ratio']:.2f}", f"{low:.2f} .. {high:.2f}"]
        if not flags.switches:
            cells.append(f"{result['memory_ratio']:.2f}")
            cells.append(f"{result['ours_ms_per_sentence']:.1f}, {result['theirs_ms_per_sentence']:.1f}")
        rows.append(cells)
    print(markdown_table([row[: len(rows[-1])] for row in rows]))
    finish(flags.out, results, precision=resolve_precision(flags.precision, resolve_device("auto")))


if __name__ == "__main__":
    main()

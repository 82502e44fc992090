"""Why: is a hand-written loop slower than PEFT + Trainer? Same model, same sentences, their settings.

    python benchmarks/vs_peft.py --shared ../shared

GPT-2 small (random weights: speed does not depend on them; dropout as in its configuration), batch 16, LoRA
r=4 on c_attn with the head, on SST-2 sentences. Theirs, for LoRA:

- published: every sentence padded to 128 tokens, fp32;
- default:   padded to the longest of its batch, fp32;
- best:      grouped by length, bf16, fused AdamW, nothing logged, saved or shown;
- bf16_base: best, and the base loaded in bf16, which is no switch of Trainer's, and rounds more.

And for full and prelayer, `Trainer` at its best. `--switches` instead compares Trainer at its best with
itself under one more switch, to see that best is best. Ours runs in every setting as `run.py` does: in bf16,
where the CPU multiplies it.

Trainer sorts by length within a quarter of the data, at most 50 batches. Turns are long where it does: with
3,200 sentences it pads as little as on the whole job (95 % are real tokens, of ours 99 %), with 1,600 a
little more (91 and 97 %).

Each side is a process of its own, so that its peak memory is its own. Both set up and warm up; then they take
turns over the same sentences. Ends in one JSON line; time ratios are theirs / ours, memory ratios ours /
theirs; with `--switches`, best / with the switch.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from outcome import add_out, finish
from sides import BEST, Ours, Sentences, Side, Theirs, Work, draw, ratio, sst2_sentences

from lora_from_scratch.report.tables import markdown_table

WARM_UP = 64  # sentences
SETTINGS = {  # what differs from LoRA with Trainer at its best, and sentences in each turn
    "published": ({"trainer": {}, "pad_to": 128}, 96),
    "default": ({"trainer": {}}, 320),
    "best": ({}, 3200),
    "bf16_base": ({"base_in_bf16": True}, 1600),
    "full": ({"method": "full"}, 1600),
    "prelayer": ({"method": "prelayer"}, 1600),
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
    for _ in range(turns):
        chosen = draw(sentences, count, generator)
        for side in sides:
            side.turn(chosen)
    for side in sides:
        side.close()


def compare(work: Work, sentences: Sentences, count: int, turns: int) -> dict[str, object]:
    ours, theirs = Side(Ours, work), Side(Theirs, work)
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
    }


def compare_switches(work: Work, sentences: Sentences, count: int, turns: int) -> dict[str, object]:
    sides = {name: Side(Theirs, replace(work, trainer=BEST | switch)) for name, switch in SWITCHES.items()}
    best = Side(Theirs, work)
    take_turns([best, *sides.values()], sentences, count, turns)
    ratios = {name: ratio(best.seconds, side.seconds) for name, side in sides.items()}
    return {name: {"time_ratio": middle, "time_ratio_range": ends} for name, (middle, ends) in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/ and data/sst2/")
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    parser.add_argument("--switches", action="store_true", help="Trainer at its best against itself")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sentences", type=int, help="in each turn (default: by setting, see above)")
    add_out(parser)
    flags = parser.parse_args()
    best = Work(model=str(flags.shared / "gpt2"))
    sentences = sst2_sentences(best.model, flags.shared / "data" / "sst2")
    if flags.switches:
        results = compare_switches(best, sentences, flags.sentences or 800, flags.pairs)
    else:
        results = {}
        for setting in flags.settings:
            changes, count = SETTINGS[setting]
            work, count = replace(best, **changes), flags.sentences or count
            results[setting] = compare(work, sentences, count, flags.pairs)
            print(f"{setting}: {results[setting]['time_ratio']:.2f}", file=sys.stderr, flush=True)
    rows = [("setting", "time ratio", "range", "memory ratio", "ms a sentence: ours, theirs")]
    for setting, result in results.items():
        low, high = result["time_ratio_range"]
        cells = [setting, f"{result['time_ratio']:.2f}", f"{low:.2f} .. {high:.2f}"]
        if not flags.switches:
            cells.append(f"{result['memory_ratio']:.2f}")
            cells.append(f"{result['ours_ms_per_sentence']:.1f}, {result['theirs_ms_per_sentence']:.1f}")
        rows.append(cells)
    print(markdown_table([row[: len(rows[-1])] for row in rows]))
    finish(flags.out, results)


if __name__ == "__main__":
    main()

"""Why: does training collapse when the machine does something else as well, and what helps?

    python benchmarks/contended.py --shared ../shared

OpenMP's threads wait for each other at the end of every operation. By default they do so spinning, and where
another process has taken the core of one of them, the others spin for as long as it is away. run.py looks for
such processes twice a second (cli/waiting.py), so a turn should last several seconds. Each setting of WAITING
is a process of its own that trains LoRA (r=4, c_attn and head) on random weights, in the shapes of GPT-2
small and of the bundled base; one more trains by PEFT + Trainer's default. They take turns over the same
SST-2 sentences, forth and back, with no, one and two processes beside them that do nothing but count. Ends in
one JSON line; a share is of the speed of the same setting, or of PyTorch's own, on the quiet machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from outcome import add_out, finish
from sides import AS_RUN_PY, Ours, Sentences, Side, Theirs, Work, draw, sst2_sentences

from lora_from_scratch.base.load import BUNDLED_MODEL
from lora_from_scratch.report.tables import markdown_table

BUSY = (0, 1, 2)  # processes beside the one that trains
WAITING = {  # what is in the environment before PyTorch is loaded; None: as run.py has it
    "PyTorch's own": {},
    AS_RUN_PY: None,
    **{f"spinning {n:,} times": {"GOMP_SPINCOUNT": str(n)} for n in (10_000, 5_000, 3_000, 1_000)},
    "not spinning": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
THEIRS = "PEFT + Trainer"
WARM_UP = 64  # sentences
SENTENCES = {"gpt2": 240, "bundled": 3600}  # in each turn


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Within the block so many processes keep a core busy each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(
    model: str, sentences: Sentences, count: int, waiting: list[str], busy_counts: list[int], rounds: int
) -> dict[str, dict[str, object]]:
    """By setting, and by busy processes: sentences a second in each turn."""
    sides = {name: Side(Ours, Work(model), WAITING[name]) for name in waiting}
    sides[THEIRS] = Side(Theirs, Work(model, trainer={}))
    generator = torch.Generator().manual_seed(0)
    for side in sides.values():
        side.train(draw(sentences, WARM_UP, generator))
    speeds = {name: {str(others): [] for others in busy_counts} for name in sides}
    loads: dict[str, list[float]] = {str(others): [] for others in busy_counts}
    for _ in range(rounds):
        for others in busy_counts:
            loads[str(others)].append(os.getloadavg()[0])
            chosen = draw(sentences, count, generator)
            with busy(others):
                for name in (*sides, *reversed(sides)):
                    seconds = sides[name].train(chosen)
                    speeds[name][str(others)].append(count / seconds)
    for side in sides.values():
        side.close()
    return {"sentences_per_second": speeds, "load_average_before": loads}


def summary(measured: dict[str, dict[str, object]]) -> dict[str, object]:
    """Medians, and shares of the quiet speed, of the setting's own and of PyTorch's own."""
    speeds = measured["sentences_per_second"]
    medians = {name: {busy: median(of) for busy, of in by.items()} for name, by in speeds.items()}
    quiet = medians[next(iter(WAITING))]["0"]
    return {
        **measured,
        "median": medians,
        "of_own_quiet": {name: {b: s / by["0"] for b, s in by.items()} for name, by in medians.items()},
        "of_pytorchs_quiet": {name: {b: s / quiet for b, s in by.items()} for name, by in medians.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/ and data/sst2/")
    parser.add_argument("--models", nargs="+", choices=tuple(SENTENCES), default=tuple(SENTENCES))
    others = list(WAITING)[1:]
    parser.add_argument("--waiting", nargs="*", choices=others, default=others, help="beside PyTorch's own")
    parser.add_argument("--busy", nargs="+", type=int, default=BUSY, help="processes beside; 0 among them")
    parser.add_argument("--rounds", type=int, default=3, help="of two turns each")
    parser.add_argument("--sentences", type=int, help="in each turn (default: by model)")
    add_out(parser)
    flags = parser.parse_args()
    folders = {"gpt2": str(flags.shared / "gpt2"), "bundled": str(BUNDLED_MODEL)}
    waiting, results = [next(iter(WAITING)), *flags.waiting], {}
    rows = [("model", "setting", *(f"{count} busy: sentences/s, of the quiet speed" for count in flags.busy))]
    for name in flags.models:
        sentences = sst2_sentences(folders[name], flags.shared / "data" / "sst2")
        count = flags.sentences or SENTENCES[name]
        results[name] = one = summary(
            measure(folders[name], sentences, count, waiting, flags.busy, flags.rounds)
        )
        for setting, by in one["median"].items():
            shares = one["of_own_quiet"][setting]
            rows.append((name, setting, *(f"{by[str(b)]:.1f}, {shares[str(b)]:.2f}" for b in flags.busy)))
    print(markdown_table(rows))
    finish(flags.out, results)


if __name__ == "__main__":
    main()

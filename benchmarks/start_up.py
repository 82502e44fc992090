"""Why: a sentence is labelled in a moment, PyTorch and transformers take seconds to import. What is ours?

    python benchmarks/start_up.py --before ../other-checkout

Trains a LoRA adapter on the bundled base for a moment. Then processes take turns, each begun anew, in one
order and then in the other: `run.py predict` of one sentence, by this checkout and by another one, and two
programs that only import what a prediction cannot do without (torch, transformers' tokenizers and GPT-2): as
anybody does (`imports`), and as the command line does (`our_imports`, without looks for garbage meanwhile).
Take an installation without the extras: transformers imports scipy and scikit-learn where they are there.
Ends in one JSON line; of wall-clock and of CPU time there are ratios within a turn alone, so that a busy
machine falls on all. What a prediction takes beside the imports is loading, computing, and the rest of ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from outcome import add_out, finish

from lora_from_scratch.report.tables import markdown_table

ROOT = Path(__file__).parents[1]
IMPORTS = "import torch; from transformers import AutoTokenizer, GPT2ForSequenceClassification"
OUR_IMPORTS = f"from lora_from_scratch.cli.loading import importing\nwith importing():\n    {IMPORTS}"
TRAIN = ["--model", "bundled", "--dataset", "bundled", "--max-steps", "20"]
Times = list[dict[str, float]]  # of each turn: wall-clock seconds and those of the CPU in user mode


def timed(*arguments: str) -> dict[str, float]:
    """A Python process from its start to its end."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with status {process.returncode}")
    return {"wall": time.perf_counter() - started, "user": used.ru_utime}


def ratios(above: Times, below: Times) -> dict[str, dict[str, object]]:
    """Turn by turn, by the clock and by CPU time: the median, the smallest and the largest."""
    found = {}
    for clock in ("wall", "user"):
        each = [a[clock] / b[clock] for a, b in zip(above, below, strict=True)]
        found[clock] = {"median": median(each), "range": [min(each), max(each)]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of an older version")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of two turns each")
    add_out(parser)
    flags = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}  # how soon the hub answers is not measured
    checkouts = {"after": ROOT} | ({"before": flags.before} if flags.before else {})
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        timed(str(ROOT / "run.py"), *TRAIN, "--output-dir", f"{folder}/adapter")
        text = ["predict", "--adapter", f"{folder}/adapter", "a warm , funny film"]
        sides = {side: [str(checkout / "run.py"), *text] for side, checkout in checkouts.items()}
        sides |= {"imports": ["-c", IMPORTS], "our_imports": ["-c", OUR_IMPORTS]}
        taken: dict[str, Times] = {side: [] for side in sides}
        for arguments in sides.values():
            timed(*arguments)  # from the disk, and into bytecode
        for _ in range(flags.rounds):
            for side in [*sides, *reversed(sides)]:
                taken[side].append(timed(*sides[side]))
    pairs = [("after", "imports"), ("after", "our_imports")]
    pairs += [("before", "imports"), ("after", "before")] if flags.before else []
    results: dict[str, object] = {"turns": 2 * flags.rounds}
    rows = [("ratio", "CPU time", "range", "wall-clock", "range")]
    for above, below in pairs:
        found = results[f"{above}_over_{below}"] = ratios(taken[above], taken[below])
        cells = [
            (f"{found[clock]['median']:.3f}", "{:.3f} to {:.3f}".format(*found[clock]["range"]))
            for clock in ("user", "wall")
        ]
        rows.append((f"{above} / {below}", *cells[0], *cells[1]))
    results["seconds"] = {
        side: {clock: median(turn[clock] for turn in times) for clock in ("wall", "user")}
        for side, times in taken.items()
    }
    print(markdown_table(rows))
    finish(flags.out, results, load_average={"before": load, "after": os.getloadavg()[0]})


if __name__ == "__main__":
    main()

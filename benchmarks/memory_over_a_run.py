"""Why: the peak of a run's memory can be lowered only where it lies. What is resident, moment by moment?

    python benchmarks/memory_over_a_run.py --shared ../shared

A run as `run.py` makes it: LoRA with its defaults on a checkpoint of GPT-2 small's shape (random weights,
written for the occasion), on the bundled sentences, in fp32 and in bf16, each in a process of its own. The
peak of the resident set starts anew at every moment (Linux alone can do that), so each row holds what was
resident at its end, and at most since the row before. Ends in one JSON line, in bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

PRECISIONS = ("fp32", "bf16")
IMPORTED, LOADED, READY = "imports", "loading, adapting, tokenising", "to the first step"
FIRST, TRAINED, GIVEN_BACK = "the first step", "the other steps", "to the end of training"
EVALUATED = "evaluation"
MOMENTS = (IMPORTED, LOADED, READY, FIRST, TRAINED, GIVEN_BACK, EVALUATED)


def marked(mark: Callable, work: Callable, before: str | None, after: str | None) -> Callable:
    """The same work, with a mark before it, and after it."""

    def working(*args: object, **kwargs: object) -> object:
        mark(before)
        result = work(*args, **kwargs)
        mark(after)
        return result

    return working


def one_run(settings: dict[str, object]) -> dict[str, dict[str, int]]:
    """Bytes resident at each moment, and at most since the one before; this process is the run's."""
    import torch

    from lora_from_scratch.core import loop
    from lora_from_scratch.runs import execute, prepare
    from lora_from_scratch.runs.config import RunConfig
    from lora_from_scratch.train import evaluate, measure

    cpu, found = torch.device("cpu"), {}
    reset_peak = measure.reset_peak_memory

    def mark(moment: str | None) -> None:
        """The first time alone."""
        if moment is None or moment in found:
            return
        reading = measure.read_memory(cpu)
        found[moment] = {"resident_bytes": reading.allocated_bytes, "peak_bytes": reading.peak_bytes}
        if not reset_peak(cpu):
            raise SystemExit("this system keeps one peak for the life of a process: there is nothing to see")

    nothing = mock.Mock(return_value=True)  # what a run would do to the peak by itself
    with (
        mock.patch.object(measure, "reset_peak_memory", nothing),
        mock.patch.object(evaluate, "reset_peak_memory", nothing),
        mock.patch.object(loop, "train_step", marked(mark, loop.train_step, READY, FIRST)),
        mock.patch.object(execute, "train", marked(mark, execute.train, None, TRAINED)),
    ):
        mark(IMPORTED)
        prepared = prepare.prepare(RunConfig(**settings))
        mark(LOADED)
        execute.train_prepared(prepared)
        mark(GIVEN_BACK)
        execute.evaluate_prepared(prepared)
        mark(EVALUATED)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        answers, sys.stdout = sys.stdout, sys.stderr
        print(json.dumps(one_run(json.loads(sys.argv[2]))), file=answers)
        return
    from outcome import add_out, finish
    from sides import write_checkpoint

    from lora_from_scratch.report.tables import markdown_table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--steps", type=int, default=40)
    add_out(parser)
    flags = parser.parse_args()
    results: dict[str, dict[str, dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(flags.shared / "gpt2", Path(folder))
        settings = {"method": flags.method, "model": folder, "dataset": "bundled", "device": "cpu"}
        for precision in PRECISIONS:
            asked = json.dumps({**settings, "precision": precision, "max_steps": flags.steps})
            done = subprocess.run(
                [sys.executable, __file__, "--one", asked], stdout=subprocess.PIPE, check=True, text=True
            )
            results[precision] = json.loads(done.stdout)
    rows = [("until", *(f"{p}: {what} (GB)" for p in PRECISIONS for what in ("resident", "peak")))]
    for moment in MOMENTS:
        readings = (results[precision][moment] for precision in PRECISIONS)
        rows.append((moment, *(f"{value / 1e9:.2f}" for reading in readings for value in reading.values())))
    print(markdown_table(rows))
    finish(flags.out, results)


if __name__ == "__main__":
    main()

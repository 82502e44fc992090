"""Why: the table of all methods on one base and one dataset, with error bars over seeds.

    python benchmarks/compare_methods.py --dataset ../shared/data/sst2 --model bundled --seeds 0 1 2

Each run is `run.py` in a process of its own, so that its time and its peak memory are its own; the methods
take turns within each seed. Ends in one JSON line. The result files stay under --output-dir.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, median, stdev

from lora_from_scratch.methods import METHODS
from lora_from_scratch.report.tables import markdown_table, memory_text

ROOT = Path(__file__).parents[1]


def run(method: str, seed: int, folder: Path, flags: list[str]) -> dict[str, object]:
    """One run of the command line; returns its results.json."""
    command = [sys.executable, str(ROOT / "run.py"), "--method", method, "--seed", str(seed)]
    subprocess.run([*command, "--output-dir", str(folder), *flags], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "results.json").read_text())


def table(results: dict[str, list[dict[str, object]]]) -> str:
    """Accuracy and F1 as mean ± standard deviation over the seeds, times as medians, the largest memory."""

    def spread(values: list[float]) -> str:
        return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")

    rows = [("method", "accuracy (%)", "F1 (%)", "trainable", "time (s)", "sentences/s", "memory")]
    for method, runs in results.items():
        first, trained = runs[0], bool(runs[0]["steps"])
        rows.append(
            (
                method,
                spread([run["accuracy"] for run in runs]),
                spread([run["f1"] for run in runs]),
                f"{first['trainable_parameters']:,}",
                f"{median(run['train_seconds'] for run in runs):.0f}" if trained else "-",
                f"{median(run['sentences_per_second'] for run in runs):.0f}" if trained else "-",
                memory_text(max((run["memory"] for run in runs), key=lambda memory: memory["peak_bytes"])),
            )
        )
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/compare"))
    flags, passed_on = parser.parse_known_args()
    results: dict[str, list[dict[str, object]]] = {method: [] for method in flags.methods}
    for seed in flags.seeds:
        for method in flags.methods:
            folder = flags.output_dir / f"{method}-{seed}"
            results[method].append(run(method, seed, folder, passed_on))
    first = results[flags.methods[0]][0]
    print(f"{first['model']} on {first['dataset']}, {first['data']['validation_name']}, seeds {flags.seeds}")
    print(table(results))
    print(json.dumps({"environment": first["environment"], "results": results}))


if __name__ == "__main__":
    main()

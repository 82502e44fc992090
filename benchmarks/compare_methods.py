"""Why: the table of all methods on one base and one dataset, with its spread over seeds.

    python benchmarks/compare_methods.py --dataset ../shared/data/sst2 --model bundled --seeds 0 1 2

Each run is `run.py` in a process of its own, so that its time and its peak memory are its own; the methods
take turns within each seed. Other flags are those of `run.py`; a method's own go to that method alone. Ends
in one JSON line, which `--out FILE` writes too. The folders of the runs stay under --output-dir.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev

from outcome import add_out, finish

from lora_from_scratch.cli.flags import run_parser
from lora_from_scratch.methods import METHODS, method_named
from lora_from_scratch.report.tables import f1_title, interval_text, markdown_table, memory_text
from lora_from_scratch.runs.config import RunConfig

ROOT = Path(__file__).parents[1]
Record = dict[str, object]
ELSEWHERE = {  # once for all runs, in the folder of the run alone, or sentence by sentence
    *("record", "kind", "method", "model", "dataset", "environment", "base"),
    *("config", "data", "evaluation", "files", "output_dir", "baseline"),
}
OF_CONFIG = ("lr", "seed", "precision")


def flags_of(method: str, asked: dict[str, object]) -> list[str]:
    """Those of the flags, as `run.py` parsed them, that the method has, as a command line."""
    settings = method_named(method).Settings.__dataclass_fields__
    own = {*RunConfig.__dataclass_fields__, *settings, "recipe", "debug"}
    line: list[str] = []
    for name, value in asked.items():
        if name in own:
            values = value if isinstance(value, list) else [] if value is True else [value]
            line += ["--" + name.replace("_", "-"), *map(str, values)]
    return line


def run(method: str, seed: int, folder: Path, flags: Sequence[str]) -> Record:
    """One run of the command line; returns its results.json."""
    command = [sys.executable, str(ROOT / "run.py"), "--method", method, "--seed", str(seed)]
    subprocess.run([*command, "--output-dir", str(folder), *flags], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def slim(record: Record) -> Record:
    """What differs from run to run, without its lists."""
    kept = {key: value for key, value in record.items() if key not in ELSEWHERE}
    return {**kept, **{key: record["config"][key] for key in OF_CONFIG}}


def spread(values: Sequence[float], interval: str = "") -> str:
    """The mean, and in brackets the standard deviation, or the interval of a single value."""
    if len(values) > 1:
        interval = f"SD {stdev(values):.2f}"
    return f"{mean(values):.2f}" + (f" ({interval})" if interval else "")


def table(results: dict[str, list[Record]]) -> str:
    """Accuracy and F1 as means over the seeds (`spread`), times as medians, the largest memory."""
    f1 = f1_title(next(iter(results.values()))[0]["f1_of"])
    rows = [("method", "accuracy (%)", f1, "trainable", "time (s)", "sentences/s", "memory")]
    for method, runs in results.items():
        first, trained = runs[0], bool(runs[0]["steps"])
        rows.append(
            (
                method,
                spread([run["accuracy"] for run in runs], interval_text(first)),
                spread([run["f1"] for run in runs]),
                f"{first['trainable_parameters']:,}",
                f"{median(run['train_seconds'] for run in runs):.0f}" if trained else "-",
                f"{median(run['sentences_per_second'] for run in runs):.0f}" if trained else "-",
                memory_text(max((run["memory"] for run in runs), key=lambda memory: memory["peak_bytes"])),
            )
        )
    return markdown_table(rows)


def main() -> None:
    # No abbreviations: `--seed` must not pass for `--seeds`.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/compare"))
    add_out(parser)
    flags, rest = parser.parse_known_args()
    asked = vars(run_parser().parse_args(rest))
    if taken := {"method", "seed", "dry_run"} & asked.keys():
        parser.error(f"set here, run by run: --{', --'.join(sorted(taken)).replace('_', '-')}")
    results: dict[str, list[Record]] = {method: [] for method in flags.methods}
    for seed in flags.seeds:
        for method in flags.methods:
            folder = flags.output_dir / f"{method}-{seed}"
            record = run(method, seed, folder, flags_of(method, asked))
            results[method].append(slim(record))
            print(f"{method}, seed {seed}: {record['accuracy']:.2f} %", file=sys.stderr, flush=True)
    names = {"model": record["model"], "dataset": record["dataset"]}
    print("{model} on {dataset}".format(**names) + f", {record['data']['validation_name']}")
    print(table(results))
    print("always saying {label}: {accuracy:.2f} %".format(**record["baseline"]))
    where = {key: record[key] for key in ("environment", "baseline")}
    where["data_fingerprint"] = record["data"]["fingerprint"]
    finish(flags.out, results, **where, **names)


if __name__ == "__main__":
    main()

"""Why: people bring files of a million rows. How much slower than pandas is a reader that names the line?

    python benchmarks/read_rows.py --texts ../shared/data/sst2/train.tsv

Writes a .csv of a million labelled sentences. Each side reads it in a process of its own: this project into
rows that are checked one by one, `pandas.read_csv` into a frame. The sides take turns, A B B A. Seconds are
those of the call, with its libraries imported before; `started` counts from the start of the process. Memory
is the peak that is resident, as Linux tells it. Ends in one JSON line; ratios are ours / pandas'.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from statistics import median

from outcome import add_out, finish

from lora_from_scratch.data.files import read_rows
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.report.tables import markdown_table

SIDES = {
    "ours": "from lora_from_scratch.data.files import read_rows; from lora_from_scratch.data.rows import "
    "Selection; from lora_from_scratch.data import large_files; import pyarrow.csv, numpy; "
    "read = lambda path: read_rows(path, Selection())",
    "pandas": "import pandas; read = pandas.read_csv",
}
PROGRAM = """
import sys, time
from pathlib import Path
born = time.perf_counter()
{imports}
started = time.perf_counter()
rows = read(Path(sys.argv[1]))
ended = time.perf_counter()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(len(rows), ended - started, ended - born, int(peak) * 1024)
"""


def write(path: Path, texts: list[str], rows: int) -> None:
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((draw.choice(texts), i % 2) for i in range(rows))


def measure(side: str, path: Path, rows: int) -> dict[str, float]:
    program = PROGRAM.format(imports=SIDES[side])
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    count, call, started, peak = map(float, done.stdout.split())
    assert count == rows
    return {"call_seconds": call, "started_seconds": started, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=Path, required=True, help="a file of labelled sentences to draw from")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=5, help="of two runs a side each")
    add_out(parser)
    flags = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        write(path, read_rows(flags.texts, Selection()).texts, flags.rows)
        for side in chain(
            SIDES, *[("ours", "pandas", "pandas", "ours")] * flags.turns
        ):  # the first two warm up
            runs[side].append(measure(side, path, flags.rows))
        size = path.stat().st_size
    ours, pandas = (runs[side][1:] for side in SIDES)
    ratios = {key: sorted(a[key] / b[key] for a, b in zip(ours, pandas, strict=True)) for key in ours[0]}
    table = [("", "ours", "pandas", "ratio", "from", "to")]
    for key, values in ratios.items():
        middle = (f"{median(run[key] for run in side):.3g}" for side in (ours, pandas))
        table.append((key, *middle, f"{median(values):.2f}", f"{values[0]:.2f}", f"{values[-1]:.2f}"))
    print(markdown_table(table))
    results = {key: [median(values), values[0], values[-1]] for key, values in ratios.items()}
    load = os.getloadavg()[0]
    finish(flags.out, results, rows=flags.rows, bytes=size, runs=runs, load_average=load)


if __name__ == "__main__":
    main()

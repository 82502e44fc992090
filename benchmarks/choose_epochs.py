"""Why: small sets need more passes than two. After how many does accuracy stop growing?

    python benchmarks/choose_epochs.py --datasets bundled my_reviews other.csv --seeds 0 1

Trains LoRA on the bundled base with defaults otherwise, once for each dataset, number of epochs and seed, and
measures on the dataset's validation sentences. Numbers of epochs that come to more than 60,000 sentences are
left out. Ends in a table and one JSON line. `default_epochs` of `runs/prepare.py` was read off it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from outcome import add_out, finish

from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import execute
from lora_from_scratch.runs.prepare import prepare

EPOCHS, MOST = (2, 4, 8, 16, 32, 64), 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="+", default=["bundled"], help="as run.py's --dataset")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    add_out(parser)
    flags = parser.parse_args()
    results = []
    for dataset in flags.datasets:
        accuracy: dict[int, list[float]] = {}
        for epochs in EPOCHS:
            for seed in flags.seeds:
                prepared = prepare(RunConfig(model="bundled", dataset=dataset, epochs=epochs, seed=seed))
                count = len(prepared.train_examples)
                if epochs * count <= MOST:
                    accuracy.setdefault(epochs, []).append(execute(prepared).score.accuracy)
        about = {"dataset": Path(dataset).name, "train_sentences": count}
        measured = len(prepared.validation_examples)
        results.append({**about, "validation_sentences": measured, "accuracy": accuracy})
    rows = [("dataset", "sentences", *(f"{epochs} epochs" for epochs in EPOCHS))]
    for result in results:
        found = (result["accuracy"].get(epochs) for epochs in EPOCHS)
        cells = (f"{mean(values):.2f}" if values else "-" for values in found)
        rows.append((result["dataset"], f"{result['train_sentences']:,}", *cells))
    print(markdown_table(rows))
    finish(flags.out, results, seeds=flags.seeds)


if __name__ == "__main__":
    main()

"""Why: a comparison's page belongs beside the code; the sentences it was measured on belong to others.

    python benchmarks/keep_comparison.py runs/compare sst2-methods

Writes the page, pictures and tables of a `run.py compare` anew into benchmarks/results/sst2-methods, with the
sentences' numbers in the place of their words, and its results.json without what stands for single sentences.
Measures nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lora_from_scratch.report.page import write_comparison
from lora_from_scratch.runs.record import as_json
from lora_from_scratch.runs.writable import RESULTS

ROOT = Path(__file__).parents[1]
SENTENCE_BY_SENTENCE = ("labels", "texts", "predictions")


def without_words(comparison: dict[str, object]) -> dict[str, object]:
    """The comparison as its page shows it without the sentences; a path in it by its last parts."""
    command = comparison["command"].replace(str(ROOT.parent), "..")
    datasets = [{**dataset, "texts": None} for dataset in comparison["datasets"]]
    return {**comparison, "command": command, "datasets": datasets}


def without_sentences(value: object) -> object:
    """A record without what has a value for each sentence."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in SENTENCE_BY_SENTENCE}
        return {key: without_sentences(inner) for key, inner in kept.items()}
    return [without_sentences(inner) for inner in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of run.py compare")
    parser.add_argument("name", help="of the folder in benchmarks/results")
    flags = parser.parse_args()
    comparison = without_words(json.loads((flags.folder / RESULTS).read_text(encoding="utf-8")))
    if comparison["done"] < comparison["planned"]:
        parser.error(f"{flags.folder}: {comparison['done']} of {comparison['planned']} runs are done")
    place = ROOT / "benchmarks" / "results" / flags.name
    written = write_comparison(comparison, place)
    (place / RESULTS).write_bytes(as_json(without_sentences(comparison)))
    print(json.dumps({"folder": str(place), "files": [RESULTS, *written]}))


if __name__ == "__main__":
    main()

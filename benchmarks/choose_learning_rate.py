"""Why: each method needs a learning rate of its own, and dev must not choose it.

    python benchmarks/choose_learning_rate.py --dataset ../shared/data/sst2 --seeds 0 1

Holds whole sentences out of SST-2's train split, trains on the rest for the usual two epochs at each rate,
and measures accuracy on what was held out; dev decides nothing. SST-2's train split holds the phrases of its
own sentences, so every phrase of a held-out sentence leaves the training rows too: else the slice would leak.
Ends in one JSON line with all accuracies.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace

from compare_methods import spread
from outcome import add_out, finish

from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.data.dataset import Dataset, Split, load_dataset
from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import execute
from lora_from_scratch.runs.prepare import prepare

GRID = {
    "head": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "full": (1e-4, 3e-4, 1e-3, 3e-3),
    "lora": (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "prelayer": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}
HELD_OUT = 1000  # sentences; the 95 % interval of one accuracy is then about 4 points wide
SHORTEST = 8  # words: dev holds sentences (19.5 words on average), not phrases


def phrases(sentence: str, shortest: int = 1) -> set[str]:
    """Every run of consecutive words of a sentence, itself included, of at least so many words."""
    words = sentence.split()
    return {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + shortest, len(words) + 1)}


def hold_out_sentences(train: Split, count: int, seed: int = 0) -> tuple[Split, Split]:
    """(the rest, the held-out sentences): `count` rows that are no phrase of another row, at random.

    A row stays in the rest only if it is no phrase of a held-out sentence.
    """
    inner: set[str] = set()
    for sentence in train.sentences:
        inner |= phrases(sentence, SHORTEST) - {sentence}
    whole = [i for i, s in enumerate(train.sentences) if s not in inner and len(s.split()) >= SHORTEST]
    chosen = sorted(random.Random(seed).sample(whole, count))
    leaking = set().union(*(phrases(train.sentences[i]) for i in chosen))
    rest = [i for i, sentence in enumerate(train.sentences) if sentence not in leaking]
    return train.take(rest), train.take(chosen)


def accuracy(config: RunConfig, dataset: Dataset) -> float:
    """Accuracy in percent of one run on the given data, whatever the config's dataset holds."""
    prepared = prepare(config)
    examples = {
        f"{name}_examples": tokenize(prepared.tokenizer, split.sentences, split.labels, config.max_length)
        for name, split in (("train", dataset.train), ("validation", dataset.validation))
    }
    return execute(replace(prepared, dataset=dataset, **examples)).score.accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="SST-2's train and dev, as a folder")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--methods", nargs="+", choices=tuple(GRID), default=tuple(GRID))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--limit-train", type=int, metavar="N", help="train on the first N rows")
    add_out(parser)
    flags = parser.parse_args()

    whole = load_dataset(flags.dataset)
    rest, held_out = hold_out_sentences(whole.train, HELD_OUT)
    rest = rest.take(list(range(len(rest)))[: flags.limit_train])
    dataset = Dataset(rest, held_out, whole.label_names, f"{HELD_OUT} sentences held out of train")
    print(f"training rows {len(rest):,} of {len(whole.train):,}, held-out sentences {len(held_out):,}")
    results: dict[str, dict[str, list[float]]] = {}
    for method in flags.methods:
        results[method] = {}
        for lr in GRID[method]:
            config = RunConfig(method=method, lr=lr, model=flags.model, dataset="bundled", epochs=2)
            results[method][f"{lr:g}"] = [accuracy(replace(config, seed=s), dataset) for s in flags.seeds]
            print(method, lr, results[method][f"{lr:g}"], flush=True)
    rows = [("method", "lr", "accuracy (%)")]
    for method, by_lr in results.items():
        for lr, values in by_lr.items():
            rows.append((method, lr, spread(values)))
    print(markdown_table(rows))
    counts = {"training_rows": len(rest), "held_out": len(held_out), "seeds": list(flags.seeds)}
    finish(flags.out, counts, model=flags.model, accuracy=results)


if __name__ == "__main__":
    main()

"""Why: A and B that learned on a rounded base belong to it. What is lost on the base as it was before?

    for seed in 0 1 2 3 4; do
        python run.py --lr 1e-3 --base-precision nf4 --seed $seed --output-dir runs/nf4-$seed \
            --dataset ../shared/data/sst2 --model bundled
    done
    python benchmarks/on_the_whole_base.py --adapters runs/nf4-? --dataset ../shared/data/sst2

Measures each adapter on its rounded base, as `run.py evaluate` does, and on the base's own weights, on which
PEFT puts it. Ends in a table and one JSON line. The interval of the difference is over seeds and sentences;
that both bases have the same adapters is not used, so it is too wide rather than too narrow.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from outcome import add_out, finish
from torch import Tensor

from lora_from_scratch.base.fingerprint import names_in_base
from lora_from_scratch.base.load import load_model
from lora_from_scratch.base.precisions import base_precision
from lora_from_scratch.compare.significance import crossed_difference
from lora_from_scratch.data.batches import TokenizedExamples, tokenize
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.train.evaluate import predict_logits


@torch.no_grad()
def put_on_the_whole_base(adapted: Adapted) -> None:
    """Give every frozen matrix of a LoRA model the base's own numbers again, in place."""
    model, in_base = adapted.model, names_in_base(adapted.model)
    base = load_model(adapted.base_name, adapted.label_names, adapted.tokenizer.pad_token_id)
    whole = dict(base.transformer.named_parameters(prefix="transformer"))
    for name, parameter in model.named_parameters():
        if (own := whole.get(in_base(name))) is not None:
            parameter.copy_(own)


def on_both(adapted: Adapted, examples: TokenizedExamples) -> tuple[Tensor, Tensor]:
    """Logits `(N, num_labels)` in fp32 on the rounded base, and then on the whole one."""
    rounded = predict_logits(adapted.model, examples)
    put_on_the_whole_base(adapted)
    return rounded, predict_logits(adapted.model, examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adapters", nargs="+", type=Path, required=True, help="a folder for each seed")
    parser.add_argument("--dataset", required=True, help="as run.py's --dataset")
    add_out(parser)
    flags = parser.parse_args()
    split, results, right = load_dataset(flags.dataset).validation, [], ([], [])
    for folder in flags.adapters:
        adapted = load_adapted(folder)
        precision = base_precision(adapted.model)
        examples = tokenize(
            adapted.tokenizer, split.sentences, split.labels, adapted.model.config.n_positions
        )
        logits = on_both(adapted, examples)
        answers = [part.argmax(dim=1) for part in logits]
        for kind, found in zip(right, answers, strict=True):
            kind.append((found == examples.labels).numpy())
        accuracy = [100 * float(kind[-1].mean()) for kind in right]
        moved = (logits[1] - logits[0]).abs()
        results.append(
            {
                "adapter": folder.name,
                "base_precision": precision,
                "accuracy": {"rounded": accuracy[0], "whole": accuracy[1]},
                "logits_differ": {"mean": moved.mean().item(), "most": moved.max().item()},
                "largest_logit": logits[0].abs().max().item(),
                "answers_that_change": int((answers[0] != answers[1]).sum()),
            }
        )
    columns = ("adapter", "on the rounded base", "on the whole one", "answers that change")
    rows = [[one["adapter"], *(f"{value:.2f}" for value in one["accuracy"].values())] for one in results]
    rows = [[*row, str(one["answers_that_change"])] for row, one in zip(rows, results, strict=True)]
    print(markdown_table([columns, *rows]))
    difference = asdict(crossed_difference(right[1], right[0]))
    finish(flags.out, {"adapters": results, "whole_less_rounded": difference}, sentences=len(split.labels))


if __name__ == "__main__":
    main()

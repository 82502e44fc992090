"""Why: fast is worth nothing if it learns less. Is the default path as accurate as a plain fp32 loop?

    python benchmarks/same_accuracy.py --dataset ../shared/data/sst2 --seeds 0 1 2

LoRA on the bundled base, for each seed twice from the same weights over the same batches: by `run.py`'s own
loop, and by the plainest one: transformers' forward pass with its attention mask, the LoRA layers of `core/`,
torch's dropout and AdamW, fp32 throughout. Ends in one JSON line with both accuracies on dev.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean

import torch
from outcome import add_out, finish
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import get_scheduler

from lora_from_scratch.core.loop import CLIP_NORM
from lora_from_scratch.data.batches import TokenizedExamples, bucketed_batches
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import run
from lora_from_scratch.runs.prepare import Prepared, generator_for, prepare


def padded(examples: TokenizedExamples, indices: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, `(B, T)` each."""
    starts, lengths = examples.starts[indices].tolist(), examples.lengths[indices].tolist()
    rows = [examples.token_ids[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return ids, torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)


def plain_accuracy(prepared: Prepared) -> float:
    """Dev accuracy in percent after the plain loop."""
    config, model, examples = prepared.config, prepared.model, prepared.train_examples
    torch.manual_seed(config.seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert all(p.ndim == 2 for p in trainable)  # A, B and the head: all are decayed
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
    draw = generator_for(config.seed, "order")
    epochs = [bucketed_batches(examples.lengths, config.batch_size, draw) for _ in range(config.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=len(batches))
    model.train()
    for indices in tqdm(batches, desc="plain"):
        ids, mask = padded(examples, indices, model.config.pad_token_id)
        loss = cross_entropy(model(input_ids=ids, attention_mask=mask).logits, examples.labels[indices])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    dev, right = prepared.validation_examples, 0
    with torch.no_grad():
        for indices in torch.arange(len(dev)).split(32):
            ids, mask = padded(dev, indices, model.config.pad_token_id)
            logits = model(input_ids=ids, attention_mask=mask).logits
            right += int((logits.argmax(dim=1) == dev.labels[indices]).sum())
    return 100 * right / len(dev)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--limit-train", type=int, metavar="N", help="train on N sentences")
    add_out(parser)
    flags = parser.parse_args()
    results: dict[str, list[float]] = {"plain": [], "default": []}
    for seed in flags.seeds:
        config = {"model": "bundled", "dataset": flags.dataset, "device": "cpu", "seed": seed}
        config["limit_train"] = flags.limit_train
        results["plain"].append(plain_accuracy(prepare(RunConfig(precision="fp32", **config))))
        results["default"].append(run(RunConfig(**config)).score.accuracy)
        print(f"seed {seed}: {json.dumps({key: values[-1] for key, values in results.items()})}", flush=True)
    means = {key: mean(values) for key, values in results.items()}
    print(f"plain fp32 loop {means['plain']:.2f} %, default path {means['default']:.2f} %")
    finish(flags.out, {"seeds": list(flags.seeds), **results})


if __name__ == "__main__":
    main()

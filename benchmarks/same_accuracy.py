"""Why: fast is worth nothing if it learns less. Is the default path as accurate as a plain fp32 loop?

    python benchmarks/same_accuracy.py --dataset ../shared/data/sst2 --seeds 0 1 2

LoRA on the bundled base, for each seed twice from the same weights over the same batches: by `run.py`'s own
loop, and by the plainest one: transformers' forward pass with its attention mask, torch's dropout, fp32
throughout. Ends in one JSON line with both accuracies on dev.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean

import torch
from torch.nn.functional import cross_entropy, dropout
from tqdm import tqdm
from transformers import get_scheduler

from lora_from_scratch.core.loop import CLIP_NORM
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.data.batches import TokenizedExamples, bucketed_batches
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import run
from lora_from_scratch.runs.prepare import Prepared, generator_for, prepare
from lora_from_scratch.train.optimizer import make_optimizer


class PlainLoRALinear(LoRALinear):
    """The equation word for word, with torch's dropout."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = dropout(x, self.lora_dropout.p, self.training) @ self.lora_A.T
        return self.base_layer(x) + self.scaling * (h @ self.lora_B.T)


def padded(examples: TokenizedExamples, indices: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, `(B, T)` each."""
    starts, lengths = examples.starts[indices].tolist(), examples.lengths[indices].tolist()
    rows = [examples.token_ids[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return ids, torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)


def plain_accuracy(prepared: Prepared) -> float:
    """Dev accuracy in percent after the plain loop."""
    config, model, examples = prepared.config, prepared.model, prepared.train_examples
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.__class__ = PlainLoRALinear
    torch.manual_seed(config.seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(model, config.lr, config.weight_decay)
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
    flags = parser.parse_args()
    results: dict[str, list[float]] = {"plain": [], "default": []}
    for seed in flags.seeds:
        config = {"model": "bundled", "dataset": flags.dataset, "device": "cpu", "seed": seed}
        results["plain"].append(plain_accuracy(prepare(RunConfig(precision="fp32", **config))))
        results["default"].append(run(RunConfig(**config)).score.accuracy)
        print(f"seed {seed}: {json.dumps({key: values[-1] for key, values in results.items()})}", flush=True)
    means = {key: mean(values) for key, values in results.items()}
    print(f"plain fp32 loop {means['plain']:.2f} %, default path {means['default']:.2f} %")
    print(json.dumps({"seeds": list(flags.seeds), **results}))


if __name__ == "__main__":
    main()

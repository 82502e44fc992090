"""The example that stands alone trains what `core/` trains."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2ForSequenceClassification

from lora_from_scratch import inject_lora, merge_lora
from lora_from_scratch.core import loop
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.methods.interface import decay_matrices

EXAMPLE = Path(__file__).parents[1] / "examples" / "lora_in_60_lines.py"
STEPS, BATCH = 50, 4


def test_it_has_sixty_lines_and_nothing_of_the_package():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 60
    assert "import lora_from_scratch" not in text and "from lora_from_scratch" not in text


def test_its_weights_after_50_steps_are_those_of_core():
    example = runpy.run_path(str(EXAMPLE))
    torch.manual_seed(0)
    theirs, losses = example["train"](STEPS, BATCH)
    assert sum(losses[-10:]) < sum(losses[:10]) - 0.1

    torch.manual_seed(0)  # the head is drawn, then A by A
    folder = example["BUNDLED"] / "mini-gpt2"
    model = GPT2ForSequenceClassification.from_pretrained(folder, num_labels=2, **example["DROPOUT"])
    inject_lora(model, ["attn.c_attn"], rank=4, alpha=16, modules_to_save=["score"])
    optimizer = torch.optim.AdamW(decay_matrices(model.parameters(), 0.01), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    state = loop.TrainState(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))
    steps = list(loop.train(state, batches(example["BUNDLED"], folder)))

    torch.testing.assert_close(torch.stack([step.loss for step in steps]), torch.tensor(losses))
    ours = dict(lora_layers(model))
    for i, block in enumerate(theirs.transformer.h):
        layer = ours[f"transformer.h.{i}.attn.c_attn"]
        for name in ("A", "B"):
            weight = getattr(block.attn.c_attn, name)
            torch.testing.assert_close(getattr(layer, f"lora_{name}"), weight, rtol=1e-3, atol=1e-5)
        block.attn.c_attn = block.attn.c_attn.merge()
    assert all(layer.lora_B.abs().max() > 0.01 for layer in ours.values())
    torch.testing.assert_close(model.score.weight, theirs.score.weight, rtol=1e-3, atol=1e-5)
    merged = merge_lora(model).state_dict()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(merged[name], weight, rtol=1e-3, atol=1e-5)


def batches(bundled: Path, folder: Path) -> list[list[loop.Batch]]:
    """The first sentences of the bundle, in order, padded to the longest of each batch."""
    rows = csv.DictReader((bundled / "mini-reviews" / "train.tsv").read_text().splitlines(), delimiter="\t")
    chosen = [row for _, row in zip(range(STEPS * BATCH), rows, strict=False)]
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for i in range(0, len(chosen), BATCH):
        part = chosen[i : i + BATCH]
        tokens = [torch.tensor(tokenizer(row["sentence"]).input_ids) for row in part]
        labels = torch.tensor([int(row["label"] == "positive") for row in part])
        lengths = torch.tensor([len(ids) for ids in tokens])
        found.append([loop.Batch(torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True), lengths, labels)])
    return found

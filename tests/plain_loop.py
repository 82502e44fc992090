"""Fifty steps in float64: by this project's loop, and by the simplest one around somebody else's model."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.train.training import Course, train

STEPS, LR, DECAY = 50, 1e-2, 0.1


def ours_trained(model: nn.Module, examples: TokenizedExamples) -> dict[str, torch.Tensor]:
    """All sentences in each step, so that the order is one; returns what the parameters were before."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    whole = {"epochs": STEPS, "batch_size": len(examples), "lr": LR, "weight_decay": DECAY}
    order = torch.Generator().manual_seed(0)
    train(model, examples, Course(**whole, precision=torch.float32, generator=order))
    return before


def theirs_trained(
    model: nn.Module, decayed: list[nn.Parameter], others: list[nn.Parameter], examples: TokenizedExamples
) -> None:
    """The same by transformers' forward pass with its mask, torch's AdamW, and a rate that falls to 0."""
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=LR)
    order = examples.lengths.argsort()
    ids = examples.token_ids.split(examples.lengths.tolist())
    padded = nn.utils.rnn.pad_sequence([ids[i] for i in order], batch_first=True)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / STEPS)
        scores = model(input_ids=padded, attention_mask=(padded != 0).long()).logits
        cross_entropy(scores, examples.labels[order]).backward()
        nn.utils.clip_grad_norm_([*decayed, *others], 1.0)
        optimizer.step()
        optimizer.zero_grad()

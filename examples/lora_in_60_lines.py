"""LoRA (Hu et al. 2021) in 60 lines that need nothing of this project but its small GPT-2 and its sentences.

python examples/lora_in_60_lines.py
"""

import csv
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, GPT2ForSequenceClassification

BUNDLED = Path(__file__).resolve().parents[1] / "lora_from_scratch" / "bundled"
DROPOUT = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)  # none: a run can be done again


class LoRA(nn.Module):
    """h = W0 x + (alpha / r) B A x around a layer that holds W0 as (in, out), as GPT-2's do."""

    def __init__(self, base: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        in_dim, out_dim = base.weight.shape
        self.base, self.scaling = base, alpha / rank
        self.A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, in_dim), a=5**0.5))
        self.B = nn.Parameter(torch.zeros(out_dim, rank))  # so the first step starts at the pretrained model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scaling * (x @ self.A.T) @ self.B.T

    def merge(self) -> nn.Module:
        self.base.weight.data += self.scaling * (self.B @ self.A).T.data
        return self.base


def train(steps: int = 50, batch: int = 16) -> tuple[GPT2ForSequenceClassification, list[float]]:
    """The model with LoRA on every c_attn (that is Wq, Wk and Wv in one), and the loss of each step."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "mini-gpt2", padding_side="right")
    model = GPT2ForSequenceClassification.from_pretrained(BUNDLED / "mini-gpt2", num_labels=2, **DROPOUT)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False).score.requires_grad_(True)  # the head is new: it learns whole
    for block in model.transformer.h:
        block.attn.c_attn = LoRA(block.attn.c_attn, rank=4, alpha=16)
    learning = [p for p in model.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in learning):,} of {sum(p.numel() for p in model.parameters()):,} learn")
    optimizer, losses = torch.optim.AdamW(learning, lr=1e-3, weight_decay=0.01), []
    sentences = (BUNDLED / "mini-reviews" / "train.tsv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(sentences.splitlines(), delimiter="\t"))
    for i in range(0, steps * batch, batch):
        part = rows[i : i + batch]
        tokens = tokenizer([row["sentence"] for row in part], padding=True, return_tensors="pt")
        labels = torch.tensor([int(row["label"] == "positive") for row in part])
        loss = cross_entropy(model(**tokens).logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


if __name__ == "__main__":
    torch.manual_seed(0)
    trained, losses = train()
    print(
        f"loss {sum(losses[:10]) / 10:.3f} in the first ten steps, {sum(losses[-10:]) / 10:.3f} in the last"
    )
    for block in trained.transformer.h:
        block.attn.c_attn = block.attn.c_attn.merge()  # a plain GPT-2 again, at no cost

"""What is pretrained: every choice of it, the architecture, its loss and optimizers, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass(frozen=True)
class Settings:
    """Every choice of the pretraining. Lengths are in tokens."""

    vocab_size: int = 8192
    n_positions: int = 128
    n_embd: int = 256
    n_layer: int = 4
    n_head: int = 4
    batch_size: int = 64
    steps: int = 6000
    warmup_steps: int = 100
    lr: float = 8e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    held_out: float = 0.01  # of the documents, for the validation loss
    validate_every: int = 1000
    seed: int = 0


def next_token_loss(model: GPT2LMHeadModel, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each token given those before it; bf16 products, fp32 loss."""
    with torch.autocast(batch.device.type, torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def make_optimizers(model: GPT2LMHeadModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW without decay for embeddings, biases and LayerNorm.

    Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") orthogonalises each
    update; scaled to AdamW's update size (Liu et al. 2025, arXiv:2502.16982) it shares AdamW's learning rate.
    """
    blocks = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if ".h." not in name or p.ndim < 2]
    return [
        torch.optim.Muon(
            blocks, lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then linear decay to zero."""
    left = (settings.steps - step) / (settings.steps - settings.warmup_steps)
    return settings.lr * min((step + 1) / settings.warmup_steps, left)


def model_config(settings: Settings, dropout: float) -> GPT2Config:
    """GPT-2's architecture at the size of the settings; the end-of-text token is id 0."""
    return GPT2Config(
        vocab_size=settings.vocab_size,
        n_positions=settings.n_positions,
        n_embd=settings.n_embd,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        activation_function="gelu_pytorch_tanh",  # gelu_new as one fused operation
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def save_weights(model: GPT2LMHeadModel, settings: Settings, out: Path) -> None:
    """Write config.json and model.safetensors in bf16, with GPT-2's own dropout for whoever fine-tunes it.

    The configuration asks for fp32: who loads it without naming a type, as PEFT does, computes in that.
    """
    copy = GPT2LMHeadModel(model_config(settings, dropout=0.1))
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(out)
    copy.config.dtype = "float32"
    copy.config.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)

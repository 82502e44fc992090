"""Which base an adapter was trained on: digests that travel in its file and are compared at loading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

PROBE = "It isn't\ta naïve 3.5-star FILM…  it 's !"


def fingerprints(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, replaced: Iterable[str]
) -> dict[str, str]:
    """The digests of a base as safetensors metadata; parameters named in `replaced` are not part of it."""
    digests = {"base_weights": weights_fingerprint(model, replaced)}
    if tokenizer is not None:
        digests["tokenizer"] = tokenizer_fingerprint(tokenizer)
    return digests


def weights_fingerprint(model: nn.Module, replaced: Iterable[str] = ()) -> str:
    """SHA-256 over the base's weights, those named in `replaced` and LoRA's own left out.

    Weights are hashed as bf16, so that a base kept in bf16 and the same base in fp32 are one base.
    """
    digest, left_out = hashlib.sha256(), set(replaced)
    base = {name.replace(".base_layer.", "."): tensor for name, tensor in model.named_parameters()}
    for name, tensor in sorted(base.items()):
        if name not in left_out and ".lora_" not in name:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            bits = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8)
            digest.update(bits.numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the vocabulary, and over how an awkward sentence is cut."""
    probe = tokenizer(PROBE, add_special_tokens=False).input_ids
    return hashlib.sha256(json.dumps([sorted(tokenizer.get_vocab().items()), probe]).encode()).hexdigest()

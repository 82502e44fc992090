"""Which base an adapter was trained on: digests that travel in its file and are compared at loading."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from lora_from_scratch.base.precisions import FLOAT, KEY, base_precision
from lora_from_scratch.base.quantised import QuantisedLinear, quantised_layers
from lora_from_scratch.errors import UserError

# What GPT-2 computes with beside its weights. Not dropout, which acts in training alone.
COMPUTED = (
    "activation_function",
    "layer_norm_epsilon",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
)
COMPUTED += ("reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "vocab_size")
WHAT = {
    "base_weights": "a base with other weights",
    "base_config": "a base with another configuration",
    "tokenizer": "a base with another tokenizer",
}
PROBE = "It isn't\ta naïve 3.5-star FILM…  it 's !"
PART = 2**20  # weights that are rounded at a time


def fingerprints(model: nn.Module, tokenizer: Tokenizer | None, replaced: Iterable[str]) -> dict[str, str]:
    """The digests of a base as safetensors metadata; parameters named in `replaced` are not part of it.

    A base that was rounded has a line that says to what; its digest is that of the rounded weights.
    """
    digests = {"base_weights": weights_fingerprint(model, replaced), "base_config": config_fingerprint(model)}
    if tokenizer is not None:
        digests["tokenizer"] = tokenizer_fingerprint(tokenizer)
    precision = base_precision(model)
    return digests if precision == FLOAT else {KEY: precision, **digests}


def weights_fingerprint(model: nn.Module, replaced: Iterable[str] = ()) -> str:
    """SHA-256 over the base's weights, those named in `replaced` and what was added left out.

    Weights are hashed as bf16, so that a base kept in bf16 and the same base in fp32 are one base; those of
    quantised layers as the dense ones that they stand for.
    """
    digest, left_out = hashlib.sha256(), set(replaced)
    base = dict(model.named_parameters()) | {f"{name}.weight": q for name, q in quantised_layers(model)}
    in_base = names_in_base(model)
    base = {in_base(name): tensor for name, tensor in base.items()}
    for name, tensor in sorted(base.items()):
        if name not in left_out and not is_added(name):
            tensor = tensor.dense().weight if isinstance(tensor, QuantisedLinear) else tensor
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            for part in tensor.detach().flatten().split(PART):
                digest.update(part.to("cpu", torch.bfloat16).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_added(name: str) -> bool:
    """Whether a parameter is none of a base's: LoRA's and DoRA's, (IA)^3's, or the prefix of a block."""
    return ".lora_" in name or ".ia3_" in name or bool(re.search(r"\.h\.\d+\.prefix$", name))


def names_in_base(model: nn.Module) -> Callable[[str], str]:
    """What the base calls a parameter or buffer of the model: those of wrapped layers stand one name deeper.

    Wrapped is what something was added beside. A user's own layer may be called `base_layer`, too.
    """
    wrapped = {name.rpartition(".")[0] for name, _ in model.named_parameters() if is_added(name)}

    def in_base(name: str) -> str:
        layer, _, rest = name.rpartition(".base_layer.")
        return f"{layer}.{rest}" if layer in wrapped else name

    return in_base


def config_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the configuration, as far as it changes logits, and over the buffers that are saved."""
    config = getattr(model, "config", None)
    settings = {key: getattr(config, key) for key in COMPUTED if hasattr(config, key)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    weights = {f"{name}.{key}" for name, q in quantised_layers(model) for key, _ in q.named_buffers()}
    saved = model.state_dict().keys() - weights
    in_base = names_in_base(model)
    buffers = {in_base(name): b for name, b in model.named_buffers() if name in saved}
    for name, buffer in sorted(buffers.items()):
        digest.update(f"{name} {tuple(buffer.shape)} {buffer.dtype}".encode())
        digest.update(buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 over the vocabulary, and over how an awkward sentence is cut."""
    probe = tokenizer(PROBE, add_special_tokens=False).input_ids
    return hashlib.sha256(json.dumps([sorted(tokenizer.get_vocab().items()), probe]).encode()).hexdigest()


def check_base(found: dict[str, str], metadata: dict[str, str], folder: Path) -> None:
    """Raise `UserError` if the digests `found` are not those that the metadata of an adapter's file names.

    A file without this project's digests only gets a warning: nothing then says which base it belongs to.
    """
    if "base_weights" not in metadata:
        what = "does not say on which base's weights it was trained"
        warnings.warn(f"{folder} {what}: make sure that --model names its own", stacklevel=3)
        return
    there, here = (digests.get(KEY, FLOAT) for digests in (metadata, found))
    if there != here:
        how = f"rounded(base, {there!r}) of lora_from_scratch.base.precisions gives its own"
        raise UserError(f"{folder}: this adapter was trained on a base in {there}, not in {here}: {how}")
    for key, digest in found.items():
        if metadata.get(key, digest) != digest:  # version 0.1.0 wrote no base_config
            raise UserError(f"{folder}: this adapter was trained on {WHAT[key]}; name its own with --model")

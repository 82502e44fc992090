"""Adapter files in PEFT's on-disk format, both ways: adapter_config.json and adapter_model.safetensors.

What is saved is exactly what has `requires_grad`: LoRA's A and B, and whole modules (the head always). PEFT
reads the files as its own; `load_adapter` reads PEFT's, and refuses whatever it would get silently wrong.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.base.fingerprint import check_base, fingerprints
from lora_from_scratch.base.load import BUNDLED
from lora_from_scratch.core.surgery import inject_lora, lora_layers
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.adapted import (
    HEAD_WEIGHT,
    Adapted,
    load_base,
    merged_block,
    python_block,
    read_tensors,
    write_tensors,
)
from lora_from_scratch.formats.files import appearing
from lora_from_scratch.formats.peft_checks import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    check_layers,
    check_whole,
    in_and_out,
    read_config,
    split_tensors,
    targeted,
)

TITLE = "peft"
FILES = (CONFIG, WEIGHTS)


def is_in(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def save(adapted: Adapted, folder: Path) -> None:
    """`save_adapter` into a folder that is there."""
    _write(adapted.model, folder, adapted.base_name, adapted.tokenizer)


def load(folder: Path, base_name: str | None = None) -> Adapted:
    """The base that the files name, with `load_adapter` applied."""
    config = read_config(folder)
    tensors, metadata = read_tensors(folder / WEIGHTS)
    base_name = base_name or config.get("base_model_name_or_path")
    model, tokenizer = load_base(folder / WEIGHTS, base_name, metadata, tensors.get(PREFIX + HEAD_WEIGHT))
    return Adapted(load_adapter(model, folder, tokenizer), tokenizer, base_name)


def how_to_load(base_name: str, labels: int) -> list[str]:
    bundled = base_name == BUNDLED
    base = "str(BUNDLED_MODEL)" if bundled else repr(base_name)
    return [
        *("In PEFT:", ""),
        *python_block(
            *(["from lora_from_scratch.base.load import BUNDLED_MODEL"] if bundled else []),
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({base})",
            "base = AutoModelForSequenceClassification.from_pretrained(",
            f'    {base}, num_labels={labels}, dtype="float32"',
            ")",
            "base.config.pad_token_id = tokenizer.eos_token_id",
            'model = PeftModel.from_pretrained(base, ".")',
        ),
        "",
        *merged_block(),
    ]


def save_adapter(
    model: nn.Module,
    folder: Path,
    base_name: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write what was trained into `folder` as a PEFT adapter.

    A model without LoRA layers (`prelayer`) gets all-zero rank-1 ones in the files, around `attn.c_attn`,
    because PEFT knows no adapter that only saves modules.

    Args:
        base_name: what the configuration calls the base; None takes the model's own `name_or_path`.
        tokenizer: the one the model was trained with; its fingerprint travels in the metadata.

    Raises:
        UserError: the model's LoRA layers differ in rank, alpha or dropout, which one configuration cannot
            say.
        OSError: the folder cannot be written to.
    """
    with appearing(folder) as aside:
        _write(model, aside, base_name, tokenizer)


def load_adapter(
    model: nn.Module, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> nn.Module:
    """Put the adapter of a folder into the model it was trained on, and let exactly its parameters learn.

    The files may come from here or from PEFT. All is checked before the model is touched. Files without this
    project's fingerprint of the base load with a warning, since nothing then says which base they belong to.

    Raises:
        UserError: a file is missing or damaged; it asks for what is not implemented here; a tensor is
            missing, unexpected, misshapen or not finite; or the base's weights or tokenizer are not those of
            training.
    """
    config = read_config(folder)
    tensors, metadata = read_tensors(folder / WEIGHTS)
    layers, whole = split_tensors(tensors, folder / WEIGHTS)
    check_layers(model, config, layers, folder)
    check_whole(model, config, whole, folder / WEIGHTS)
    check_base(model, whole, metadata, tokenizer, folder)

    if any(matrix.any() for pair in layers.values() for matrix in pair.values()):  # else PreLayer's zeros
        inject_lora(model, list(layers), config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0))
    model.requires_grad_(False)
    with torch.no_grad():
        for name, layer in lora_layers(model):
            layer.lora_A.requires_grad_(True).copy_(layers[name]["A"])
            layer.lora_B.requires_grad_(True).copy_(layers[name]["B"])
        for name, tensor in whole.items():
            model.get_parameter(name).requires_grad_(True).copy_(tensor)
    return model


def _write(
    model: nn.Module,
    folder: Path,
    base_name: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    whole = {n: p for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n}
    config, pairs = _lora_part(model)
    modules = sorted({name.split(".")[-2] for name in whole})
    config |= {
        "base_model_name_or_path": base_name or getattr(model, "name_or_path", None),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        # PEFT names both of the usual heads for every sequence classifier.
        "modules_to_save": ["classifier", "score"] if modules == ["score"] else modules,
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if "score" in modules else None,
    }
    tensors = {PREFIX + name: tensor for name, tensor in whole.items()}
    for name, (A, B) in pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = B
    metadata = fingerprints(model, tokenizer, whole)
    if hasattr(model, "config"):
        metadata["labels"] = json.dumps([model.config.id2label[i] for i in range(model.config.num_labels)])
    write_tensors(tensors, folder / WEIGHTS, metadata)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _lora_part(
    model: nn.Module,
) -> tuple[dict[str, object], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """What the configuration says of LoRA, and A and B by layer: zeros of rank 1 where the model has none."""
    layers = dict(lora_layers(model))
    if layers:
        settings = {(layer.rank, layer.alpha, layer.lora_dropout.p) for layer in layers.values()}
        if len(settings) > 1:
            raise UserError("the LoRA layers differ in rank, alpha or dropout: one adapter cannot hold them")
        rank, alpha, dropout = settings.pop()
        targets = _shared_suffixes(model, list(layers))
        bases = [layer.base_layer for layer in layers.values()]
        pairs = {name: (layer.lora_A, layer.lora_B) for name, layer in layers.items()}
    else:
        rank, alpha, dropout, targets = 1, 1, 0.0, ["attn.c_attn"]
        placeholders = targeted(model, targets)
        bases = list(placeholders.values())
        pairs = {name: _zero_pair(base) for name, base in placeholders.items()}
    config = {
        "fan_in_fan_out": any(isinstance(base, Conv1D) for base in bases),
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout,
        "r": rank,
        "target_modules": targets,
    }
    return config, pairs


def _zero_pair(layer: nn.Linear | Conv1D) -> tuple[torch.Tensor, torch.Tensor]:
    in_dim, out_dim = in_and_out(layer)
    return torch.zeros(1, in_dim), torch.zeros(out_dim, 1)


def _shared_suffixes(model: nn.Module, names: list[str]) -> list[str]:
    """What follows the block numbers (`attn.c_attn`) if that names just these layers, else full names."""
    endings = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
    return endings if targeted(model, endings).keys() == set(names) else sorted(names)

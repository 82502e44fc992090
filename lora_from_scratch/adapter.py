"""Adapter files in PEFT's on-disk format, both ways: adapter_config.json and adapter_model.safetensors.

What is saved is exactly what has `requires_grad`: LoRA's A and B, and whole modules (the head always). PEFT
reads the files as its own; `load_adapter` reads PEFT's, and refuses whatever it would get silently wrong.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.errors import UserError
from lora_from_scratch.files import appearing
from lora_from_scratch.fingerprint import check_base, fingerprints
from lora_from_scratch.surgery import inject_lora, is_suffix, lora_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<matrix>[AB])\.weight")

# What a plain LoRA's configuration may hold. Any other key has to be neutral (null, false, empty, "none"):
# a value there asks for something that is not implemented here, and the logits would come out wrong.
UNDERSTOOD = {
    *("fan_in_fan_out", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r"),
    "target_modules",
}
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "task_type"),
}
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")  # the others change the base's weights


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
    metadata = {"format": "pt", **fingerprints(model, tokenizer, whole)}
    if hasattr(model, "config"):
        metadata["labels"] = json.dumps([model.config.id2label[i] for i in range(model.config.num_labels)])
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with appearing(folder) as aside:
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (aside / CONFIG).write_text(text, encoding="utf-8")
        write_tensors(contents, aside / WEIGHTS, metadata)


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
    layers, whole = _split(tensors, folder / WEIGHTS)
    _check_layers(model, config, layers, folder)
    _check_whole(model, config, whole, folder / WEIGHTS)
    check_base(model, whole, metadata, tokenizer, folder)

    model.requires_grad_(False)
    if any(matrix.any() for pair in layers.values() for matrix in pair.values()):  # else PreLayer's zeros
        inject_lora(model, list(layers), config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0))
        for name, layer in lora_layers(model):
            with torch.no_grad():
                layer.lora_A.copy_(layers[name]["A"])
                layer.lora_B.copy_(layers[name]["B"])
    for name, tensor in whole.items():
        parameter = model.get_parameter(name).requires_grad_(True)
        with torch.no_grad():
            parameter.copy_(tensor)
    return model


def read_config(folder: Path) -> dict[str, object]:
    """The adapter's configuration, if it asks for a plain LoRA.

    Raises:
        UserError: the file is missing or damaged, or asks for what is not implemented here.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # bytes that are not UTF-8, text that is not JSON
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is not LORA, the only kind that is implemented here")
    for key, value in config.items():
        neutral = not value or value == "none"
        if key == "init_lora_weights":
            neutral = value in INITIALISATIONS
        if not neutral and key not in UNDERSTOOD | HARMLESS:
            raise UserError(f"{path}: {key} = {value!r} is not implemented here")
    kinds = {"r": int, "lora_alpha": (int, float), "target_modules": (list, str)}
    for key, kind in kinds.items():
        if not isinstance(config.get(key), kind):
            raise UserError(f"{path}: {key} = {config.get(key)!r} is of the wrong kind")
    return config


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises:
        UserError: the file is missing, damaged, or holds a value that is not finite.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds a value that is not finite")
    return tensors, metadata


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: no permission, or the disk is full.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # how safetensors reports the operating system's refusals
        raise OSError(f"{path}: {error}") from error


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
        placeholders = _targeted(model, targets)
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


def _split(
    tensors: dict[str, torch.Tensor], path: Path
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """LoRA's pairs by layer, and the tensors of modules saved whole."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    whole = {}
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX):
            raise UserError(f"{path}: unexpected tensor {key}")
        name = key.removeprefix(PREFIX)
        if match := LORA_KEY.fullmatch(name):
            layers.setdefault(match["layer"], {})[match["matrix"]] = tensor
        else:
            whole[name] = tensor
    return layers, whole


def _check_layers(
    model: nn.Module, config: dict[str, object], layers: dict[str, dict[str, torch.Tensor]], folder: Path
) -> None:
    """Every targeted layer has its A and B, of the right shapes, and no other layer has any."""
    expected = _targeted(model, config["target_modules"])
    if not expected:
        raise UserError(f"{folder / CONFIG}: {config['target_modules']} matches nothing in this model")
    for name in sorted(layers.keys() - expected.keys()):
        raise UserError(f"{folder / WEIGHTS}: unexpected tensor {PREFIX}{name}.lora_A.weight")
    for name, module in expected.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise UserError(f"{folder / CONFIG}: target {name} is a {type(module).__name__} in this model")
        in_dim, out_dim = _in_and_out(module)
        for matrix, shape in (("A", (config["r"], in_dim)), ("B", (out_dim, config["r"]))):
            tensor = layers.get(name, {}).get(matrix)
            key = f"{PREFIX}{name}.lora_{matrix}.weight"
            if tensor is None:
                raise UserError(f"{folder / WEIGHTS}: {key} is missing")
            if tuple(tensor.shape) != shape:
                raise UserError(f"{folder / WEIGHTS}: {key} is {tuple(tensor.shape)}, expected {shape}")


def _check_whole(
    model: nn.Module, config: dict[str, object], whole: dict[str, torch.Tensor], path: Path
) -> None:
    """Every module that is announced as saved whole is there, and fits; nothing else is."""
    announced = config.get("modules_to_save") or []
    expected = {n: p for n, p in model.named_parameters() if any(m in n.split(".")[:-1] for m in announced)}
    for name in sorted(whole.keys() - expected.keys()):
        raise UserError(f"{path}: unexpected tensor {PREFIX}{name}")
    for name, parameter in expected.items():
        if name not in whole:
            raise UserError(f"{path}: {PREFIX}{name} is missing")
        there, here = tuple(whole[name].shape), tuple(parameter.shape)
        if there != here:
            hint = " (another number of labels)" if name == "score.weight" and there[1:] == here[1:] else ""
            raise UserError(f"{path}: {PREFIX}{name} is {there}, expected {here}{hint}")


def _targeted(model: nn.Module, targets: list[str] | str) -> dict[str, nn.Module]:
    """The modules that PEFT's `target_modules` names: dotted suffixes, or one regular expression."""

    def named(name: str) -> bool:
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(is_suffix(target, name) for target in targets)

    return {name: module for name, module in model.named_modules() if named(name)}


def _in_and_out(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    return tuple(layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.T.shape)


def _zero_pair(layer: nn.Linear | Conv1D) -> tuple[torch.Tensor, torch.Tensor]:
    in_dim, out_dim = _in_and_out(layer)
    return torch.zeros(1, in_dim), torch.zeros(out_dim, 1)


def _shared_suffixes(model: nn.Module, names: list[str]) -> list[str]:
    """What follows the block numbers (`attn.c_attn`) if that names just these layers, else full names."""
    endings = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
    return endings if _targeted(model, endings).keys() == set(names) else sorted(names)

"""Does an adapter in PEFT's format fit a model? All of it is asked before the model is touched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.surgery import is_suffix
from lora_from_scratch.errors import UserError

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
    number = (int, float)
    kinds = {"r": int, "lora_alpha": number, "target_modules": (list, str), "lora_dropout": number}
    for key, kind in kinds.items():
        if not isinstance({"lora_dropout": 0.0, **config}.get(key), kind):
            raise UserError(f"{path}: {key} = {config.get(key)!r} is of the wrong kind")
    return config


def split_tensors(
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


def check_layers(
    model: nn.Module, config: dict[str, object], layers: dict[str, dict[str, torch.Tensor]], folder: Path
) -> None:
    """Every targeted layer has its A and B, of the right shapes, and no other layer has any."""
    expected = targeted(model, config["target_modules"])
    if not expected:
        raise UserError(f"{folder / CONFIG}: {config['target_modules']} matches nothing in this model")
    for name in sorted(layers.keys() - expected.keys()):
        raise UserError(f"{folder / WEIGHTS}: unexpected tensor {PREFIX}{name}.lora_A.weight")
    for name, module in expected.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise UserError(f"{folder / CONFIG}: target {name} is a {type(module).__name__} in this model")
        in_dim, out_dim = in_and_out(module)
        for matrix, shape in (("A", (config["r"], in_dim)), ("B", (out_dim, config["r"]))):
            tensor = layers.get(name, {}).get(matrix)
            key = f"{PREFIX}{name}.lora_{matrix}.weight"
            if tensor is None:
                raise UserError(f"{folder / WEIGHTS}: {key} is missing")
            if tuple(tensor.shape) != shape:
                raise UserError(f"{folder / WEIGHTS}: {key} is {tuple(tensor.shape)}, expected {shape}")


def check_whole(
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


def targeted(model: nn.Module, targets: list[str] | str) -> dict[str, nn.Module]:
    """The modules that PEFT's `target_modules` names: dotted suffixes, or one regular expression."""

    try:
        pattern = re.compile(targets) if isinstance(targets, str) else None
    except re.error as error:
        raise UserError(f"{CONFIG}: target_modules {targets!r} is no regular expression ({error})") from error

    def named(name: str) -> bool:
        if pattern:
            return pattern.fullmatch(name) is not None
        return any(is_suffix(target, name) for target in targets)

    return {name: module for name, module in model.named_modules() if named(name)}


def in_and_out(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    return tuple(layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.T.shape)

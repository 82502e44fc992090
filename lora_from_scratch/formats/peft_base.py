"""Of which base a PEFT adapter is: by the name in its configuration, and by the layers in its file."""

import os
import re
from pathlib import Path

from lora_from_scratch.base.load import BUNDLED, BUNDLED_MODEL
from lora_from_scratch.errors import UserError, printable
from lora_from_scratch.formats.adapted import HEAD_WEIGHT
from lora_from_scratch.formats.peft_config import PREFIX, PeftConfig
from lora_from_scratch.formats.tensors import Tensors

GPT2 = re.compile(r"transformer\.(h\.\d+\.(attn\.c_|attn\.q_attn|mlp\.c_)|wte|wpe)|score$|lm_head$")


def base_here(name: str | None) -> str | None:
    """What a configuration calls the base, unless that is the bundled one of some installation."""
    ending = re.split(r"[\\/]", (name or "").rstrip("\\/"))[-2:]
    is_bundled = ending == list(BUNDLED_MODEL.parts[-2:])
    return BUNDLED if is_bundled and (not os.path.isdir(name) or name == str(BUNDLED_MODEL)) else name


def check_architecture(config: PeftConfig, tensors: Tensors, folder: Path) -> None:
    """Raise `UserError` if nothing around A and B, or no head, is a GPT-2 classifier's."""
    layers = [key.removeprefix(PREFIX).partition(".lora_")[0] for key in tensors if ".lora_" in key]
    foreign = next((layer for layer in layers if not GPT2.match(layer)), None)
    head = next((key.removeprefix(PREFIX) for key in tensors if ".classifier." in key), None)
    if PREFIX + HEAD_WEIGHT in tensors and not foreign:
        return
    if foreign or head:
        base = printable(config.base_model_name_or_path or "another architecture")[:60]
        why = f"{printable(foreign or head)[:60]} is no part of GPT-2"
        raise UserError(f"{folder}: its base is {base} ({why}): this project adapts GPT-2 alone")

"""LoRA, written by hand in plain PyTorch: GPT-2 for sentiment classification, every number measured."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_from_scratch.adapter import load_adapter as load_adapter
    from lora_from_scratch.adapter import save_adapter as save_adapter
    from lora_from_scratch.config import RunConfig as RunConfig
    from lora_from_scratch.errors import UserError as UserError
    from lora_from_scratch.experiment import RunResult as RunResult
    from lora_from_scratch.experiment import run as run
    from lora_from_scratch.lora import LoRALinear as LoRALinear
    from lora_from_scratch.methods import adapt as adapt
    from lora_from_scratch.surgery import inject_lora as inject_lora
    from lora_from_scratch.surgery import merge_lora as merge_lora
    from lora_from_scratch.surgery import merged as merged

__version__ = "0.1.0"

_HOME = {
    "LoRALinear": "lora",
    "RunConfig": "config",
    "RunResult": "experiment",
    "UserError": "errors",
    "adapt": "methods",
    "inject_lora": "surgery",
    "load_adapter": "adapter",
    "merge_lora": "surgery",
    "merged": "surgery",
    "run": "experiment",
    "save_adapter": "adapter",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    # Imported on first use: torch takes seconds, and `run.py --help` needs none of it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

"""LoRA, written by hand in plain PyTorch: GPT-2 for sentiment classification, every number measured."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lora_from_scratch.version import __version__ as __version__

if TYPE_CHECKING:
    from lora_from_scratch.core.lora import LoRALinear as LoRALinear
    from lora_from_scratch.core.surgery import inject_lora as inject_lora
    from lora_from_scratch.core.surgery import merge_lora as merge_lora
    from lora_from_scratch.core.surgery import merged as merged
    from lora_from_scratch.errors import UserError as UserError
    from lora_from_scratch.formats.peft import load_adapter as load_adapter
    from lora_from_scratch.formats.peft import save_adapter as save_adapter
    from lora_from_scratch.runs.config import RunConfig as RunConfig
    from lora_from_scratch.runs.config import adapt as adapt
    from lora_from_scratch.runs.execute import RunResult as RunResult
    from lora_from_scratch.runs.execute import run as run

_HOME = {
    "LoRALinear": "core.lora",
    "RunConfig": "runs.config",
    "RunResult": "runs.execute",
    "UserError": "errors",
    "adapt": "runs.config",
    "inject_lora": "core.surgery",
    "load_adapter": "formats.peft",
    "merge_lora": "core.surgery",
    "merged": "core.surgery",
    "run": "runs.execute",
    "save_adapter": "formats.peft",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    # Imported on first use: torch takes seconds, and `run.py --help` needs none of it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

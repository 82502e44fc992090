"""The formats in which what was trained is written: a line here, and one file of this room for each.

A format is a module with `TITLE` (the library that a model card names), `FILES` (what it may write),
`is_in(folder)`, `save(adapted, folder)`, `load(folder, base_name)` and `how_to_load(base_name, label_names)`,
which is Markdown for the card, line by line.
"""

import importlib
from types import ModuleType

FORMATS = ("peft", "tensors", "checkpoint")  # in the order in which a folder is asked for them


def format_named(name: str) -> ModuleType:
    """The module of a format; imported here, since it brings torch along."""
    return importlib.import_module(f"lora_from_scratch.formats.{name}")

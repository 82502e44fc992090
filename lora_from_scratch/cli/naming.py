"""What the command line names beside the folder of a run: its base, and label names where it carries none."""

import warnings
from pathlib import Path

from lora_from_scratch.data.labels import plain
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats.adapted import Adapted, load_adapted


def loaded(folder: Path, base: str | None) -> Adapted:
    """The adapted model of a folder, on this base if one is named; a whole model has none, and a warning."""
    adapted = load_adapted(folder, base)
    if base is not None and adapted.base_name is None:
        told = f"--model {quoted(base, length=60)} is of no use with {folder}, and left out"
        warnings.warn(f"{told}; that is a whole model, and needs no base", stacklevel=2)
    return adapted


def named(adapted: Adapted, names: list[str] | None) -> Adapted:
    """With these names for its ids. UserError where they do not fit, or the files carry others."""
    there, number = adapted.label_names, len(adapted.label_names)
    if names is None or names == there:
        return adapted
    if not plain(there):
        raise UserError(f"--label-names: the files carry names already, {quoted(*there)}; leave the flag out")
    if len(names) != number or len({name.strip() for name in names} - {""}) != number:
        raise UserError(
            f"--label-names takes {number} names that differ, one for each id, not {quoted(*names)}"
        )
    adapted.model.config.id2label = dict(enumerate(names))
    adapted.model.config.label2id = {name: i for i, name in enumerate(names)}
    return adapted

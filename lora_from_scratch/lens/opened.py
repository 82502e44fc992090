"""The folder of a run, opened for looking: its model, its record, and what each layer learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.base.fingerprint import weights_fingerprint
from lora_from_scratch.base.load import load_model
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats.adapted import HEAD_WEIGHT, Adapted, load_adapted
from lora_from_scratch.lens.updates import Update, updates_of
from lora_from_scratch.methods.lora import linear_layers
from lora_from_scratch.runs.record import read_record


@dataclass(frozen=True)
class Opened:
    """What lies in a folder."""

    folder: Path
    adapted: Adapted
    base_name: str
    record: Mapping[str, object]  # results.json; empty where there is none
    updates: Sequence[Update]

    @property
    def rank(self) -> int:
        """The most directions that a layer has."""
        return max(len(update.S) for update in self.updates)

    @property
    def is_low_rank(self) -> bool:
        """Whether these are LoRA's, and not those of whole weights."""
        return self.updates[0].A is not None


def open_run(folder: Path, base_name: str | None = None) -> Opened:
    """The run in a folder, on the base that its files name, or on another one.

    UserError where nothing of it is an update of a matrix of the blocks; of a whole model also where its base
    is not named, or is another one.
    """
    adapted, record = load_adapted(folder, base_name), read_record(folder)
    check_layers(adapted.model, folder, "inspect")
    base = None
    if not adapted.base_name:
        base_name = base_name or _recorded_base(record)
        base = _base_of(adapted, folder, base_name, record)
    updates = list(updates_of(adapted.model, base))
    if not any(update.S.any() for update in updates):
        none = "what it learned is neither a B A beside a matrix of the blocks nor another such matrix"
        why = "every B A is zero, so none of it has learned" if any(lora_layers(adapted.model)) else none
        raise UserError(f"{folder}: there is nothing to inspect: {why}")
    return Opened(folder, adapted, adapted.base_name or base_name, record, updates)


def check_layers(model: GPT2ForSequenceClassification, folder: Path, verb: str) -> None:
    """UserError for layers that are more than s B A beside W0: directions are not all of those."""
    for name, layer in lora_layers(model):
        if type(layer) is not LoRALinear:
            what = f"{name} is of type {type(layer).__name__}, more than a B A beside W0"
            raise UserError(f"{folder}: there is nothing to {verb}: {what}")


def _recorded_base(record: Mapping[str, object]) -> str | None:
    base = record.get("base")
    return base.get("name") if isinstance(base, dict) else None


def _base_of(
    adapted: Adapted, folder: Path, name: str | None, record: Mapping[str, object]
) -> GPT2ForSequenceClassification:
    """What a whole model was before it learned."""
    if not name:
        raise UserError(f"{folder} is a whole model, and does not say of which base: name it with --model")
    base = load_model(name, adapted.label_names, adapted.tokenizer.pad_token_id)
    shapes = [
        [(layer, model.get_submodule(layer).weight.shape) for layer in linear_layers(model)]
        for model in (base, adapted.model)
    ]
    digest = (record.get("base") or {}).get("weights_sha256")
    if shapes[0] != shapes[1] or digest not in (None, weights_fingerprint(base, [HEAD_WEIGHT])):
        told = f"{folder}: {quoted(name, length=60)} is not the base that it was trained on"
        raise UserError(f"{told}; name its own with --model")
    return base


def check_beside(one: Opened, other: Opened) -> None:
    """UserError unless both have a layer in common, and the same base."""
    ours = {update.name: update for update in one.updates}
    common = [update for update in other.updates if update.name in ours]
    if not common:
        raise UserError(f"--beside {other.folder} adapts no layer that {one.folder} does: name another")
    if not all(torch.equal(update.base, ours[update.name].base) for update in common):
        raise UserError(f"--beside {other.folder} is on another base than {one.folder}: name another")

"""The folder of one run: figures, picture, what was trained and its card, all of them or none."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lora_from_scratch import adapter
from lora_from_scratch.config import BUNDLED
from lora_from_scratch.errors import UserError
from lora_from_scratch.experiment import RunResult
from lora_from_scratch.files import appearing
from lora_from_scratch.model_card import model_card
from lora_from_scratch.report import draw_training
from lora_from_scratch.saved import HEAD, Adapted, save_adapted

RESULTS, METRICS, PICTURE, CARD = "results.json", "metrics.jsonl", "training.png", "README.md"
# What a folder may hold that is not this project's to replace. The first three above are always its own.
TRAINED = {
    *(adapter.CONFIG, adapter.WEIGHTS, HEAD, CARD, "config.json", "model.safetensors"),
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
}


def check_folder(folder: Path) -> None:
    """Fail before the training rather than after it.

    Raises:
        UserError: the folder cannot be written to, or holds files that no earlier run wrote.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"--output-dir {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--output-dir {folder}: no permission to write in {existing}")
    for name in sorted(TRAINED - _files_of_earlier_run(folder)):
        if (folder / name).exists():
            raise UserError(f"--output-dir {folder} holds a {name} that is no earlier run's: name another")


def write_run(result: RunResult, folder: Path) -> list[str]:
    """Write a run's files and return their names; those of an earlier run in the folder go.

    results.json, metrics.jsonl (one line a step), training.png where matplotlib is installed, and what was
    trained (see `saved`) with a model card. Random weights are not saved: nothing can be built on them.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    prepared, training = result.prepared, result.training
    config = prepared.config
    earlier = _files_of_earlier_run(folder)
    with appearing(folder) as aside:
        if not config.random_init and training:
            base = config.model
            if base != BUNDLED and Path(base).is_dir():
                base = str(Path(base).resolve())  # the adapter may be loaded from another place
            save_adapted(Adapted(prepared.model, prepared.tokenizer, base), config.method, aside)
            (aside / CARD).write_text(model_card(result), encoding="utf-8")
        metrics = training.metrics if training else []
        (aside / METRICS).write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")
        if training and (picture := draw_training(result)):
            (aside / PICTURE).write_bytes(picture)
        names = sorted([RESULTS, *(path.name for path in aside.iterdir())])
        values = {**result.as_dict(), "files": names}
        (aside / RESULTS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for name in earlier - set(names):
        (folder / name).unlink(missing_ok=True)
    return names


def _files_of_earlier_run(folder: Path) -> set[str]:
    """The names that a results.json there lists; none where there is no such file."""
    try:
        values = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        return {name for name in values["files"] if name == Path(name).name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()

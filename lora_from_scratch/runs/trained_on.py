"""Sentences that are measured on although they were trained on: told in one line."""

import json
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

from lora_from_scratch.data.dataset import load_dataset, local_files
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.runs.random_draws import limited
from lora_from_scratch.runs.writable import RESULTS

TOLD = 0.01  # the share of sentences from which on it is told; SST-2 and the bundle have none


def seen_in(trained: Collection[str], sentences: Sequence[str]) -> int:
    """How many of the sentences were trained on; 0 where they are too few to matter."""
    trained = set(trained)
    count = sum(sentence in trained for sentence in sentences)
    return count if count > TOLD * len(sentences) else 0


def warn_if_in_both(train: Sequence[str], validation: Sequence[str]) -> None:
    """Sentences in both splits of what a run reads."""
    if count := seen_in(train, validation):
        warnings.warn(
            f"{count:,} of {len(validation):,} validation sentences are also trained on, so the figures "
            "flatter: take them out of either, or delete what a file repeats",
            stacklevel=2,
        )


def warn_if_trained_on(adapter: Path, sentences: Sequence[str]) -> None:
    """Compare with what the run in the folder was trained on, as far as that can be read here."""
    if count := seen_in(_trained_on(adapter), sentences):
        warnings.warn(
            f"{count:,} of {len(sentences):,} sentences were trained on, so the figures flatter: "
            "evaluate on others",
            stacklevel=2,
        )


def _trained_on(adapter: Path) -> list[str]:
    """The sentences that the run in the folder was trained on; none from the hub, none that have changed."""
    try:
        record = json.loads((adapter / RESULTS).read_text(encoding="utf-8"))
        config = record["config"]
        name = record["data"].get("path") or config["dataset"]
        selection = Selection(**{key: config[key] for key in Selection.__dataclass_fields__ if key in config})
        if not local_files(name, selection):
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told when it was trained on
            dataset = load_dataset(name, selection)
        if dataset.fingerprint() != record["data"]["fingerprint"]:
            return []
        return limited(dataset.train, config["limit_train"], config["seed"]).sentences
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no record, or somebody else's
        return []

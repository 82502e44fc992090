"""The sentences that parts of an update are measured on: the run's own, or others that are named."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from lora_from_scratch.data.batches import TokenizedExamples, tokenize
from lora_from_scratch.data.dataset import Split, display_name, load_dataset, load_labelled
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.lens.opened import Opened
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.record import length_to_measure
from lora_from_scratch.runs.trained_on import warn_if_trained_on


@dataclass(frozen=True)
class Sentences:
    """Tokenised, cut where the run cut its own unless asked otherwise."""

    dataset: str
    source: str  # where in it they come from
    examples: TokenizedExamples


def sentences_of(opened: Opened, asked: RunConfig) -> Sentences | None:
    """Those of `asked.dataset`, or else what the run was validated on.

    UserError where the dataset that is asked for cannot be read, or has other labels. Where the run's own is
    not known, gone, or no longer what it was, a warning says so; without any None comes back.
    """
    adapted = opened.adapted
    length = length_to_measure(asked.max_length, opened.record, adapted.model.config)
    if asked.dataset:
        split, source = load_labelled(asked.dataset, adapted.label_names, asked.selection)
        warn_if_trained_on(opened.folder, split.sentences)
        return _tokenised(adapted, split, display_name(asked.dataset), source, length)
    try:
        split, source = _own(opened.record, adapted.label_names)
    except (UserError, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, UserError) else "it does not say which sentences are its own"
        told = f"{opened.folder}: no accuracy is measured: {why}"
        warnings.warn(f"{told}; name sentences with --dataset", stacklevel=2)
        return None
    return _tokenised(adapted, split, opened.record["dataset"], source, length)


def _own(record: Mapping[str, object], label_names: list[str]) -> tuple[Split, str]:
    """What the record of a run names; KeyError or TypeError where it names nothing."""
    config, data = record["config"], record["data"]
    selection = Selection(**{key: config[key] for key in Selection.__dataclass_fields__ if key in config})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told when it was trained on
        dataset = load_dataset(data.get("path") or config["dataset"], selection)
    if dataset.label_names != label_names or dataset.fingerprint() != data["fingerprint"]:
        raise UserError("the sentences that it was trained on have changed since")
    return dataset.validation, dataset.validation_name


def _tokenised(adapted: Adapted, split: Split, dataset: str, source: str, length: int) -> Sentences:
    examples = tokenize(adapted.tokenizer, split.sentences, split.labels, length)
    return Sentences(dataset, source, examples)

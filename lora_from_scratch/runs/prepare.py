"""From what a run is asked to what it will do: data, base, adapted model, tokens; no choice stays open."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerBase

from lora_from_scratch.base import load as base
from lora_from_scratch.base.fingerprint import weights_fingerprint
from lora_from_scratch.data import dataset as data
from lora_from_scratch.data.batches import TokenizedExamples, tokenize
from lora_from_scratch.errors import NotFound, UserError, quoted
from lora_from_scratch.runs.config import RunConfig, adapt
from lora_from_scratch.runs.random_draws import generator_for, limited
from lora_from_scratch.runs.trained_on import warn_if_in_both
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.evaluate import positive_id
from lora_from_scratch.train.precision import resolve_precision

MAX_LENGTH = 128  # tokens, if the model reads as many


@dataclass(frozen=True)
class Prepared:
    """All that a run needs before its first step, on its device; `config` has every open choice filled in."""

    config: RunConfig
    model: GPT2ForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    dataset: data.Dataset
    train_examples: TokenizedExamples
    validation_examples: TokenizedExamples
    base_digest: str  # of the base's weights, before anything was adapted
    base_again: Callable[[], GPT2ForSequenceClassification]  # the same base once more, from where it came
    substituted: dict[str, str]  # what the bundle stands in for, and why the hub did not give it

    @property
    def model_name(self) -> str:
        return base.display_name(self.config.model) + ", random weights" * self.config.random_init

    @property
    def dataset_name(self) -> str:
        return data.display_name(self.config.dataset)


def prepare(config: RunConfig) -> Prepared:
    """Load data, tokenizer and model, adapt the model to the method, and tokenize.

    A model or dataset that the config does not name comes from the hub or its cache, and if it is not to be
    had there, from the bundle. UserError says what is wrong; nothing has been trained or written yet.
    """
    device = resolve_device(config.device)
    substituted: dict[str, str] = {}

    def find(
        load: Callable[[str], object], asked: str | None, default: str, bundled: str
    ) -> tuple[str, object]:
        try:
            return asked or default, load(asked or default)
        except NotFound as error:
            if asked is not None:
                raise
            substituted[default] = error.why
            return bundled, load(bundled)

    load_dataset = partial(data.load_dataset, selection=config.selection)
    dataset_name, dataset = find(load_dataset, config.dataset, data.DEFAULT, data.BUNDLED)
    positive_id(config.positive_class, dataset.label_names)  # refused before the model is loaded
    load_tokenizer = partial(base.load_tokenizer, weights=not config.random_init)
    model_name, tokenizer = find(load_tokenizer, config.model, base.DEFAULT, base.BUNDLED)
    model_name = base.lasting_name(model_name)
    base_again = partial(_load_base, model_name, dataset.label_names, tokenizer.pad_token_id, config)
    model = base_again()
    config = replace(
        config,
        model=model_name,
        dataset=dataset_name,
        device=str(device),
        precision=resolve_precision(config.precision, device),
        lr=config.lr or config.way.default_lr(model.config.n_embd),
        max_length=decided_length(config.max_length, model),
    )
    digest = weights_fingerprint(model, ["score.weight"])
    model = adapt(model, config, generator_for(config.seed, "adapter")).to(device)
    splits = train, validation = (limited(dataset.train, config.limit_train, config.seed), dataset.validation)
    warn_if_in_both(train.sentences, validation.sentences)
    _warn_of_absent_classes(dataset.label_names, train, validation)
    config = replace(config, epochs=config.epochs or default_epochs(len(train)))
    examples = (tokenize(tokenizer, part.sentences, part.labels, config.max_length) for part in splits)
    return Prepared(config, model, tokenizer, dataset, *examples, digest, base_again, substituted)


def _warn_of_absent_classes(names: list[str], train: data.Split, validation: data.Split) -> None:
    for split, what in ((train, "train on"), (validation, "measure on")):
        present = set(split.labels)
        absent = [name for i, name in enumerate(names) if i not in present]
        if absent:
            warnings.warn(
                f"no sentence of {quoted(*absent)} to {what}; add some, or leave it out", stacklevel=3
            )


def default_epochs(sentences: int) -> int:
    """So many passes that 48,000 sentences are seen, but between 2 and 32.

    A small set needs more passes than the two of the published table: see benchmarks/results/epochs-cpu.json.
    """
    return min(32, max(2, round(48_000 / sentences)))


def decided_length(asked: int | None, model: GPT2ForSequenceClassification) -> int:
    """How many tokens of a sentence are read. UserError if the model has not as many positions as asked."""
    positions = model.config.n_positions
    if asked and asked > positions:
        raise UserError(f"--max-length {asked}: this model has {positions} positions; ask for fewer")
    return asked or min(MAX_LENGTH, positions)


def _load_base(
    name: str, label_names: list[str], pad_token_id: int, config: RunConfig
) -> GPT2ForSequenceClassification:
    torch.manual_seed(config.seed)  # what random weights are drawn from
    generator = generator_for(config.seed, "head")
    return base.load_model(name, label_names, pad_token_id, generator, config.random_init)

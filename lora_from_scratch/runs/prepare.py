"""From what a run is asked to what it will do: data, base, adapted model, tokens; no choice stays open."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerBase

from lora_from_scratch.base import load as base
from lora_from_scratch.base.fingerprint import weights_fingerprint
from lora_from_scratch.data import dataset as data
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.runs.config import RunConfig, adapt
from lora_from_scratch.runs.random_draws import generator_for, limited
from lora_from_scratch.runs.sources import Sources, Weights, find_sources
from lora_from_scratch.runs.trained_on import warn_if_in_both
from lora_from_scratch.train.device import resolve_device
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
    base_digest: str  # of the base's weights, as they were rounded
    base_weights: Callable[..., Weights]  # some of the base's once more, from where it came: `Base.weights`
    substituted: dict[str, str]  # what the bundle stands in for, and why the hub did not give it

    @property
    def model_name(self) -> str:
        return base.display_name(self.config.model) + ", random weights" * self.config.random_init

    @property
    def dataset_name(self) -> str:
        return data.display_name(self.config.dataset)


def prepare(config: RunConfig, sources: Sources | None = None) -> Prepared:
    """Load what is not among the sources, adapt the model to the method, and tokenize.

    UserError says what is wrong; nothing has been trained or written yet.
    """
    resolve_device(config.device)
    sources = sources or find_sources(config)
    model = sources.base(config.seed)
    config = decided(config, sources, model.config)
    model = adapt(model, config, generator_for(config.seed, "adapter"))
    digest = weights_fingerprint(model, ["score.weight"])
    model = model.to("cpu" if config.shard else config.device)  # no device may hold it whole
    dataset = sources.dataset
    splits = train, validation = (limited(dataset.train, config.limit_train, config.seed), dataset.validation)
    warn_if_in_both(train.sentences, validation.sentences)
    _warn_of_absent_classes(dataset.label_names, train, validation)
    examples = (sources.tokens(part, config.max_length) for part in splits)
    weights = partial(sources.base.weights, config.seed)
    return Prepared(
        config, model, sources.tokenizer, dataset, *examples, digest, weights, sources.substituted
    )


def decided(config: RunConfig, sources: Sources, base: GPT2Config) -> RunConfig:
    """With every open choice filled in. UserError if the base has not as many positions as asked."""
    device, sentences = resolve_device(config.device), len(sources.dataset.train)
    return replace(
        config,
        model=sources.model_name,
        dataset=sources.dataset_name,
        device=str(device),
        precision=resolve_precision(config.precision, device),
        lr=config.lr or config.way.default_lr(base.n_embd),
        max_length=decided_length(config.max_length, base),
        epochs=config.epochs or default_epochs(min(sentences, config.limit_train or sentences)),
    )


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


def decided_length(asked: int | None, base: GPT2Config) -> int:
    """How many tokens of a sentence are read. UserError if the base has not as many positions as asked."""
    positions = base.n_positions
    if asked and asked > positions:
        raise UserError(f"--max-length {asked}: this model has {positions} positions; ask for fewer")
    return asked or min(MAX_LENGTH, positions)

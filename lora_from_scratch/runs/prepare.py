"""From what a run is asked to what it will do: data, base, adapted model, tokens; no choice stays open."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerBase

from lora_from_scratch.base import load as base
from lora_from_scratch.base.fingerprint import weights_fingerprint
from lora_from_scratch.data import dataset as data
from lora_from_scratch.data.batches import TokenizedExamples, tokenize
from lora_from_scratch.data.rows import Columns
from lora_from_scratch.errors import NotFound, UserError
from lora_from_scratch.runs.config import RunConfig, adapt
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.precision import resolve_precision

EPOCHS = 2
BUNDLED_EPOCHS = 16  # the bundled sentences are few


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
    substituted: tuple[str, ...]  # what the hub did not give and the bundle stands in for

    @property
    def model_name(self) -> str:
        name = base.display_name(self.config.model)
        return f"{name}, random weights" if self.config.random_init else name

    @property
    def dataset_name(self) -> str:
        return data.display_name(self.config.dataset)


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose, so that what one draws moves none of the others."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def prepare(config: RunConfig) -> Prepared:
    """Load data, tokenizer and model, adapt the model to the method, and tokenize.

    A model or dataset that the config does not name comes from the hub or its cache, and if it is not to be
    had there, from the bundle.

    Raises:
        UserError: whatever is wrong with what was asked for; nothing has been trained or written yet.
    """
    device = resolve_device(config.device)
    columns = Columns(config.text_column, config.label_column)
    dataset_name, dataset = _or_bundled(
        config.dataset, data.DEFAULT, data.BUNDLED, lambda name: data.load_dataset(name, columns)
    )
    model_name, tokenizer = _or_bundled(config.model, base.DEFAULT, base.BUNDLED, base.load_tokenizer)
    base_again = partial(_load_base, model_name, dataset.label_names, tokenizer.pad_token_id, config)
    model = base_again()
    if config.max_length > model.config.n_positions:
        raise UserError(
            f"--max-length {config.max_length}: this model has {model.config.n_positions} positions"
        )
    substituted = [
        default
        for asked, default, name in (
            (config.dataset, data.DEFAULT, dataset_name),
            (config.model, base.DEFAULT, model_name),
        )
        if asked is None and name != default
    ]
    config = replace(
        config,
        model=model_name,
        dataset=dataset_name,
        device=str(device),
        precision=resolve_precision(config.precision, device),
        lr=config.lr or config.way.default_lr(model.config.n_embd),
        epochs=config.epochs or (BUNDLED_EPOCHS if dataset_name == data.BUNDLED else EPOCHS),
    )
    digest = weights_fingerprint(model, ["score.weight"])
    adapt(model, config, generator_for(config.seed, "adapter"))
    validation = dataset.validation
    return Prepared(
        config,
        model.to(device),
        tokenizer,
        dataset,
        _tokenize_training(config, dataset.train, tokenizer),
        tokenize(tokenizer, validation.sentences, validation.labels, config.max_length),
        digest,
        base_again,
        tuple(substituted),
    )


def _or_bundled(
    asked: str | None, default: str, bundled: str, load: Callable[[str], object]
) -> tuple[str, object]:
    """What was asked for; where nothing was, the default or, if that is not there, the bundle."""
    try:
        return asked or default, load(asked or default)
    except NotFound:
        if asked is not None:
            raise
        return bundled, load(bundled)


def _load_base(
    name: str, label_names: list[str], pad_token_id: int, config: RunConfig
) -> GPT2ForSequenceClassification:
    torch.manual_seed(config.seed)  # what random weights are drawn from
    generator = generator_for(config.seed, "head")
    return base.load_model(name, label_names, pad_token_id, generator, config.random_init)


def _tokenize_training(
    config: RunConfig, split: data.Split, tokenizer: PreTrainedTokenizerBase
) -> TokenizedExamples:
    if config.limit_train is not None and config.limit_train < len(split):
        order = torch.randperm(len(split), generator=generator_for(config.seed, "subset"))
        split = split.take(order[: config.limit_train].tolist())
    return tokenize(tokenizer, split.sentences, split.labels, config.max_length)

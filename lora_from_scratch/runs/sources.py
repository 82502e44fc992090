"""What a run is made from, found once for as many runs as share it: sentences, tokenizer, base, tokens."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerBase

from lora_from_scratch.base import load as base
from lora_from_scratch.base.model_files import stored_weights
from lora_from_scratch.data import dataset as data
from lora_from_scratch.data.batches import TokenizedExamples, tokenize
from lora_from_scratch.errors import NotFound
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.random_draws import generator_for
from lora_from_scratch.train.evaluate import positive_id

Weights = Iterator[tuple[str, Tensor]]  # by their names in the model
KEPT = 4  # tokenised splits


class Base(Protocol):
    """Where the base of a run comes from, by the seed that draws its head, or all of it."""

    def __call__(self, seed: int) -> GPT2ForSequenceClassification: ...

    def weights(self, seed: int, names: Iterable[str], mapped: bool = False) -> Weights:
        """Some of its weights once more, in fp32; `mapped` ones take no memory until they are looked at, and
        are left out where that cannot be."""


@dataclass(frozen=True)
class Sources:
    """What is to be had by `config.model` and `config.dataset`, or stands in for them."""

    model_name: str
    dataset_name: str
    dataset: data.Dataset
    tokenizer: PreTrainedTokenizerBase
    base: Base
    tokens: Callable[[data.Split, int], TokenizedExamples]  # of a split, by the length to cut at
    substituted: dict[str, str]  # what the bundle stands in for, and why the hub did not give it


def find_sources(config: RunConfig, keep: bool = False) -> Sources:
    """Load the data and the tokenizer, and say how the base is had; `keep` it and the tokens for other runs.

    A model or dataset that the config does not name comes from the hub or its cache, and if it is not to be
    had there, from the bundle. UserError says what is wrong.
    """
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
    about = (model_name, dataset.label_names, tokenizer.pad_token_id)
    drawn = _Kept(*about) if keep and not config.random_init else _Loaded(*about, config.random_init)
    tokens = _KeptTokens(tokenizer) if keep else partial(_tokens, tokenizer)
    return Sources(model_name, dataset_name, dataset, tokenizer, drawn, tokens, substituted)


@dataclass(frozen=True)
class _Loaded:
    """A base that every run loads anew."""

    name: str
    label_names: list[str]
    pad_token_id: int
    random_init: bool

    @cached_property
    def folder(self) -> Path:
        """The model's files, asked for once: later they may be others."""
        return base.fetch(self.name, weights=not self.random_init)

    def __call__(self, seed: int) -> GPT2ForSequenceClassification:
        torch.manual_seed(seed)  # what random weights are drawn from
        about = (self.name, self.label_names, self.pad_token_id)
        return base.load_model(*about, generator_for(seed, "head"), self.random_init, self.folder)

    def weights(self, seed: int, names: Iterable[str], mapped: bool = False) -> Weights:
        if not self.random_init:
            yield from stored_weights(self.name, self.folder, names, mapped)
        elif not mapped:
            yield from _weights_of(self(seed), names)


class _Kept:
    """A base that is loaded once; each run gets a copy, with a head of its own."""

    def __init__(self, name: str, label_names: list[str], pad_token_id: int) -> None:
        self.model, self.head_is_new = base.load_headless(name, label_names, pad_token_id)

    def __call__(self, seed: int) -> GPT2ForSequenceClassification:
        model = copy.deepcopy(self.model)
        return base.draw_head(model, generator_for(seed, "head")) if self.head_is_new else model

    def weights(self, seed: int, names: Iterable[str], mapped: bool = False) -> Weights:
        for name, weight in _weights_of(self.model, names):
            yield name, weight if mapped else weight.clone()


def _weights_of(model: GPT2ForSequenceClassification, names: Iterable[str]) -> Weights:
    return ((name, model.get_parameter(name).detach()) for name in names)


def _tokens(tokenizer: PreTrainedTokenizerBase, split: data.Split, max_length: int) -> TokenizedExamples:
    return tokenize(tokenizer, split.sentences, split.labels, max_length)


class _KeptTokens:
    """The tokens of the last few splits."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.kept = tokenizer, []

    def __call__(self, split: data.Split, max_length: int) -> TokenizedExamples:
        for of, length, examples in self.kept:
            if of is split and length == max_length:
                return examples
        examples = _tokens(self.tokenizer, split, max_length)
        self.kept = [*self.kept[1 - KEPT :], (split, max_length, examples)]
        return examples

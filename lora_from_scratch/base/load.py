"""GPT-2 and its tokenizer: from the hub (or its cache), from a folder, or bundled."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerBase,
)

from lora_from_scratch.errors import NotFound, UserError

BUNDLED = "bundled"
BUNDLED_MODEL = Path(__file__).parents[1] / "bundled" / "mini-gpt2"
DEFAULT = "gpt2"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `name` (a hub id, a folder, or "bundled"), padding on the right with end-of-text.

    GPT-2 was trained without a padding token. Any would do: on the right, behind a causal mask, padding is
    never seen by the tokens before it.

    Raises:
        NotFound: see `load_model`.
        UserError: the files there make no tokenizer.
    """
    path = _locate(name)
    config = _load_config(name, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # many kinds are raised; all mean that the files are bad
        raise UserError(f"model {name!r} has no tokenizer that loads: {_first_line(error)}") from error
    if len(tokenizer) < 2:  # what transformers makes of a folder without tokenizer files
        raise UserError(f"model {name!r} has no tokenizer: tokenizer.json is missing")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model {name!r} embeds {config.vocab_size} tokens, but its tokenizer has {len(tokenizer)}"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str,
    label_names: list[str] | None,
    pad_token_id: int,
    generator: torch.Generator | None = None,
    random_init: bool = False,
) -> GPT2ForSequenceClassification:
    """GPT-2 with a linear classifier head on the last token, every weight in fp32.

    Args:
        name: a hub id such as "gpt2" (its files come from the hub or its cache), a folder laid out the same
            way, or "bundled".
        label_names: the name of each label id; None keeps those of a classifier's checkpoint, with its head.
        pad_token_id: the padding token, which marks where a sentence ends.
        generator: draws the head, N(0, initializer_range), unless the files bring a head that fits.
        random_init: build from the configuration alone, from torch's global generator; no weights are read.

    Raises:
        NotFound: no folder, no hub repository and no cached one has that name.
        UserError: it is not a GPT-2, its weights are damaged, incomplete, or not in a safetensors file, or
            it has no head although no labels are named.
    """
    path = _locate(name)
    config = _load_config(name, path)
    config.pad_token_id = pad_token_id
    if label_names is not None:
        config.num_labels = len(label_names)
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: i for i, label in enumerate(label_names)}
    if random_init:
        model, head_is_new = GPT2ForSequenceClassification(config), True
    else:
        model, head_is_new = _load_weights(name, path, config)
    if head_is_new and label_names is None:
        raise UserError(f"model {name!r} has no classifier head: it is a base, nothing was adapted")
    if head_is_new:
        torch.nn.init.normal_(model.score.weight, std=config.initializer_range, generator=generator)
    return model


def display_name(name: str) -> str:
    return "mini-gpt2 (bundled)" if name == BUNDLED else name


def _locate(name: str) -> str:
    """The path or hub id that stands behind a name."""
    if name == BUNDLED:
        return str(BUNDLED_MODEL)
    if not os.path.isdir(name) and (
        os.path.exists(name) or name.count("/") > 1 or name.startswith((".", "/", "~"))
    ):
        raise NotFound(f"model {name!r} is not a folder; --model takes a hub id, a folder or {BUNDLED!r}")
    return name


def _load_config(name: str, path: str) -> GPT2Config:
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise UserError(f"model folder {name!r} holds no config.json")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            raise UserError(
                f"model folder {name!r}: config.json is damaged ({_first_line(error)})"
            ) from error
        raise NotFound(
            f"model {name!r} is neither here nor in the hub's cache, and the hub does not give it: "
            f"check the name and the network, or use --model {BUNDLED}"
        ) from error
    if config.model_type != "gpt2":
        raise UserError(f"model {name!r} is a {config.model_type}: this project adapts GPT-2 alone")
    return config


def _load_weights(name: str, path: str, config: GPT2Config) -> tuple[GPT2ForSequenceClassification, bool]:
    """The model with its pretrained weights, and whether its head still has to be drawn."""
    try:
        model, info = GPT2ForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle
            ignore_mismatched_sizes=True,  # of the head, for other labels; any other is refused below
            output_loading_info=True,
        )
    except (
        Exception
    ) as error:  # safetensors and transformers raise many kinds; all mean that the files are bad
        raise UserError(f"the weights of model {name!r} cannot be read: {_first_line(error)}") from error
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    broken = sorted((set(info["missing_keys"]) | mismatched) - {"score.weight"})
    if broken:
        raise UserError(f"model {name!r} lacks a usable {broken[0]} (and {len(broken) - 1} other tensors)")
    return model, "score.weight" in info["missing_keys"] or "score.weight" in mismatched


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""GPT-2 and its tokenizer: from the hub (or its cache), from a folder, or bundled."""

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification
from transformers import PreTrainedTokenizerBase as Tokenizer

from lora_from_scratch.errors import NotFound, UserError, first_line

BUNDLED = "bundled"
BUNDLED_MODEL = Path(__file__).parents[1] / "bundled" / "mini-gpt2"
DEFAULT = "gpt2"


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of `name` (a hub id, a folder, or "bundled"), padding on the right with end-of-text.

    GPT-2 was trained without a padding token. Any would do: on the right, behind a causal mask, padding is
    never seen by the tokens before it.

    Raises `NotFound` as `load_model` does, and `UserError` if the files there make no tokenizer.
    """
    path, config = _find(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # many kinds are raised; all mean that the files are bad
        raise UserError(f"model {name!r} has no tokenizer that loads: {first_line(error)}") from error
    known, embedded = len(tokenizer), config.vocab_size
    if known < 2:  # what transformers makes of a folder without tokenizer files
        raise UserError(f"model {name!r} has no tokenizer: tokenizer.json is missing")
    if known > embedded:
        raise UserError(f"model {name!r} embeds {embedded} tokens, but its tokenizer has {known}")
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

    Raises `NotFound` if no folder, no hub repository and no cached one has that name, and `UserError` if it
    is not a GPT-2, its weights are damaged, incomplete, or not in a safetensors file, or it has no head
    although no labels are named.
    """
    path, config = _find(name)
    config.pad_token_id = pad_token_id
    if label_names is not None:
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


def lasting_name(name: str) -> str:
    """A name that finds the model from any folder: a folder's is its whole path."""
    return os.path.realpath(name) if name != BUNDLED and os.path.isdir(name) else name


def display_name(name: str) -> str:
    return "mini-gpt2 (bundled)" if name == BUNDLED else name


def _find(name: str) -> tuple[str, GPT2Config]:
    """The path or hub id that stands behind a name, and the configuration there."""
    path = str(BUNDLED_MODEL) if name == BUNDLED else name
    is_folder = os.path.isdir(path)
    is_path = os.path.exists(path) or path.count("/") > 1 or path.startswith((".", "/", "~"))
    if is_path and not is_folder:
        raise NotFound(f"model {name!r} is not a folder; --model takes a hub id, a folder or {BUNDLED!r}")
    if is_folder and not os.path.isfile(os.path.join(path, "config.json")):
        raise UserError(f"model folder {name!r} holds no config.json")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        if is_folder:
            reason = first_line(error)
            raise UserError(f"model folder {name!r}: config.json is damaged ({reason})") from error
        raise NotFound(
            f"model {name!r} is neither here nor in the hub's cache, and the hub does not give it: "
            f"check the name and the network, or use --model {BUNDLED}"
        ) from error
    if config.model_type != "gpt2":
        raise UserError(f"model {name!r} is a {config.model_type}: this project adapts GPT-2 alone")
    return path, config


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
    except Exception as error:  # many kinds are raised; all mean that the files are bad
        raise UserError(f"the weights of model {name!r} cannot be read: {first_line(error)}") from error
    unusable = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    broken = sorted(unusable - {"score.weight"})
    if broken:
        raise UserError(f"model {name!r} lacks a usable {broken[0]} (and {len(broken) - 1} other tensors)")
    return model, "score.weight" in unusable

"""GPT-2 and its tokenizer: from the hub (or its cache), from a folder, or bundled."""

import os
import warnings
from pathlib import Path

import torch
from huggingface_hub import constants, list_repo_files, snapshot_download
from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError
from safetensors import SafetensorError
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification
from transformers import PreTrainedTokenizerBase as Tokenizer

from lora_from_scratch.base import hub, model_files
from lora_from_scratch.data.lines import refuse_pointer
from lora_from_scratch.errors import NotFound, UserError, first_line

BUNDLED = "bundled"
BUNDLED_MODEL = Path(__file__).parents[1] / "bundled" / "mini-gpt2"
DEFAULT = "gpt2"


def load_tokenizer(name: str, weights: bool = False) -> Tokenizer:
    """The tokenizer of `name`: a hub id, a folder or "bundled". It pads with end-of-text if it names nothing.

    GPT-2 was trained without one. It is named for transformers, whose classifier finds the end of a sentence
    by it; batches are filled with id 0 (`pad_batch`). Any id would do: on the right, behind a causal mask,
    padding is never seen by the tokens before it.

    With `weights` these are fetched too, so that a model which is there in part counts as not there. Raises
    `NotFound` as `load_model` does, and `UserError` if the files there make no tokenizer.
    """
    warn_of_shadow(name)
    folder = fetch(name, weights)
    config = model_files.read_config(name, folder)
    for file in model_files.TOKENIZERS:
        if (folder / file).exists():
            refuse_pointer(folder / file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer("a film")
        known, embedded = len(tokenizer), config.vocab_size
        highest = max(tokenizer.get_vocab().values(), default=0)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many kinds are raised, a panic of Rust's among them: the files are bad
        raise UserError(
            f"model {name!r} has no tokenizer that loads ({first_line(error)[:80]}): copy it anew"
        ) from error
    if known < 2:  # what transformers makes of a folder without tokenizer files
        raise UserError(f"model {name!r} has no tokenizer: copy its tokenizer.json into the folder")
    if max(known, highest + 1) > embedded:
        raise UserError(
            f"model {name!r} has embeddings of {embedded} tokens, but its tokenizer has "
            f"{max(known, highest + 1)}: copy tokenizer.json anew from where the model was trained"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"model {name!r}: its tokenizer has no end-of-text token; name one as eos_token")
    tokenizer.name_or_path = _recorded(name, folder)
    return tokenizer


def load_model(
    name: str,
    label_names: list[str] | None,
    pad_token_id: int,
    generator: torch.Generator | None = None,
    random_init: bool = False,
    folder: Path | None = None,
) -> GPT2ForSequenceClassification:
    """GPT-2 with a linear classifier head on the last token, every weight in fp32.

    Args:
        name: a hub id such as "gpt2" (its files come from the hub or its cache), a folder laid out the same
            way, or "bundled".
        label_names: the name of each label id; None keeps those of a classifier's checkpoint, with its head.
        pad_token_id: the padding token, which marks where a sentence ends.
        generator: draws the head, N(0, initializer_range), unless the files bring a head that fits.
        random_init: build from the configuration alone, from torch's global generator; no weights are read.
        folder: where `fetch` has found the files, if it was asked before.

    Raises `NotFound` if no folder, no hub repository and no cached one has that name, and `UserError` if it
    is not a GPT-2, its weights are damaged, incomplete, or not in a safetensors file, or it has no head
    although no labels are named.
    """
    model, head_is_new = load_headless(name, label_names, pad_token_id, random_init, folder)
    return draw_head(model, generator) if head_is_new else model


def load_headless(
    name: str,
    label_names: list[str] | None,
    pad_token_id: int,
    random_init: bool = False,
    folder: Path | None = None,
) -> tuple[GPT2ForSequenceClassification, bool]:
    """`load_model`, and whether its head is still to be drawn."""
    folder = folder or fetch(name, weights=not random_init)
    config = model_files.read_config(name, folder)
    config.pad_token_id = pad_token_id
    config.return_dict = True  # of tuples transformers' own classifier, which checks a merge, makes nothing
    if label_names is not None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: i for i, label in enumerate(label_names)}
    if random_init:
        model, head_is_new = _build(name, config), True
    else:
        model, head_is_new = _load_weights(name, folder, config)
    model.name_or_path = model.config.name_or_path = _recorded(name, folder)
    if head_is_new and label_names is None:
        raise UserError(f"model {name!r} has no classifier head: it is a base; name one that was trained")
    return model, head_is_new


def draw_head(
    model: GPT2ForSequenceClassification, generator: torch.Generator | None
) -> GPT2ForSequenceClassification:
    """Draw the head from N(0, initializer_range), in place."""
    std = model.config.initializer_range
    torch.nn.init.normal_(model.score.weight, std=std, generator=generator)
    return model


def lasting_name(name: str) -> str:
    """A name that finds the model or dataset from any folder: of a folder or file its whole path."""
    return os.path.realpath(name) if name != BUNDLED and os.path.exists(name) else name


def display_name(name: str) -> str:
    return "mini-gpt2 (bundled)" if name == BUNDLED else name


def fetch(name: str, weights: bool = True) -> Path:
    """The folder that holds a model's files: its own, the bundle's, or the one in the hub's cache.

    What the cache lacks is fetched: configuration and tokenizer, and the weights if they are wanted. A pickle
    never is. Raises what `load_model` says.
    """
    if name == BUNDLED:
        return BUNDLED_MODEL
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, model_files.CONFIG)):
            raise UserError(f"model folder {name!r} holds no config.json: name the folder of a checkpoint")
        if weights:
            model_files.check_format(name, Path(name))
        return Path(name)
    if os.path.exists(name) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise NotFound(f"model {name!r} is not a folder; --model takes a hub id, a folder or {BUNDLED!r}")
    return _from_hub(name, weights)


def warn_of_shadow(name: str) -> None:
    """Warn where a folder here has the name of a model that the hub is known to have."""
    cached = os.path.join(constants.HF_HUB_CACHE, "models--" + name.replace("/", "--"))
    known = name == DEFAULT or os.path.isdir(cached)
    if known and os.path.isdir(name) and not name.startswith((".", "/", "~")):
        warnings.warn(
            f"model {name} is the folder ./{name} here, not the hub's: run elsewhere for that one, or "
            f"say --model ./{name}",
            stacklevel=2,
        )


def _from_hub(name: str, weights: bool) -> Path:
    wanted = [*model_files.PATTERNS, *model_files.WEIGHT_PATTERNS * weights]
    with hub.asking() as answers:
        try:
            folder, there = snapshot_download(name, allow_patterns=wanted), []
            part = model_files.lacking(Path(folder), weights)
            if part and (answers.refusal or answers.trouble):  # the client makes do with what is cached
                raise FileNotFoundError(f"{folder} lacks {part}")
            if part == "its weights" and not hub.is_offline():
                there = list_repo_files(name)
        except Exception as error:  # of many kinds: what the hub said decides
            folder = getattr(error, "snapshot_path", None) or _cached(name, wanted)
            if folder is None and hub.is_offline() and not isinstance(error, HFValidationError):
                raise hub.out_of_reach("model", name) from error
            if folder is None or model_files.lacking(Path(folder), weights):
                raise answers.failure("model", name, error) from error
        part = model_files.lacking(Path(folder), weights)
        if not part:
            return Path(folder)
        if hub.is_offline():
            raise hub.out_of_reach("model", name, part)
        if part == "its weights":
            raise UserError(model_files.no_safetensors(name, there))
        raise UserError(f"model {name!r} is on the hub without {part}: name a whole checkpoint of GPT-2")


def _cached(name: str, wanted: list[str]) -> str | None:
    """The folder in the hub's cache, whatever it holds."""
    try:
        return snapshot_download(name, allow_patterns=wanted, local_files_only=True)
    except IncompleteSnapshotError as error:
        return error.snapshot_path
    except (OSError, ValueError):
        return None


def _recorded(name: str, folder: Path) -> str:
    """What files that build on a model call it: one of the hub by its id, wherever the cache lies."""
    return str(folder) if name == BUNDLED else name


def _build(name: str, config: GPT2Config) -> GPT2ForSequenceClassification:
    try:
        return GPT2ForSequenceClassification(config)
    except (RuntimeError, ValueError, KeyError, TypeError, ArithmeticError, MemoryError) as error:
        raise UserError(
            f"model {name!r} cannot be built ({first_line(error)[:80]}): copy config.json anew"
        ) from error


def _load_weights(name: str, folder: Path, config: GPT2Config) -> tuple[GPT2ForSequenceClassification, bool]:
    """The model with its pretrained weights, and whether its head still has to be drawn."""
    model_files.check_weights(name, folder, config)
    try:
        model, info = GPT2ForSequenceClassification.from_pretrained(
            None,  # no folder: an adapter that lies there is none of these weights, and would be loaded
            config=config,
            state_dict=model_files.open_weights(folder),
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle
            ignore_mismatched_sizes=True,  # of the head, for other labels; any other was refused
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:  # names and shapes are known to fit: reading alone can fail
        raise model_files.unreadable(name, error) from error
    for parameter in model.parameters():
        parameter.data = model_files.aligned(parameter.data)
    for key, tensor in model.state_dict().items():
        if not all(extreme.isfinite() for extreme in tensor.aminmax()):  # both are no number where one is
            raise UserError(f"model {name!r}: {key} holds a value that is not finite; copy its weights anew")
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return model, "score.weight" in new

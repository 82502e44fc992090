"""What lies in a model's folder: checked before anything is built, so that damage costs no memory."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch.data.lines import refuse_pointer
from lora_from_scratch.errors import UserError, first_line, printable

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "vocab.json")
PATTERNS = (CONFIG, "tokenizer*.json", "vocab.json", "merges.txt", "*_tokens*.json")  # to be fetched
WEIGHT_PATTERNS = (WEIGHTS, INDEX, "model-*-of-*.safetensors")
CACHE_LINE = 64  # bytes
FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors calls them; other numbers need scales to be weights
Headers = dict[str, tuple[tuple[int, ...], str]]  # shape and type of each tensor
# What config.json may ask for, by its two names: far above any GPT-2, far below a machine's memory.
LIMITS = {
    ("vocab_size",): 10**7,
    ("n_positions", "max_position_embeddings"): 10**6,
    ("n_embd", "hidden_size"): 10**5,
    ("n_layer", "num_hidden_layers"): 10**3,
    ("n_head", "num_attention_heads"): 10**4,
    ("n_inner",): 10**6,
    ("num_labels",): 10**5,
}


def lacking(folder: Path, weights: bool) -> str:
    """The part of a model that is not in a folder of the hub's cache; nothing where all is there."""
    if not (folder / CONFIG).is_file():
        return "its config.json"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return "its tokenizer"
    try:
        whole = all(path.is_file() for path in weight_files(folder))
    except UserError:
        whole = False
    return "" if whole or not weights else "its weights"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. UserError if an index names its shards in no list of files."""
    if not (folder / INDEX).is_file() or (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        if others := [name for name in names if not name.endswith(".safetensors")]:
            raise ValueError(f"{printable(others[0])[:30]} is no safetensors file")  # read as a pickle
        return [folder / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / INDEX} is damaged ({first_line(error)[:60]}): fetch it again") from error


def read_config(name: str, folder: Path) -> GPT2Config:
    """The configuration in a model's folder. UserError if it is damaged, or not that of a GPT-2 in floats."""
    path = folder / CONFIG
    refuse_pointer(path)
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
        _check_sizes(values)
        _check_labels(name, values.get("id2label"))
        kind = values["model_type"]
        if values.get("transformers_weights"):  # a file that would be read in the place of those checked here
            raise ValueError("transformers_weights names another file of weights")
        if kind == "gpt2" and not values.get("quantization_config"):
            config = AutoConfig.from_pretrained(folder)
    except UserError:
        raise
    except Exception as error:  # many kinds are raised; all mean that the file is bad
        reason = "no model_type" if isinstance(error, KeyError) else first_line(error)[:80]
        raise UserError(f"model {name!r}: config.json is damaged ({reason}); copy it anew") from error
    if kind != "gpt2":
        kind = printable(str(kind))[:40]
        raise UserError(f"model {name!r} is of type {kind}: this project adapts GPT-2 alone; name a GPT-2")
    if values.get("quantization_config"):
        told = "has quantised weights, which are not read here (quantization_config in config.json)"
        raise UserError(f"model {name!r} {told}: name its whole one, and quantise that by --base-precision")
    return config


def _check_sizes(values: object) -> None:
    """Raises ValueError for sizes that transformers would take, and run out of memory or fail on later."""
    if not isinstance(values, dict):
        raise ValueError("not an object")
    for names, most in LIMITS.items():
        for key in names:
            size = values.get(key, 1)
            if size is None and key == "n_inner":
                continue
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
                raise ValueError(f"{key} is {printable(str(size))[:20]}")


def _check_labels(name: str, labels: object) -> None:
    if labels is None:
        return
    place = f"model {name!r}: id2label in config.json"
    if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
        raise UserError(f'{place} is no table of names: write it as {{"0": "negative", "1": "positive"}}')
    if set(labels) != {str(i) for i in range(len(labels))} or not labels:
        raise UserError(
            f"{place} has the ids {printable(', '.join(labels))[:30] or 'of nothing'}: number them from 0"
        )


def open_weights(folder: Path, mapped: bool = False) -> dict[str, object]:
    """The tensors of a checkpoint by their names in it, each read when it is indexed: `[...]`.

    Each gets memory of its own, which can be given back. With `mapped` they are views of the mapped files, of
    which only what is looked at becomes resident; it stays so until the last view of a file is gone.
    """
    backend = "mmap" if mapped else "pread"
    files = [safe_open(path, framework="pt", backend=backend) for path in weight_files(folder)]
    return {key: file.get_slice(key) for file in files for key in file.keys()}  # noqa: SIM118 (not a dict)


def stored_weights(
    name: str, folder: Path, wanted: Iterable[str], mapped: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Weights of a model once more, by their names in it, one after the other and in fp32.

    With `mapped` they take memory only where they are looked at, if the files hold fp32; else they are
    `aligned`. UserError if the files are not as they were.
    """
    try:
        there = {
            key.removeprefix("transformer."): slice for key, slice in open_weights(folder, mapped).items()
        }
        for key in wanted:
            tensor = there[key.removeprefix("transformer.")][...].float()
            yield key, tensor if mapped else aligned(tensor)
    except (OSError, KeyError, SafetensorError) as error:
        raise unreadable(name, error) from error


def aligned(tensor: Tensor) -> Tensor:
    """Itself, or a copy that begins where a cache line does, as PyTorch's own do and what safetensors reads
    does not: of a weight that lies across, a product in place takes 1.1 times as long."""
    return tensor.clone() if tensor.data_ptr() % CACHE_LINE else tensor


def unreadable(name: str, error: Exception) -> UserError:
    reason = first_line(error)[:80]
    return UserError(f"the weights of model {name!r} cannot be read: {reason}; copy them anew")


def check_weights(name: str, folder: Path, config: GPT2Config) -> None:
    """Compare names and shapes in the weights' headers with the configuration; no tensor is read.

    Raises UserError if there are none but a pickle's, a file is damaged, a tensor holds no floats, or one is
    missing or misshapen; the head alone may be, since it is drawn anew then.
    """
    check_format(name, folder)
    stored = _headers(name, folder)
    blocks = {key.split(".")[1] for key in stored if key.startswith("h.")}
    if config.n_layer > len(blocks):  # before a block is built for each that the configuration asks for
        raise UserError(
            f"model {name!r}: config.json asks for {config.n_layer} blocks, but its weights have "
            f"{len(blocks)}: copy both anew"
        )
    try:
        with torch.device("meta"):
            expected = GPT2ForSequenceClassification(config).state_dict()
    except Exception as error:
        reason = first_line(error)[:80]
        raise UserError(f"model {name!r}: config.json is damaged ({reason}); copy it anew") from error
    broken = sorted(
        key
        for key, tensor in expected.items()
        if key != "score.weight" and _of(stored, key)[0] != tuple(tensor.shape)
    )
    if broken:
        more = f" and {len(broken) - 1} others are" if len(broken) > 1 else " is"
        raise UserError(
            f"model {name!r}: {broken[0]}{more} missing from its weights, or not in the shape that "
            "config.json asks for: copy both anew"
        )
    for key in expected:
        if (kind := _of(stored, key)[1]) not in FLOATS:
            raise UserError(f"model {name!r}: {key} holds {kind}: save it in a floating-point type")


def _headers(name: str, folder: Path) -> Headers:
    """What the weights' files say of each tensor, by its name without `transformer.`."""
    found = {}
    for path in weight_files(folder):
        refuse_pointer(path)
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    tensor = file.get_slice(key)
                    found[key.removeprefix("transformer.")] = tuple(tensor.get_shape()), tensor.get_dtype()
        except Exception as error:  # many kinds are raised; all mean that the file is bad
            raise unreadable(name, error) from error
    return found


def _of(stored: Headers, key: str) -> tuple[tuple[int, ...] | None, str]:
    return stored.get(key.removeprefix("transformer."), (None, FLOATS[0]))


def check_format(name: str, folder: Path) -> None:
    """UserError if a folder lacks a safetensors file of its weights, such as one with a pickle alone."""
    for path in weight_files(folder):
        if not path.is_file():
            raise UserError(no_safetensors(name, sorted(file.name for file in folder.iterdir()), path.name))


def no_safetensors(name: str, there: Iterable[str], wanted: str = WEIGHTS) -> str:
    """What to say where the weights are not in the format that is read."""
    pickle = next((file for file in there if file.endswith((".bin", ".pt", ".pth", ".ckpt"))), None)
    if pickle:
        return (
            f"model {name!r} has its weights in a pickle alone ({pickle}), which is never opened: save it "
            "anew with transformers' save_pretrained"
        )
    return f"model {name!r} has no {wanted}: fetch it, or name another model"

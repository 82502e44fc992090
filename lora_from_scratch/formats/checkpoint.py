"""A plain transformers checkpoint: the whole model, which needs neither a base nor this project."""

from pathlib import Path

from safetensors import SafetensorError

from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.formats.adapted import PIPELINE, Adapted

TITLE = "transformers"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
FILES = ("config.json", "model.safetensors", "generation_config.json", *TOKENIZER_FILES)


def is_in(folder: Path) -> bool:
    return (folder / FILES[0]).exists()


def save(adapted: Adapted, folder: Path) -> None:
    """Write configuration with label names, weights and tokenizer; raises `OSError` if there is no room."""
    try:
        adapted.model.save_pretrained(folder)
    except SafetensorError as error:  # how safetensors reports the operating system's refusals
        raise OSError(f"{folder}: {error}") from error
    adapted.tokenizer.save_pretrained(folder)


def load(folder: Path, base_name: str | None = None) -> Adapted:
    """The model as it stands there, everything able to learn; raises what loading tokenizer and model do."""
    tokenizer = load_tokenizer(str(folder))
    return Adapted(load_model(str(folder), None, tokenizer.pad_token_id), tokenizer, None)


def how_to_load(base_name: str, labels: int) -> list[str]:
    return ["In transformers:", "", *PIPELINE.format(folder=".").splitlines()]

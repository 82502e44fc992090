"""A plain transformers checkpoint: the whole model, which needs neither a base nor this project."""

import hashlib
import json
from pathlib import Path

from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.base.model_files import check_format
from lora_from_scratch.data.lines import refuse_pointer
from lora_from_scratch.formats.adapted import PIPELINE, Adapted
from lora_from_scratch.formats.seal import check_seal, seal

TITLE = "transformers"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = (CONFIG, WEIGHTS, "generation_config.json", *TOKENIZER_FILES)


def is_in(folder: Path) -> bool:
    return (folder / FILES[0]).exists()


def save(adapted: Adapted, folder: Path) -> None:
    """Write configuration with label names, weights and tokenizer; raises `OSError` if there is no room."""
    try:
        adapted.model.save_pretrained(folder)
        adapted.tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors and tokenizers have their own for the system's refusals
        if "(os error " not in str(error):
            raise
        raise OSError(f"{folder}: {error}") from error
    if (folder / WEIGHTS).exists():  # transformers writes several in its place where one would be huge
        seal(folder / WEIGHTS, {"format": "pt"}, _beside(folder))


def load(folder: Path, base_name: str | None = None) -> Adapted:
    """The model as it stands there, everything able to learn; raises what loading tokenizer and model do."""
    for name in FILES:
        if (folder / name).is_file():
            refuse_pointer(folder / name)
    check_format(str(folder), folder)
    if (folder / WEIGHTS).is_file():
        check_seal(folder / WEIGHTS, _beside(folder))
    tokenizer = load_tokenizer(str(folder))
    adapted = Adapted(load_model(str(folder), None, tokenizer.pad_token_id), tokenizer, None)
    _ = adapted.label_names  # refused now, if at all
    return adapted


def how_to_load(base_name: str, label_names: list[str]) -> list[str]:
    return ["In transformers:", "", *PIPELINE.format(folder=".").splitlines()]


def _beside(folder: Path) -> str:
    """The digests of the files that say what the weights compute, and how a text becomes tokens."""
    paths = [folder / name for name in (CONFIG, *TOKENIZER_FILES) if (folder / name).is_file()]
    return json.dumps({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths})

"""A seal on a safetensors file: the digest of what was written, in the file's own metadata.

A bit that flips inside a weight leaves a file that loads and computes something else. The files that this
project writes carry a SHA-256 over tensors, metadata and what the files beside them say, which is compared at
loading; other files carry none, and load without. The metadata is written in sorted order, so that equal
contents give equal bytes (safetensors itself writes it in the order of a hash map).
"""

import hashlib
import json
import shutil
from pathlib import Path

from lora_from_scratch.errors import UserError
from lora_from_scratch.version import __version__

DIGEST, WRITER = "contents_sha256", "written_by"


def seal(path: Path, metadata: dict[str, str], beside: str = "") -> None:
    """Give a safetensors file this metadata and its digest; `beside` stands for the files beside it.

    Raises `OSError` if there is no room.
    """
    header, _, start = _header(path)
    metadata = {**metadata, WRITER: f"lora-from-scratch {__version__}"}
    metadata[DIGEST] = _digest(path, start, header, metadata, beside)
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":"))
    text += " " * (-len(text) % 8)  # the tensors' bytes start at a multiple of 8
    aside = path.with_name(f"{path.name}.part")
    with path.open("rb") as source, aside.open("wb") as target:
        source.seek(start)
        target.write(len(text).to_bytes(8, "little") + text.encode())
        shutil.copyfileobj(source, target, 1 << 20)
    aside.replace(path)


def check_seal(path: Path, beside: str = "") -> None:
    """Raise `UserError` if the file is sealed, and not as it was, nor what stands beside it.

    A file that is no safetensors file is left to whoever reads it.
    """
    try:
        header, metadata, start = _header(path)
    except (ValueError, RecursionError):
        return
    if WRITER in metadata or DIGEST in metadata:
        expected = metadata.pop(DIGEST, None)
        if _digest(path, start, header, metadata, beside) != expected:
            raise UserError(
                f"{path} or a file beside it is damaged, or was changed by hand: they do not have the digest "
                "of what was written; take another copy"
            )


def _header(path: Path) -> tuple[dict[str, dict], dict[str, str], int]:
    """What a safetensors file says of its tensors, its metadata, and where the tensors' bytes start."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length) if length < path.stat().st_size else b"")
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path} is no safetensors file")
    return header, metadata, 8 + length


def _digest(path: Path, start: int, header: dict, metadata: dict[str, str], beside: str) -> str:
    digest = hashlib.sha256(json.dumps([header, metadata, beside], sort_keys=True).encode())
    with path.open("rb") as file:
        file.seek(start)
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()

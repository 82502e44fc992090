"""What a run of a comparison leaves: one JSON file, named by the hash of all that it depends on.

So a finished run is never repeated, and one that another code, base, dataset or setting made is never taken
for it. Each file appears whole, with a digest of what it says; what was killed leaves none.
"""

import ast
import errno
import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import transformers

from lora_from_scratch.base.fingerprint import fingerprints
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats.seal import DIGEST
from lora_from_scratch.formats.whole_files import write_whole
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.record import as_json
from lora_from_scratch.runs.sources import Sources
from lora_from_scratch.version import __version__

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FOLDER, LOCKS = "cells", "cells.lock"
TAKEN = (errno.EAGAIN, errno.EACCES)  # what a lock that another process holds is answered with
DONE, FAILED = "done", "failed"
MADE = {"record", "losses", "validation", "accounted"}  # what a run that is done leaves
PACKAGE = Path(__file__).parents[1]
ROOMS = ("core", "methods", "fast", "data", "base", "train", "runs")  # what computes a run's figures


class Cells:
    """The cells of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._locks = folder / FOLDER, folder / LOCKS

    def read(self, key: dict[str, object]) -> dict[str, object] | None:
        """What the run of this key left, if it has been there and can be read.

        A warning where it is not what was written: to believe it would show figures that nobody measured.
        """
        try:
            cell = json.loads(self._path(key).read_bytes())
            whole = cell["status"] == FAILED or cell.keys() >= MADE
            if not whole or cell["key"] != _plain(key):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if cell.pop(DIGEST, None) == _digest(cell):
            return cell
        told = (
            f"{self._path(key).name} in {quoted(self.folder, length=60)} is damaged, or was changed by hand"
        )
        warnings.warn(f"{told}; it is not believed, and its run made again", stacklevel=2)
        return None

    def write(self, key: dict[str, object], cell: dict[str, object]) -> dict[str, object]:
        """Keep what it left; returns it as it will be read. UserError if there is no room for it.

        Where it failed and another process, at work in the same folder, has done it meanwhile, that stays.
        """
        if cell["status"] == FAILED and (there := self.read(key)) and there["status"] == DONE:
            return there
        written = json.loads(as_json({"key": _plain(key), **cell}))
        with self._written():
            self.folder.mkdir(parents=True, exist_ok=True)  # not by renaming: another process may be faster
            write_whole(self._path(key), as_json({**written, DIGEST: _digest(written)}))
        return written

    @contextmanager
    def claimed(self, key: dict[str, object]) -> Iterator[bool]:
        """Whether no other process is at work on the run of this key; within the block this one then is.

        Each run has a byte of one file, and whoever is at work on it a lock on that byte. The system takes
        the lock back from a process that ends, also by SIGKILL. Where it knows no locks nobody is kept off.
        """
        if fcntl is None:
            yield True
            return
        with self._written():
            self._locks.parent.mkdir(parents=True, exist_ok=True)
            file = self._locks.open("ab")
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(_digest(key)[:15], 16))
                mine = True
            except OSError as error:
                mine = error.errno not in TAKEN
            yield mine

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = f"{quoted(self.folder, length=60)} cannot be written: {error.strerror}"
            raise UserError(f"{told}; mend that and start the same command again") from error

    def checkpoints(self, key: dict[str, object]) -> Path:
        """The folder of the checkpoints of a run that is not finished."""
        return self._path(key).with_suffix(".checkpoints")

    def _path(self, key: dict[str, object]) -> Path:
        return self.folder / f"{_digest(key)[:32]}.json"


def _digest(values: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(_plain(values), sort_keys=True).encode()).hexdigest()


def key_of(config: RunConfig, sources_digest: dict[str, str]) -> dict[str, object]:
    """All that the figures of a run depend on: its settings, each decided, what it is made from, the code."""
    left_out = ("output_dir", "checkpoint_every")
    settings = {name: value for name, value in config.as_dict().items() if name not in left_out}
    return {"config": settings, "sources": sources_digest, "code": code_version()}


def digest_of(sources: Sources) -> dict[str, str]:
    """Digests of the sentences, the base and its tokenizer; a drawn head counts by how it is drawn."""
    of_base = fingerprints(sources.base(0), sources.tokenizer, ())
    return {"data": sources.dataset.fingerprint(), **of_base}


@cache
def code_version() -> dict[str, str]:
    """The versions of this package and its libraries, and a digest of the code that computes figures.

    Comments and docstrings are not part of it: a run is not repeated because they were mended.
    """
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (PACKAGE / room).glob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {_meaning(path)}".encode())
    libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"version": __version__, "digest": digest.hexdigest(), **libraries}


def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [part for part in body if not _is_text(part)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return (
        isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str)
    )


def _plain(value: object) -> object:
    """A value as JSON gives it back, with numbers in one spelling: 16 and 16.0, 1e-5 and 0.00001 are one."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

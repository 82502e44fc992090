"""A training's state on disk: one safetensors file for each checkpoint, whole or not there, no pickle.

The file holds the tensors of a `Snapshot` under their names; its metadata, as JSON, the facts, what was
trained, and a digest of all of it.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lora_from_scratch.errors import UserError, first_line, quoted
from lora_from_scratch.formats.whole_files import appearing, clear_litter
from lora_from_scratch.train.processes import processes
from lora_from_scratch.train.state import Snapshot

FOLDER = "checkpoints"  # in that of the run
KEPT = 2
EVERY_SECONDS = 600.0
LONGEST_HEADER = 100_000_000  # bytes: what safetensors reads at most
ABOUT, FACTS, DIGEST = "about", "facts", "contents_sha256"
OTHER = "start the run again, or take another copy of the folder"


class Resumable(Protocol):
    """A training of whatever kind, as far as its checkpoints have to know it."""

    log: Sized  # of its steps
    checkpoint_seconds: float

    @property
    def is_finite(self) -> bool: ...

    def snapshot(self) -> Snapshot: ...


class Checkpoints:
    """The checkpoints of one run: when they are due, and the newest two of them in its folder.

    `about` says what is trained, so that the run can go on; it has to be JSON. `every` so many steps, by
    default at the end of each epoch and every ten minutes. With `resumed` the training goes on from there.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, object],
        every: int | None = None,
        resumed: Snapshot | None = None,
    ) -> None:
        self.folder, self.about, self.every, self.resumed = folder, dict(about), every, resumed
        self._last = time.monotonic()
        if processes().writes:
            clear_litter(folder)
            if resumed:  # a kill may have come before the last one dropped what it replaced
                with suppress(OSError):
                    self._drop_all_but_newest(folder / _name(resumed.steps))

    def are_due(self, steps: int, ends_epoch: bool) -> bool:
        """Whether one is to be written after so many steps."""
        return steps % self.every == 0 if self.every else ends_epoch

    @property
    def are_overdue(self) -> bool:
        """Whether the last one is too long ago."""
        return not self.every and time.monotonic() - self._last >= EVERY_SECONDS

    def write(self, state: Resumable) -> Path | None:
        """Write one, flushed to disk before it has its name, and drop all but it and the one before it.

        Several processes all have to ask, and the first one writes.

        Where that fails, for want of room for instance, there is a warning and training goes on: those that
        are there stay, as they do where what learns holds what is no number (the next loss will tell). None
        where this one is not there.
        """
        started, path = time.perf_counter(), self.folder / _name(len(state.log))
        try:
            snapshot = state.snapshot() if state.is_finite else None
            if snapshot and processes().writes:
                try:
                    _write(snapshot, self.about, path)
                finally:  # also where the file is there, and flushing the folder failed: none may pile up
                    self._drop_all_but_newest(path)
        except OSError as error:
            told = f"{'trouble with the' if path.exists() else 'no'} checkpoint after step {len(state.log)}"
            why = error.strerror or first_line(error)
            warnings.warn(f"{told}: {why}; make room in {quoted(self.folder, length=60)}", stacklevel=2)
        finally:
            self._last = time.monotonic()
            state.checkpoint_seconds += time.perf_counter() - started
        return path if path.exists() else None

    def clear(self) -> None:
        """What was trained is written: nothing has to go on from here. A warning where they cannot go."""
        try:
            for path in found_in(self.folder):
                path.unlink(missing_ok=True)
            clear_litter(self.folder)
            if self.folder.is_dir():
                self.folder.rmdir()
        except OSError as error:
            if found_in(self.folder):  # else what is left there is somebody else's
                told = f"{quoted(self.folder, length=60)} stays: {error.strerror}"
                warnings.warn(f"{told}; delete it, the run is finished", stacklevel=2)

    def _drop_all_but_newest(self, path: Path) -> None:
        """Those behind this one, too: they are of an earlier try, and were not to be gone on from."""
        found = found_in(self.folder)
        kept = [one for one in found if one.name <= path.name][:KEPT]
        for one in found:
            if one not in kept:
                one.unlink()


def found_in(folder: Path) -> list[Path]:
    """The checkpoints there, the newest first."""
    return sorted(folder.glob(_name("*")), reverse=True)


def newest(folder: Path) -> tuple[dict[str, object], Snapshot] | None:
    """What the newest whole checkpoint there says it is about, and where it stands; None without any.

    One that is cut off gives a warning, and the one before it is taken. UserError for one that is damaged, or
    that this project did not write.
    """
    for path in found_in(folder):
        if not _is_cut_off(path):
            return read(path)
        told = f"{path.name} in {quoted(folder, length=60)} is cut off; the one before it is taken"
        warnings.warn(told, stacklevel=2)
    return None


def read(path: Path) -> tuple[dict[str, object], Snapshot]:
    """What a checkpoint is about, and where it stands. UserError if it is not as it was written."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
        said = metadata.pop(DIGEST)
        about, facts = json.loads(metadata[ABOUT]), json.loads(metadata[FACTS])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        why = first_line(error)[:60]
        raise UserError(f"{path} is no checkpoint of this project ({why}); {OTHER}") from error
    if _digest(tensors, metadata) != said:
        raise UserError(f"{path} is damaged: it has not the digest of what was written; {OTHER}")
    return about, Snapshot(tensors, facts)


def _name(steps: int | str) -> str:
    return f"step-{steps:09}.safetensors" if isinstance(steps, int) else f"step-{steps}.safetensors"


def _write(snapshot: Snapshot, about: Mapping[str, object], path: Path) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.tensors.items()}
    metadata = {ABOUT: json.dumps(about), FACTS: json.dumps(snapshot.facts)}
    metadata[DIGEST] = _digest(tensors, metadata)
    with appearing(path.parent) as aside:
        try:
            save_file(tensors, aside / path.name, metadata)
        except SafetensorError as error:  # how safetensors reports the operating system's refusals
            raise OSError(first_line(error)) from error


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    with ThreadPoolExecutor() as pool:  # a large model's takes most of a second
        parts = list(pool.map(_digest_of_one, sorted(tensors.items())))
    return hashlib.sha256(json.dumps([sorted(metadata.items()), parts]).encode()).hexdigest()


def _digest_of_one(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_cut_off(path: Path) -> bool:
    """Whether the file ends before what its own header announces."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length, begins = int.from_bytes(file.read(8), "little"), file.read(1)
        if length > LONGEST_HEADER or begins not in (b"{", b""):
            return False  # another file
        if size < 8 + length:
            return True
        try:
            header = json.loads(begins + file.read(length - 1))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return size < 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return False  # damaged, not cut off

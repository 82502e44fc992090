"""Why: trainings get killed. Does one that was killed, at any moment, end as if nothing had happened?

    python benchmarks/killed_a_thousand_times.py --kills 1000 --out benchmarks/results/killed-1000-cpu.json

Trains a small GPT-2 of random weights by each method, dropout on, with a checkpoint after every step, and
kills it with SIGKILL at random moments; every other time the writing of checkpoints is slowed down, in pieces
and with pauses, so that many kills land inside it. Each training that was killed goes on from what is there,
to be killed again, until it gets to its end: its weights, figures of every step, scores and the generator of
dropout's draws then have to be those of a training that nobody killed, bit for bit. Ends in one JSON line.
Each leg is a fork of one process that has everything loaded, and has never trained itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from outcome import add_out, finish
from safetensors.torch import save
from tqdm import tqdm
from transformers import GPT2Config

from lora_from_scratch.base.load import BUNDLED_MODEL
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import evaluate_prepared, train_prepared
from lora_from_scratch.runs.prepare import Prepared, prepare
from lora_from_scratch.runs.sources import find_sources
from lora_from_scratch.train import checkpoints as of_checkpoints
from lora_from_scratch.train.checkpoints import KEPT, Checkpoints, newest
from lora_from_scratch.train.state import TrainingState

METHODS = ("lora", "full", "prelayer", "prefix")
SIZES = {"vocab_size": 8192, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
PAUSE = 2e-3  # seconds at most, before and after each piece of a slow write
DONE = "done "
WRITING, BEGUN_AT = 0, 1  # places in the memory that a leg shares with whoever kills it


@dataclass
class Tally:
    """What came of the trainings of one method."""

    method: str
    trainings: int = 0
    kills: int = 0
    kills_inside_a_write: int = 0
    resumed_from_a_checkpoint: int = 0  # legs; others found none yet, or were killed before they had read it
    differing: int = 0  # trainings that did not end as the one that nobody killed


def small_runs(folder: Path, methods: tuple[str, ...] = METHODS) -> list[Prepared]:
    """A run of 8 steps by each method, on a base written into the folder, over 14 sentences."""
    base, data = folder / "base", folder / "reviews.csv"
    base.mkdir(parents=True)
    GPT2Config(**SIZES, initializer_range=0.2, bos_token_id=0, eos_token_id=0).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_MODEL / name, base / name)
    rows = [f"{'so ' * i}{word},{word}\n" for i in range(8) for word in ("good", "dull")]
    data.write_text(f"text,label\n{''.join(rows)}", encoding="utf-8")
    asked = {"model": str(base), "dataset": str(data), "random_init": True, "device": "cpu"}
    asked |= {"epochs": 2, "batch_size": 4}
    configs = [RunConfig(method=method, **asked) for method in methods]
    sources = find_sources(configs[0], keep=True)
    return [prepare(config, sources) for config in configs]


class Watched(Checkpoints):
    """Checkpoints that tell, in shared memory, while one is being written."""

    told: mmap.mmap

    def write(self, state: TrainingState) -> Path | None:
        self.told[WRITING] = 1
        try:
            return super().write(state)
        finally:
            self.told[WRITING] = 0


def slow_writing() -> None:
    """From here on checkpoints are written in pieces, and the system takes its time for everything."""
    draw = random.Random(os.getpid())

    def pause() -> None:
        time.sleep(draw.uniform(0, PAUSE))

    def slow(function: Callable) -> Callable:
        def slowed(*arguments: object, **options: object) -> object:
            pause()
            result = function(*arguments, **options)
            pause()
            return result

        return slowed

    def in_pieces(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        contents = save(tensors, metadata)
        size = -(-len(contents) // 4)
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(contents), size):
                file.write(contents[start : start + size])
                pause()

    of_checkpoints.save_file = in_pieces
    os.fsync = slow(os.fsync)
    for name in ("rename", "replace", "unlink", "rmdir"):
        setattr(Path, name, slow(getattr(Path, name)))


def outcome(prepared: Prepared, folder: Path, told: mmap.mmap) -> str:
    """Train, from the newest checkpoint in the folder if there is one; a digest of all that comes out."""
    found = newest(folder)
    told[BEGUN_AT] = found[1].steps if found else 0
    checkpoints = Watched(folder, {}, every=1, resumed=found[1] if found else None)
    checkpoints.told = told
    training = train_prepared(prepared, checkpoints)
    scores = evaluate_prepared(prepared).probabilities
    digest = hashlib.sha256(json.dumps([training.metrics, training.decay, scores]).encode())
    for name, tensor in sorted(prepared.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    digest.update(torch.get_rng_state().numpy())
    return digest.hexdigest()


def leg(prepared: Prepared, folder: Path, told: mmap.mmap, slowly: bool, seconds: float | None) -> str | None:
    """What a process that trains comes to; None where it was killed first, after so many seconds."""
    told[WRITING] = told[BEGUN_AT] = 0
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _be_a_leg(prepared, folder, told, slowly, writing)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        if seconds is not None and not select.select([pipe], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        said = pipe.read()
    os.waitpid(child, 0)
    if said and not said.startswith(DONE):
        raise RuntimeError(f"{prepared.config.method}: {said}")
    return said.removeprefix(DONE) or None


def _be_a_leg(prepared: Prepared, folder: Path, told: mmap.mmap, slowly: bool, writing: int) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        tqdm.set_lock(threading.RLock())  # its own one is shared, and who is killed never lets go of it
        warnings.simplefilter("error")  # a checkpoint that is cut off, or was not written
        if slowly:
            slow_writing()
        said = DONE + outcome(prepared, folder, told)
    except BaseException:
        said = traceback.format_exc()
    os.write(writing, said.encode())
    os._exit(0)


class Killing:
    """Trainings of one method, killed again and again, beside one that nobody killed."""

    def __init__(self, prepared: Prepared, folder: Path, draw: random.Random) -> None:
        self.prepared, self.folder, self.draw = prepared, folder / prepared.config.method, draw
        self.tally, self.told = Tally(prepared.config.method), mmap.mmap(-1, mmap.PAGESIZE)
        self.expected = self._unbroken()
        started = time.perf_counter()
        assert self._unbroken() == self.expected, "two that nobody killed differ"
        self.seconds = time.perf_counter() - started

    def _unbroken(self) -> str:
        outcome = leg(self.prepared, self.folder / "checkpoints", self.told, False, None)
        self._clear()
        return outcome

    def train(self, most_kills: int) -> int:
        """One training until it ends, killed that often at most; returns how often."""
        folder, killed, ended = self.folder / "checkpoints", 0, None
        while ended is None:
            slowly = self.draw.random() < 0.5
            after = self.draw.uniform(0, self.seconds * (1.5 if slowly else 0.7))
            ended = leg(self.prepared, folder, self.told, slowly, after if killed < most_kills else None)
            self.tally.resumed_from_a_checkpoint += self.told[BEGUN_AT] > 0
            if ended is None:
                killed += 1
                self.tally.kills_inside_a_write += self.told[WRITING]
                self._check_what_is_left(folder)
        self.tally.trainings += 1
        self.tally.kills += killed
        self.tally.differing += ended != self.expected
        self._clear()
        return killed

    def _check_what_is_left(self, folder: Path) -> None:
        """One checkpoint more than are kept, and one that was being written, at most."""
        checkpoints, litter = len(list(folder.glob("step-*"))), len(list(self.folder.rglob(".*part-*")))
        assert checkpoints <= KEPT + 1 and litter <= 1, f"{checkpoints} checkpoints, {litter} half-written"

    def _clear(self) -> None:
        Checkpoints(self.folder / "checkpoints", {}).clear()
        left = [path.name for path in self.folder.rglob("*")]
        assert not left, f"left behind: {left}"


def kill(kills: int, methods: tuple[str, ...] = METHODS, seed: int = 0) -> list[Tally]:
    """So many kills in all, as many for each method, each training resumed until it ends."""
    draw = random.Random(seed)
    torch.set_num_threads(1)  # a fork takes no thread along
    with tempfile.TemporaryDirectory() as name, tqdm(total=kills, unit=" kills") as bar:
        folder = Path(name)
        killings = [Killing(prepared, folder, draw) for prepared in small_runs(folder / "made", methods)]
        left = [kills // len(methods) + (i < kills % len(methods)) for i in range(len(methods))]
        while any(left):
            for i, killing in enumerate(killings):
                killed = killing.train(left[i]) if left[i] else 0
                left[i] -= killed
                bar.update(killed)
        return [killing.tally for killing in killings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, metavar="N")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    add_out(parser)
    flags = parser.parse_args()
    started = time.perf_counter()
    tallies = kill(flags.kills, tuple(flags.methods), flags.seed)
    sums = {
        name: sum(getattr(tally, name) for tally in tallies)
        for name in Tally.__dataclass_fields__
        if name != "method"
    }
    about = {"seed": flags.seed, "seconds": round(time.perf_counter() - started, 1), **sums}
    finish(flags.out, [vars(tally) for tally in tallies], **about)
    if sums["differing"]:
        sys.exit(f"{sums['differing']} trainings differ from the one that nobody killed")


if __name__ == "__main__":
    main()

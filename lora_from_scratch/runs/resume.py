"""How an interrupted run goes on: what its checkpoints say was asked, and whether all of it is still so."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from lora_from_scratch.base.fingerprint import config_fingerprint
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.folder import listed_files
from lora_from_scratch.runs.prepare import Prepared
from lora_from_scratch.runs.writable import RESULTS
from lora_from_scratch.train import checkpoints
from lora_from_scratch.train.checkpoints import Checkpoints
from lora_from_scratch.train.device import environment
from lora_from_scratch.train.state import Snapshot

FREE = ("output_dir",)  # may be another when a run goes on: a folder can be moved
DROPOUT = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
# On which bits depend.
COMPUTES = ("device", "threads", "processes", "lora_from_scratch", "torch", "transformers")


def checkpoints_of(prepared: Prepared, folder: Path, resumed: Snapshot | None = None) -> Checkpoints:
    """Those of a run whose folder this is."""
    every = prepared.config.checkpoint_every
    return Checkpoints(folder / checkpoints.FOLDER, about(prepared), every, resumed)


def about(prepared: Prepared) -> dict[str, object]:
    """What a checkpoint says of its run, for JSON."""
    config = prepared.config
    return {
        "config": {name: value for name, value in config.as_dict().items() if name not in FREE},
        "sources": {
            f"--dataset {quoted(config.dataset)}": prepared.dataset.fingerprint(),
            f"--model {quoted(config.model)}": prepared.base_digest,
            f"the tokenizer of --model {quoted(config.model)}": _tokens_digest(prepared),
            f"the config.json of --model {quoted(config.model)}": _config_digest(prepared),
        },
        "environment": environment(torch.device(config.device)),
    }


def unfinished(folder: Path) -> tuple[dict[str, object], Snapshot] | None:
    """What the newest checkpoint of a run is about, and where it stands; None where the run is finished.

    UserError where there is no run that could go on.
    """
    if found := checkpoints.newest(folder / checkpoints.FOLDER):
        if "config" not in found[0]:
            raise UserError(f"--resume {folder}: the checkpoints there are of no run; name the folder of one")
        return found
    if not folder.is_dir():
        raise UserError(f"--resume {folder}: no such folder; name the one of an interrupted run")
    if not listed_files(folder):
        raise UserError(f"--resume {folder}: there is no checkpoint; start the run again without it")
    if json.loads((folder / RESULTS).read_bytes()).get("accuracy", 0) is None:
        told = "what was trained there is whole, and only not measured"
        raise UserError(f"--resume {folder}: {told}; measure it with run.py evaluate --adapter {folder}")
    return None


def config_of(said: Mapping[str, object], folder: Path, flags: Mapping[str, object]) -> RunConfig:
    """The settings of an interrupted run. UserError for a flag that asks for others."""
    kept = {name: tuple(v) if isinstance(v, list) else v for name, v in said["config"].items()}
    kept["output_dir"] = str(folder)
    for name, value in flags.items():
        value = tuple(value) if isinstance(value, list) else value
        if name != "checkpoint_every" and (name not in kept or kept[name] != value):
            flag, shown = f"--{name.replace('_', '-')}", kept.get(name)
            told = f"{flag} {_shown(shown)}" if name in kept else f"the settings that it has, without {flag}"
            raise UserError(f"--resume {folder} goes on with {told}; leave the flag out")
    if "LOCAL_RANK" in os.environ:  # each process its own GPU, not the one of the first
        kept["device"] = kept["device"].partition(":")[0]
    kept["checkpoint_every"] = flags.get("checkpoint_every", kept.get("checkpoint_every"))
    return RunConfig(**kept)


def check_same(said: Mapping[str, object], prepared: Prepared, folder: Path) -> None:
    """UserError where sentences or base are others than at the start; a warning where bits may differ."""
    here = about(prepared)
    for what, digest in here["sources"].items():
        if said["sources"].get(what) != digest:
            raise UserError(f"--resume {folder}: {what} is not what the run began with; put that back")
    there, now = said["environment"], here["environment"]
    changed = [f"{n} {there.get(n)}, now {now[n]}" for n in COMPUTES if there.get(n) != now[n]]
    if changed:
        told = f"the run goes on elsewhere ({'; '.join(changed)})"
        warnings.warn(f"{told}, so its last bits may be others than without the interruption", stacklevel=2)


def _tokens_digest(prepared: Prepared) -> str:
    """What the tokenizer makes of the sentences."""
    digest = hashlib.sha256()
    for examples in (prepared.train_examples, prepared.validation_examples):
        digest.update(examples.token_ids.numpy())
        digest.update(examples.lengths.numpy())
    return digest.hexdigest()


def _config_digest(prepared: Prepared) -> str:
    """What the model computes beside its weights, in training too."""
    dropout = [getattr(prepared.model.config, name, None) for name in DROPOUT]
    return f"{config_fingerprint(prepared.model)} {dropout}"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""Trains the same in one process and in several, for test_processes.py, which calls `leave_all` in a fork.

It forks for each process, which one in which a backward pass has run may not. Each scenario's processes leave
their results in a folder, a file each.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, UserError
from lora_from_scratch.base.load import load_tokenizer
from lora_from_scratch.cli.main import main
from lora_from_scratch.methods import method_named
from lora_from_scratch.runs.execute import evaluate_prepared, train_prepared
from lora_from_scratch.runs.prepare import prepare
from lora_from_scratch.runs.sources import Sources, find_sources
from lora_from_scratch.train import parts as parts_of_a_batch
from lora_from_scratch.train.checkpoints import Checkpoints, newest
from lora_from_scratch.train.interrupts import Interrupted
from lora_from_scratch.train.log import StepLog
from lora_from_scratch.train.parts import Parting
from lora_from_scratch.train.processes import joined, processes

CPU = torch.device("cpu")
METHODS = ("full", "lora", "prelayer", "prefix", "head", "lora-plus", "dora", "bitfit", "ia3")
Results = dict[str, object]
KEPT: dict[str, Sources] = {}  # what all forks have, by the folder of the base


def sources(folder: Path) -> None:
    """A small base without and one with dropout, 51 sentences to train on, 5 to measure on.

    Its tokens are one more than the tokenizer's, so that two processes cannot halve them.
    """
    tokenizer = load_tokenizer("bundled")
    for name, dropout in (("still", 0.0), ("drops", 0.3)):
        torch.manual_seed(0)
        sizes = {"vocab_size": len(tokenizer) + 1, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
        drops = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
        config = GPT2Config(**sizes, **drops, pad_token_id=tokenizer.pad_token_id, initializer_range=0.2)
        GPT2ForSequenceClassification(config).transformer.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = ["a fine film", "a dull film", "not so bad , I liked the end", "it never ends", "warm and funny"]
    rows = [f"{words[i % 5]} {'very ' * (i % 7)}{i}\t{i * i % 3 % 2}" for i in range(56)]
    (folder / "data").mkdir()
    for split, some in (("train", rows[:51]), ("validation", rows[51:])):
        (folder / "data" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *some]) + "\n")
    for name in ("still", "drops"):
        KEPT[str(folder / name)] = find_sources(config_of(folder, name), keep=True)


def config_of(folder: Path, base: str = "still", **changes: object) -> RunConfig:
    values = {"model": str(folder / base), "dataset": str(folder / "data"), "device": "cpu", "epochs": 2}
    values |= {"precision": "fp32", "batch_size": 8, "lr": 1e-3}
    if hasattr(method_named(changes.get("method", "lora")).Settings, "dropout"):
        values["dropout"] = 0.0
    return RunConfig(**{**values, **changes})


def results_of(config: RunConfig, checkpoints: Checkpoints | None = None) -> Results:
    """What one of the processes has at the end: weights that learnt, log, scores, what is drawn next."""
    prepared = prepare(config, KEPT[config.model])
    with joined(CPU):
        training = train_prepared(prepared, checkpoints)
        evaluation = evaluate_prepared(prepared)
    weights = {n: p.detach() for n, p in prepared.model.named_parameters() if p.requires_grad}
    return {
        "weights": weights,
        "metrics": training.metrics,
        "loss": evaluation.loss,
        "predictions": evaluation.predictions,
        "probabilities": evaluation.probabilities,
        "drawn_next": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
    }


def together(folder: Path, name: str, count: int, work: Callable[[int], Results]) -> list[int]:
    """Fork so many processes, each to work by its rank and to leave what comes of it; their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            signal.alarm(100)
            _work_alone(folder / f"{name}-{rank}", rank, work)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _work_alone(path: Path, rank: int, work: Callable[[int], Results]) -> None:
    try:
        started = time.monotonic()
        try:
            found = work(rank)
        except (UserError, Interrupted, RuntimeError) as error:
            found = {"error": type(error).__name__, "said": str(error)}
        found["seconds"] = time.monotonic() - started
        if weights := found.pop("weights", None):
            save_file({n: t.contiguous().clone() for n, t in weights.items()}, f"{path}.safetensors")
        Path(f"{path}.json").write_text(json.dumps(found))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@contextmanager
def after_step(step: int, act: Callable[[], None]) -> Iterator[None]:
    """Within the block, do something once so many steps are noted."""
    noted = StepLog.add

    def add(log: StepLog, *what: object) -> None:
        noted(log, *what)
        if len(log) == step:
            act()

    StepLog.add = add
    yield


def stopped(folder: Path, kept: str, config: RunConfig, act: Callable[[], None], step: int = 4) -> Results:
    """A training in which something happens after a step, with a checkpoint after every second one."""
    with suppress(Interrupted), after_step(step, act):
        results_of(config, Checkpoints(folder / kept, {}, every=2))
    return {"processes": processes().count}


def resumed(folder: Path, kept: str, config: RunConfig) -> Results:
    _, snapshot = newest(folder / kept)
    return results_of(config, Checkpoints(folder / f"{kept}-on", {}, every=100, resumed=snapshot))


def interrupt_by(rank: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal.SIGTERM) if processes().rank == rank else None


def one_raises() -> None:
    if processes().rank == 1:
        raise UserError("this one alone")


def one_dies() -> None:
    if processes().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def in_parts(config: RunConfig) -> Results:
    """Long batches in parts unasked; with the results in how many each share of each step was."""
    parts_of, counted = Parting.parts, []

    def parts(parting: Parting, lengths: torch.Tensor) -> int:
        counted.append(parts_of(parting, lengths))
        return counted[-1]

    parts_of_a_batch.NUMBERS, Parting.parts = 24 * 16, parts  # of a part 24 tokens
    return {**results_of(config), "parts": counted}


def same_weights(folder: Path) -> None:
    for method in METHODS:
        config = config_of(folder, method=method)
        for count in (1, 2):
            together(folder, f"{method}-{count}", count, lambda _, config=config: results_of(config))
    three = config_of(folder, limit_train=3, batch_size=2, epochs=3, gradient_accumulation=2)
    plain = config_of(folder, plain=True, gradient_accumulation=3, method="prelayer")
    validated = config_of(folder, eval_every=5)
    for name, config in (("three", three), ("plain", plain), ("validated", validated)):
        for count in (1, 2):
            together(folder, f"{name}-{count}", count, lambda _, config=config: results_of(config))
    together(folder, "in_parts-2", 2, lambda _: in_parts(config_of(folder)))
    together(folder, "sharded-2", 2, lambda _: results_of(config_of(folder, method="full", shard=True)))
    parts = config_of(folder, method="full", shard=True, gradient_accumulation=3)
    together(folder, "sharded_parts-2", 2, lambda _: results_of(parts))


def interruptions(folder: Path) -> None:
    drops = config_of(folder, "drops", method="full")
    together(folder, "whole-2", 2, lambda _: results_of(drops))
    together(folder, "stopped-2", 2, lambda _: stopped(folder, "kept", drops, interrupt_by(1), step=5))
    together(folder, "resumed-2", 2, lambda _: resumed(folder, "kept", drops))
    still = config_of(folder, method="full")
    together(folder, "two-2", 2, lambda _: stopped(folder, "two", still, interrupt_by(0)))
    together(folder, "two_one-1", 1, lambda _: resumed(folder, "two", still))
    sharded = config_of(folder, method="full", shard=True)
    together(folder, "stopped_shard-2", 2, lambda _: stopped(folder, "shard", sharded, interrupt_by(0)))
    together(folder, "shard-2", 2, lambda _: resumed(folder, "shard", sharded))
    statuses = {
        "raises": together(folder, "raises-2", 2, lambda _: stopped(folder, "raise", still, one_raises, 3)),
        "dies": together(folder, "dies-2", 2, lambda _: stopped(folder, "die", still, one_dies, 3)),
    }
    (folder / "statuses.json").write_text(json.dumps(statuses))
    _, snapshot = newest(folder / "kept")
    seen = [Checkpoints(folder / "seen", {}, resumed=one) for one in (snapshot, None)]
    together(folder, "half_seen-2", 2, lambda rank: results_of(drops, seen[rank]))
    seeds = (config_of(folder), config_of(folder, lr=2e-3))
    together(folder, "unequal-2", 2, lambda rank: results_of(seeds[rank]))


def command_line(folder: Path) -> None:
    flags = ["--model", str(folder / "still"), "--dataset", str(folder / "data"), "--epochs", "1"]

    def work(rank: int) -> Results:
        with (folder / f"said-{rank}.txt").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            status = main([*flags, "--output-dir", str(folder / "run")])
            refused = main(["compare", *flags])
            sys.stdout.flush()
            sys.stderr.flush()
        return {"status": status, "refused": refused}

    together(folder, "command-2", 2, work)


def leave_all(folder: str) -> None:
    """Every scenario, one after the other."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no threads before a fork
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    out = Path(folder)
    sources(out)
    same_weights(out)
    interruptions(out)
    command_line(out)

"""Why: two processes of one thread, or one of two? What does each step send, and does arithmetic foretell it?

    OMP_NUM_THREADS=1 python benchmarks/two_processes.py --shared ../shared

LoRA (r=4, c_attn and head) and full fine-tuning, random weights in GPT-2 small's shape, SST-2 sentences,
batch 16, in the precision that `auto` picks. The sides take turns one, two, two, one over the same sentences.
In each round a third, one process of one thread, trains batches of 8: with that and the time that two
processes take to add up as many numbers as learn, a step of two processes should take t(1 thread, 8) +
t(exchange). What a checkpoint costs is measured beside it. Ends in one JSON line; a ratio is one / two.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from outcome import add_out, finish
from sides import Ours, Sentences, Work, as_examples, draw, ratio, sst2_sentences

from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.precision import resolve_precision

WARM_UP = 64  # sentences
CPU = torch.device("cpu")
BATCH = 16


class Group:
    """So many processes of so many threads each, forked, which train as one: what torchrun starts."""

    def __init__(self, work: Work, count: int, threads: int) -> None:
        self.seconds: list[float] = []
        self._pipes, self._children = [], []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(count):
            (hears, tells), (answers, answered) = os.pipe(), os.pipe()
            self._children.append(os.fork())
            if not self._children[-1]:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TQDM_DISABLE": "1"}
                torch.set_num_threads(threads)
                _serve(work, os.fdopen(hears), os.fdopen(answered, "w"))
                os._exit(0)
            self._pipes.append((os.fdopen(tells, "w"), os.fdopen(answers)))

    def ask(self, **what: object) -> float:
        """Have all of them do one thing; the seconds of the first."""
        for tells, _ in self._pipes:
            tells.write(json.dumps(what) + "\n")
            tells.flush()
        seconds = [json.loads(answers.readline()) for _, answers in self._pipes]
        return seconds[0]

    def turn(self, sentences: Sentences) -> None:
        self.seconds.append(self.ask(train=sentences))

    def end(self) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _serve(work: Work, hears: object, answers: object) -> None:
    from lora_from_scratch.train.processes import joined

    side = Ours(work)
    with joined(CPU):
        for line in hears:
            ((what, value),) = json.loads(line).items()
            acts = {"train": side.train, "exchange": _exchange, "checkpoint": partial(_checkpoint, side)}
            print(json.dumps(acts[what](value)), file=answers, flush=True)


def _exchange(numbers: int) -> float:
    """The median seconds in which the processes add up so many numbers of 4 bytes."""
    from lora_from_scratch.train.processes import processes

    tensor, times = torch.ones(numbers), []
    for _ in range(7):
        started = time.perf_counter()
        processes().summed(tensor)
        times.append(time.perf_counter() - started)
    return median(times)


def _checkpoint(side: Ours, sentences: Sentences) -> float:
    """Seconds of one checkpoint of a training, flushed to disk."""
    from lora_from_scratch.runs.execute import train_prepared
    from lora_from_scratch.train.checkpoints import Checkpoints

    prepared = replace(side.prepared, train_examples=as_examples(sentences))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        written = train_prepared(prepared, Checkpoints(Path(folder), {}, every=2)).checkpoint_seconds
    return written / (len(sentences) // BATCH // 2 - 1)  # none after the last step


def compare(model: str, method: str, sentences: Sentences, count: int, rounds: int) -> dict[str, object]:
    """Turns A B B A and C, other sentences in every round."""
    load, work = os.getloadavg()[0], Work(model, method=method)
    one, two = Group(work, 1, threads=2), Group(work, 2, threads=1)
    half = Group(replace(work, batch_size=BATCH // 2), 1, threads=1)
    generator, steps = torch.Generator().manual_seed(0), count // BATCH
    for group in (one, two, half):
        group.ask(train=draw(sentences, WARM_UP, generator))
    for _ in range(rounds):
        chosen = draw(sentences, count, generator)
        for group in (one, two, two, one):
            group.turn(chosen)
        half.turn(chosen[: count // 2])
    learning = _learning(model, method)
    exchange = two.ask(exchange=learning)
    checkpoint = one.ask(checkpoint=draw(sentences, 5 * 2 * BATCH, generator))
    for group in (one, two, half):
        group.end()
    faster, spread = ratio(one.seconds, two.seconds)
    return {
        "one_over_two": faster,
        "one_over_two_range": spread,
        "steps_per_second": {name: steps / median(g.seconds) for name, g in (("one", one), ("two", two))},
        "milliseconds_of_a_step": {
            "one": 1000 * median(one.seconds) / steps,
            "two": 1000 * median(two.seconds) / steps,
            "half": 1000 * median(half.seconds) / steps,
            "exchange": 1000 * exchange,
            "predicted_two": 1000 * (median(half.seconds) / steps + exchange),
        },
        "megabytes_sent_per_step": 4 * learning / 1e6,
        "checkpoint_seconds": checkpoint,
        "checkpoint_share_of_a_minute": checkpoint / 60,
        "sentences_per_turn": count,
        "load_average": {"before": load, "after": os.getloadavg()[0]},
    }


def _learning(model: str, method: str) -> int:
    side = Ours(Work(model, method=method))
    return sum(p.numel() for p in side.prepared.model.parameters() if p.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/ and data/sst2/")
    parser.add_argument("--rounds", type=int, default=3, help="of four turns")
    parser.add_argument("--sentences", type=int, default=320, help="in each turn")
    add_out(parser)
    flags = parser.parse_args()
    model = str(flags.shared / "gpt2")
    sentences = sst2_sentences(model, flags.shared / "data" / "sst2")
    results: dict[str, dict[str, object]] = {}
    rows = [("method", "one / two", "range", "ms a step: one, two, predicted", "MB sent", "checkpoint (s)")]
    for method in ("lora", "full"):
        results[method] = found = compare(model, method, sentences, flags.sentences, flags.rounds)
        ms = found["milliseconds_of_a_step"]
        times = f"{ms['one']:.0f}, {ms['two']:.0f}, {ms['predicted_two']:.0f}"
        spread = "{:.2f} .. {:.2f}".format(*found["one_over_two_range"])
        sent, written = f"{found['megabytes_sent_per_step']:.1f}", f"{found['checkpoint_seconds']:.2f}"
        rows.append((method, f"{found['one_over_two']:.2f}", spread, times, sent, written))
    print(markdown_table(rows))
    finish(flags.out, results, precision=resolve_precision("auto", resolve_device("auto")))


if __name__ == "__main__":
    main()

"""Why: how do time and memory grow with the rank, the length, the batch, the model and the data?

    python benchmarks/scaling.py --shared ../shared --picture scaling.png

LoRA on c_attn with the head, random weights, this project's loop and PEFT + Trainer at its best (see
`vs_peft.py`); one thing is varied at a time, around rank 4, batch 16, GPT-2 small and SST-2's sentences. At
every point both sides take turns of few sentences, each in a process of its own; Trainer groups so few less
well by length than a whole job, and ours packs its weights anew in every turn. The points follow one another,
so compare along a curve with the machine's drift in mind. Sentences of fixed length are drawn token by token.

In turns of their own: rank 64 against rank 4, predicting with a merged model against an untouched one, and
the least-squares line of our seconds against real tokens. Draws --picture if asked to; ends in one JSON line;
a point's ratio is theirs / ours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from outcome import add_out, finish
from sides import Ours, Sentences, Side, Theirs, Work, as_examples, draw, ratio, sst2_sentences
from tqdm import tqdm
from transformers import AutoConfig, GPT2ForSequenceClassification

from lora_from_scratch.base.load import load_tokenizer
from lora_from_scratch.core.surgery import inject_lora, merge_lora
from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.train.evaluate import predict_logits

TURNS, MERGED_TURNS, SENTENCES = 3, 21, 480
RANKS = (1, 4, 16, 64, 256)
LENGTHS, TOKENS = (8, 16, 32, 64, 128), 4096  # tokens a sentence, and in every turn
BATCHES = (4, 8, 16, 32, 64)
MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
COUNTS = (100, 200, 400, 800, 1600)


def measure(work: Work, turns: list[Sentences], warm_up: Sentences) -> dict[str, object]:
    """One point: both sides take turns over the same sentences."""
    ours, theirs = Side(Ours, work), Side(Theirs, work)
    for sentences in (warm_up, *turns):
        for side in (ours, theirs):
            (side.train if sentences is warm_up else side.turn)(sentences)
    ours.close(), theirs.close()
    tokens = [sum(map(len, sentences)) for sentences in turns]
    time_ratio, time_range = ratio(theirs.seconds, ours.seconds)
    return {
        "tokens": tokens,
        "ours_seconds": ours.seconds,
        "theirs_seconds": theirs.seconds,
        "ours_us_per_token": 1e6 * ratio(ours.seconds, tokens)[0],
        "theirs_us_per_token": 1e6 * ratio(theirs.seconds, tokens)[0],
        "time_ratio": time_ratio,
        "time_ratio_range": time_range,
        "ours_peak_bytes": ours.peak_bytes,
        "theirs_peak_bytes": theirs.peak_bytes,
    }


def rank_64_over_4(work: Work, turns: list[Sentences], warm_up: Sentences) -> dict[str, object]:
    """Our seconds at rank 64 over those at rank 4, in turns."""
    wide, thin = Side(Ours, replace(work, rank=64)), Side(Ours, work)
    for sentences in (warm_up, *turns):
        for side in (wide, thin):
            (side.train if sentences is warm_up else side.turn)(sentences)
    wide.close(), thin.close()
    time_ratio, time_range = ratio(wide.seconds, thin.seconds)
    return {"time_ratio": time_ratio, "time_ratio_range": time_range, "turns": len(turns)}


def seconds_over_tokens(work: Work, drawn: Draw) -> dict[str, float]:
    """The line of our seconds over real tokens: one process that has met every length, sizes in turns."""
    side = Side(Ours, work)
    side.train(drawn.one(2 * max(COUNTS)))
    tokens = []
    for count in COUNTS * TURNS:
        sentences = drawn.one(count)
        side.turn(sentences)
        tokens.append(sum(map(len, sentences)))
    side.close()
    return line(tokens, side.seconds)


def medium(small: str, folder: str) -> str:
    """A folder with GPT-2 medium's shape and GPT-2's tokenizer."""
    config = AutoConfig.from_pretrained(small)
    config.update(MEDIUM)
    config.save_pretrained(folder)
    load_tokenizer(small).save_pretrained(folder)
    return folder


def line(tokens: list[float], seconds: list[float]) -> dict[str, float]:
    """Least squares, seconds = slope * tokens + intercept, and its R2."""
    slope, intercept = numpy.polyfit(tokens, seconds, 1)
    residuals = numpy.asarray(seconds) - (slope * numpy.asarray(tokens) + intercept)
    r2 = 1 - (residuals**2).sum() / ((seconds - numpy.mean(seconds)) ** 2).sum()
    return {"us_per_token": 1e6 * slope, "intercept_seconds": intercept, "r2": float(r2)}


def merged_over_untouched(model_folder: str, sentences: Sentences) -> dict[str, object]:
    """Seconds of a merged model over those of an untouched one, each going first in every other turn."""
    models = {}
    for name in ("untouched", "merged"):
        config = AutoConfig.from_pretrained(model_folder, pad_token_id=0)
        models[name] = GPT2ForSequenceClassification(config)
    inject_lora(models["merged"], ["attn.c_attn"], rank=4, alpha=16)
    merge_lora(models["merged"])
    examples = as_examples(sentences)
    seconds = {name: [] for name in models}
    for turn in range(MERGED_TURNS + 1):
        for name in sorted(models, reverse=turn % 2 == 0):
            started = time.perf_counter()
            predict_logits(models[name], examples)
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    time_ratio, time_range = ratio(seconds["merged"], seconds["untouched"])
    return {"time_ratio": time_ratio, "time_ratio_range": time_range, "turns": MERGED_TURNS}


def picture(sweeps: dict[str, list[dict]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 6), layout="constrained")
    above, below = figure.subplots(2, len(sweeps), squeeze=False)
    for (name, rows), time_axes, memory_axes in zip(sweeps.items(), above, below, strict=True):
        places = [str(row["point"]) for row in rows]
        for side in ("ours", "theirs"):
            time_axes.plot(places, [row[f"{side}_us_per_token"] for row in rows], "o-", label=side)
            memory_axes.plot(places, [row[f"{side}_peak_bytes"] / 1e9 for row in rows], "o-", label=side)
        time_axes.set(title=name, ylim=(0, None))
        memory_axes.set(xlabel=name, ylim=(0, None))
    above[0].set_ylabel("µs a real token")
    below[0].set_ylabel("peak memory, GB")
    above[0].legend()
    figure.savefig(path, dpi=100)


class Draw:
    """Sentences for the turns of a point: SST-2's, drawn anew, or of one length, drawn token by token."""

    def __init__(self, sentences: Sentences) -> None:
        self.sentences = sentences
        self.generator = torch.Generator().manual_seed(0)

    def one(self, count: int) -> Sentences:
        return draw(self.sentences, count, self.generator)

    def turns(self, count: int = SENTENCES) -> list[Sentences]:
        return [self.one(count) for _ in range(TURNS)]

    def of_length(self, length: int) -> list[Sentences]:
        shape = (TURNS, TOKENS // length, length)
        return torch.randint(50_000, shape, generator=self.generator).tolist()


def sweep(work: Work, drawn: Draw, turns: list[Sentences], warm_up: Sentences) -> dict[str, list[dict]]:
    """Every curve, point by point. A point is what both sides train, and on which sentences."""
    with tempfile.TemporaryDirectory() as folder:
        varied = {
            "rank": {rank: (replace(work, rank=rank), turns) for rank in RANKS},
            "tokens a sentence": {length: (work, drawn.of_length(length)) for length in LENGTHS},
            "batch size": {batch: (replace(work, batch_size=batch), turns) for batch in BATCHES},
            "model": {
                "small": (work, turns),
                "medium": (replace(work, model=medium(work.model, folder)), turns),
            },
            "sentences": {count: (work, drawn.turns(count)) for count in COUNTS},
        }
        sweeps = {name: [] for name in varied}
        with tqdm(total=sum(map(len, varied.values())), unit="point") as bar:
            for name, points in varied.items():
                for point, (its_work, its_turns) in points.items():
                    sweeps[name].append({"point": point, **measure(its_work, its_turns, warm_up)})
                    bar.update()
    return sweeps


def table(sweeps: dict[str, list[dict]]) -> str:
    rows = [("varied", "value", "µs a token: ours, theirs", "ratio", "range", "peak GB: ours, theirs")]
    for name, points in sweeps.items():
        for row in points:
            low, high = row["time_ratio_range"]
            rows.append(
                (
                    name,
                    str(row["point"]),
                    f"{row['ours_us_per_token']:.0f}, {row['theirs_us_per_token']:.0f}",
                    f"{row['time_ratio']:.2f}",
                    f"{low:.2f} .. {high:.2f}",
                    f"{row['ours_peak_bytes'] / 1e9:.2f}, {row['theirs_peak_bytes'] / 1e9:.2f}",
                )
            )
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/ and data/sst2/")
    parser.add_argument("--picture", type=Path)
    add_out(parser)
    flags = parser.parse_args()
    work = Work(model=str(flags.shared / "gpt2"))
    drawn = Draw(sst2_sentences(work.model, flags.shared / "data" / "sst2"))
    warm_up, turns = drawn.one(64), drawn.turns()
    sweeps = sweep(work, drawn, turns, warm_up)
    print(table(sweeps))
    result = {
        "rank_64_over_4": rank_64_over_4(work, [turn for _ in range(3) for turn in turns], warm_up),
        "line": seconds_over_tokens(work, drawn),
        "merged_over_untouched": merged_over_untouched(work.model, turns[0]),
        "sweeps": sweeps,
    }
    if flags.picture:
        picture(sweeps, flags.picture)
    finish(flags.out, result)


if __name__ == "__main__":
    main()

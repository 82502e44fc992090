"""Why: how far is the training loop from what this machine can do, and where does the rest go?

    python benchmarks/roofline.py --shared ../shared

Counts the floating-point operations that one epoch of LoRA (r=4, c_attn and head) on GPT-2 small needs, for
real tokens alone and without what no gradient asks for. Measures this machine's rate of matrix products at
the shapes of the run, with packed weights, as the loop multiplies, and with plain ones, as `torch.matmul`
does. The floor is the operations at that rate: attention, LayerNorm, GELU, dropout, casts, optimizer and
Python cost nothing in it. Prints the share of the floor that the loop reaches, its time by phase, and by
kind of work. Ends in one JSON line; draws --picture if asked to.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from outcome import add_out, finish
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.fast.gelu import WIDTH
from lora_from_scratch.fast.packed_weights import Packed
from lora_from_scratch.report.tables import markdown_table
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.execute import train_prepared
from lora_from_scratch.runs.prepare import Prepared, prepare

BY_IDENTITY = "the product by the identity"  # at whose end fast/gelu.py has GELU computed
KINDS = {  # the profiler's names of operations, by what they are for
    "matrix products": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::addmm_"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"),
    "dropout and scaling": ("aten::random_", "aten::ge", "aten::mul", "aten::mul_", "aten::addcmul_"),
    "GELU": ("aten::gelu", "aten::gelu_backward", BY_IDENTITY),
    "LayerNorm": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "residual sums": ("aten::add", "aten::add_"),
    "packing": ("mkldnn::_reorder_linear_weight",),
    "casts and copies": ("aten::copy_", "aten::cat", "aten::_to_copy", "aten::index"),
}


def products(config: GPT2Config, rank: int) -> dict[tuple[int, int], tuple[int, int]]:
    """(in, out) of each matrix product -> how often a token, and how often a sentence, goes through it.

    Forward, and backward to the input (the weights are frozen). Of the last block, tokens need c_attn alone;
    its projection and MLP see one position a sentence. The first block's c_attn has nothing below it that
    learns, so nothing flows back through it but into LoRA.
    """
    C, L = config.n_embd, config.n_layer
    token = {(C, 3 * C): L, (C, C): L - 1, (C, 4 * C): L - 1, (4 * C, C): L - 1}
    back = {(3 * C, C): L - 1, (C, C): L - 1, (4 * C, C): L - 1, (C, 4 * C): L - 1}
    sentence = {(C, C): 2, (C, 4 * C): 2, (4 * C, C): 2}
    # LoRA: x A and h B forward; dA, dB, and back through B always, through A where something below learns.
    thin = {(C, rank): 2 * L + L - 1, (rank, 3 * C): 3 * L}
    shapes = {*token, *back, *sentence, *thin}
    return {
        shape: (token.get(shape, 0) + back.get(shape, 0) + thin.get(shape, 0), sentence.get(shape, 0))
        for shape in shapes
    }


def operations(shapes: dict[tuple[int, int], tuple[int, int]], tokens: int, sentences: int) -> dict:
    """Floating-point operations by shape: two for each weight and each row that meets it."""
    return {
        (i, o): 2 * i * o * (per_token * tokens + per_sentence * sentences)
        for (i, o), (per_token, per_sentence) in shapes.items()
    }


@torch.no_grad()
def product_rate(
    shape: tuple[int, int], rows: int, dtype: torch.dtype, packed: bool, repeats: int = 24
) -> float:
    """Operations a second of `(rows, in) @ (in, out)`, over as many weights as GPT-2 has blocks."""
    x = torch.randn(rows, shape[0]).to(dtype)
    layers = [Conv1D(shape[1], shape[0]).to(dtype).requires_grad_(False) for _ in range(12)]
    products = [
        Packed(layer, dtype) if packed else partial(torch.matmul, other=layer.weight) for layer in layers
    ]
    for multiply in products:
        multiply(x)
    started = time.perf_counter()
    for i in range(repeats):
        products[i % len(products)](x)
    return repeats * 2 * rows * shape[0] * shape[1] / (time.perf_counter() - started)


class Floor:
    """The seconds that the matrix products of a training alone would take, measured anew in every round."""

    def __init__(self, prepared: Prepared, packed: bool) -> None:
        config, rank = prepared.config, prepared.config.settings.rank
        shapes = products(prepared.model.config, rank)
        sentences, tokens = len(prepared.train_examples), int(prepared.train_examples.lengths.sum())
        self.packed = packed
        self.dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[config.precision]
        self.needed = operations(shapes, tokens, sentences)
        rows = round(tokens / sentences * config.batch_size)
        self.rows = {shape: rows if shapes[shape][0] else config.batch_size for shape in shapes}
        self.wide = [shape for shape in shapes if min(shape) > rank]
        self.rates: list[float] = []  # operations a second
        self.shares: list[float] = []  # of the floor, by round

    def measure(self) -> None:
        """The rate over the wide shapes, each as often as it is needed; the thin ones count at that rate."""
        flop = {shape: self.needed[shape] for shape in self.wide}
        seconds = sum(
            flop[shape] / product_rate(shape, self.rows[shape], self.dtype, self.packed) for shape in flop
        )
        self.rates.append(sum(flop.values()) / seconds)

    def compare(self, seconds: float) -> None:
        self.shares.append(sum(self.needed.values()) / self.rates[-1] / seconds)

    def as_dict(self) -> dict[str, object]:
        return {
            "share_of_floor": median(self.shares),
            "range": [min(self.shares), max(self.shares)],
            "gflop_per_second": median(self.rates) / 1e9,
        }


def breakdown(prepared: Prepared) -> dict[str, float]:
    """Share of the loop's time by kind of work, from PyTorch's profiler; Python is what no operation took."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        started = time.perf_counter()
        train_prepared(prepared)
        seconds = time.perf_counter() - started
    by_name: Counter[str] = Counter()
    for event in record.key_averages(group_by_input_shape=True):
        by_identity = event.key in KINDS["matrix products"] and [WIDTH, WIDTH] in event.input_shapes
        by_name[BY_IDENTITY if by_identity else event.key] += event.self_cpu_time_total / 1e6
    shares = {kind: sum(by_name.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    known = {name for names in KINDS.values() for name in names}
    of_optimizer = {name for name in by_name if "Optimizer" in name or "_fused_adamw" in name}
    shares["optimizer"] = sum(by_name[name] for name in of_optimizer)
    known |= of_optimizer
    other = sum(t for name, t in by_name.items() if name not in known and name.startswith("aten::"))
    shares["other operations"] = other
    shares["autograd, Python, waiting"] = max(0.0, seconds - sum(shares.values()))
    return {kind: taken / seconds for kind, taken in shares.items()}


def draw(shares: dict[str, float], reached: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(shares), [100 * share for share in shares.values()], color="C0")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel="% of the loop's time", title=f"{100 * reached:.0f} % of the floor of matrix products")
    figure.savefig(path, dpi=120)


def measure(prepared: Prepared, floors: dict[str, Floor], rounds: int) -> dict[str, float]:
    """Floors and loop in turns, every floor once a round; returns the loop's share of time by phase."""
    train_prepared(prepared)
    for _ in range(rounds):
        for floor in floors.values():
            floor.measure()
        training = train_prepared(prepared)
        for floor in floors.values():
            floor.compare(training.seconds)
    return {phase: seconds / training.seconds for phase, seconds in training.phases.items()}


def percentages(title: str, shares: dict[str, float]) -> str:
    return markdown_table([(title, "%"), *((name, f"{100 * share:.1f}") for name, share in shares.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/ and data/sst2/")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--sentences", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=5)
    add_out(parser)
    flags = parser.parse_args()
    data = str(flags.shared / "data" / "sst2")
    gpt2 = {"model": str(flags.shared / "gpt2"), "random_init": True}
    whole = prepare(RunConfig(**gpt2, dataset=data, epochs=1, device="cpu"))
    lengths = whole.train_examples.lengths
    shapes = products(whole.model.config, whole.config.settings.rank)
    epoch = sum(operations(shapes, int(lengths.sum()), len(lengths)).values())

    chosen = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))[: flags.sentences]
    split = whole.dataset.train.take(chosen.tolist())
    prepared = replace(whole, train_examples=tokenize(whole.tokenizer, split.sentences, split.labels, 128))
    floors = {name: Floor(prepared, packed) for name, packed in (("packed", True), ("plain", False))}
    phases = measure(prepared, floors, flags.rounds)
    shares = breakdown(prepared)

    print(f"one epoch: {epoch / 1e12:.1f} TFLOP for {int(lengths.sum()):,} real tokens")
    for name, floor in floors.items():
        low, middle, high = min(floor.shares), median(floor.shares), max(floor.shares)
        rate = median(floor.rates) / 1e9
        print(f"{name} weights: {rate:.0f} GFLOP/s; share {middle:.3f} ({low:.3f} .. {high:.3f})")
    print(percentages("phase", phases))
    print(percentages("where the time goes", shares))
    if flags.picture:
        draw(shares, median(floors["packed"].shares), flags.picture)
    result = {name: floor.as_dict() for name, floor in floors.items()}
    result |= {"epoch_flop": epoch, "phases": phases, "breakdown": shares, "threads": torch.get_num_threads()}
    finish(flags.out, result)


if __name__ == "__main__":
    main()

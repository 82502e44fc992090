"""What a training costs and how it goes: time and memory as bars, loss and dev accuracy over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_from_scratch.report import drawing, numbers
from lora_from_scratch.report.compared import Dataset, Variant, done, named
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.figures import Looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[float, float]]


def time(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """The median time of training, each seed's, and the load of the machine beside it."""
    variants = [variant for variant in dataset["variants"] if variant["seconds"]]
    if not variants:
        return None

    phases = [variant.get("phase_seconds") or {} for variant in variants]

    def draw() -> object:
        (axes,) = drawing.rows(list(map(named, variants)), [_time_text(v) for v in variants])
        drawing.stack(axes, phases, 1)
        for y, variant in enumerate(variants):
            look, median = looks[variant["method"]], variant["seconds"]["median"]
            if not phases[y]:
                axes.barh(y, median, height=0.34, color=look.colour, alpha=0.85)
            each = [run["train_seconds"] for run in done(variant)]
            axes.plot(each, [y] * len(each), "o", markersize=4, **drawing.HOLLOW)
            axes.plot(median, y, look.marker, color=look.colour, markersize=6, markeredgecolor=drawing.PAPER)
        axes.set(xlabel="seconds of training")
        axes.set_xlim(left=0)
        if any(phases):
            drawing.legend_below(axes)
        return axes.figure

    alt = "Seconds of training, median over the seeds. "
    alt += " ".join(f"{named(v)}: {_time_text(v)}{_split(v)}." for v in variants)
    caption = (
        "Marks: the median over the seeds. Hollow: each seed. Load: the machine's load average (one minute) "
        "before and after the runs; above the number of its cores, times are those of a busy machine."
    )
    return drawing.picture(name, "Time of training", caption, alt, draw)


def memory(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """Weights, gradients, moments and activations by arithmetic, stacked; the measured peak beside them, on
    an axis of its own, since a process holds much besides."""
    variants = [v for v in dataset["variants"] if v["accounted"] or v["peak_bytes"] is not None]
    if not variants:
        return None
    accounted = [variant["accounted"] or {} for variant in variants]
    kind = next((variant["memory_kind"] for variant in variants if variant["memory_kind"]), "")

    def draw() -> object:
        ratios = (3, 1.25) if any(accounted) else (1,)
        *arithmetic, measured = drawing.rows(list(map(named, variants)), _peaks(variants), ratios)
        for y, variant in enumerate(variants):
            if variant["peak_bytes"] is not None:
                look = looks[variant["method"]]
                measured.plot(variant["peak_bytes"] / 1e9, y, look.marker, color=look.colour, markersize=6)
        measured.set(xlabel="GB, peak")
        measured.set_xlim(left=0, right=1.15 * max([v["peak_bytes"] or 0 for v in variants] + [1e6]) / 1e9)
        for axes in arithmetic:
            _bars(axes, accounted)
        return measured.figure

    alt = "Memory. " + " ".join(_memory_alt(variant, kind) for variant in variants)
    peak = "peak of what PyTorch allocated on the GPU" if kind == "cuda" else "peak of the process"
    caption = f"Marks: the measured {peak}."
    if any(accounted):
        caption = f"Bars: by arithmetic. Marks, on an axis of their own: the measured {peak}."
    title = "Memory, accounted for" if any(accounted) else "Memory"
    return drawing.picture(name, title, caption, alt, draw)


def _bars(axes: Axes, accounted: Sequence[dict[str, float]]) -> None:
    lengths = drawing.stack(axes, accounted, 1e6)
    for y, total in enumerate(lengths):
        if accounted[y]:
            axes.annotate(f" {total:,.1f}", (total, y), va="center", fontsize=8, annotation_clip=False)
    axes.set(xlabel="MB by arithmetic", xlim=(0, 1.18 * max(lengths)))
    drawing.legend_below(axes)


def losses(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """The training loss over the steps, a mean over the seeds."""
    caption = "Means over the seeds; each point is the mean of the steps since the one before."
    return _over_steps(dataset, looks, name, "losses", 1, "Training loss", "loss (nats)", caption)


def validation(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """The accuracy on the validation sentences over the steps (`--eval-every`)."""
    caption = "Means over the seeds, measured while training; nothing was chosen by it."
    title = "Accuracy while training"
    return _over_steps(dataset, looks, name, "validation", 2, title, "accuracy (%)", caption)


def curve(variant: Variant, key: str, column: int) -> Curve:
    """(step, mean over the finished runs), which have the same steps; those without a number are left out."""
    each = [run[key] for run in done(variant) if run[key]]
    values = ((rows[0][0], [row[column] for row in rows]) for rows in zip(*each, strict=False))
    return [(step, sum(of) / len(of)) for step, of in values if None not in of]


def _over_steps(
    dataset: Dataset, looks: Looks, name: str, key: str, column: int, title: str, what: str, caption: str
) -> Picture | None:
    curves = [(variant, curve(variant, key, column)) for variant in dataset["variants"]]
    curves = [(variant, points) for variant, points in curves if points]
    if not curves:
        return None

    def draw() -> object:
        from matplotlib.ticker import MaxNLocator

        figure = drawing.figure(2.6)
        axes = figure.subplots()
        axes.set(xlabel="step", ylabel=what)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        methods: list[str] = []
        for variant, points in curves:
            look, nth = looks[variant["method"]], methods.count(variant["method"])
            methods.append(variant["method"])
            every = max(1, len(points) // 6)
            marks = {"marker": look.marker, "markevery": (len(methods) % every, every), "markersize": 4}
            dashes = drawing.DASHES[nth % 4]
            line = {"color": look.colour, "linewidth": 1.2 + nth // 4, "linestyle": dashes}
            axes.plot(*zip(*points, strict=True), label=numbers.short(named(variant)), **line, **marks)
        drawing.legend_below(axes)
        return figure

    alt = f"{title} over the steps. " + " ".join(
        f"{named(v)}: from {p[0][1]:.2f} at step {p[0][0]:,} to {p[-1][1]:.2f} at step {p[-1][0]:,}."
        for v, p in curves
    )
    return drawing.picture(name, f"{title} over the steps", caption, alt, draw)


def _time_text(variant: Variant) -> str:
    load = numbers.loads(done(variant))
    return numbers.seconds(variant["seconds"]["median"]) + (f", load {load}" if load else "")


def _split(variant: Variant) -> str:
    phases = (variant.get("phase_seconds") or {}).items()
    return "".join(f", {phase} {numbers.seconds(value)}" for phase, value in phases)


def _peaks(variants: Sequence[Variant]) -> list[str]:
    return [numbers.size(v["peak_bytes"]) if v["peak_bytes"] is not None else "" for v in variants]


def _memory_alt(variant: Variant, kind: str) -> str:
    held, peak = variant["accounted"], variant["peak_bytes"]
    parts = ", ".join(f"{part} {numbers.size(value)}" for part, value in (held or {}).items())
    measured = f"measured {kind} peak {numbers.size(peak)}" if peak is not None else "peak not measured"
    return f"{named(variant)}: {parts or 'not accounted for'}; {measured}."

"""The curve of a tuning (`rates.json`): the loss on held-out sentences over the learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_from_scratch.report import drawing, numbers, palette
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.palette import INK, MUTED, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Variant = dict[str, object]
HEIGHT = (
    3.0  # of the axis of losses, in spans between the best mean and the third best: a diverged run is above
)


def rates_picture(rates: dict[str, object]) -> Picture | None:
    """Panels from the top down, one a variant: each run a point, the means, the parabola in the logarithm of
    the rate, the chosen rate; None without matplotlib."""
    variants = [variant for variant in rates["variants"] if _finite(variant)]
    if not variants or not drawing.available():
        return None
    looks = palette.looks({"datasets": [rates]})

    def drawn() -> object:
        figure = drawing.figure(0.4 + 2.1 * len(variants))
        panels = figure.subplots(len(variants), 1, sharex=True, squeeze=False)[:, 0]
        for axes, variant in zip(panels, variants, strict=True):
            _panel(axes, variant, looks[variant["method"]])
        drawing.rate_axis(panels[-1], [p["lr"] for variant in variants for p in variant["points"]])
        panels[-1].set(xlabel="learning rate")
        figure.supylabel("loss on held-out sentences (nats)", fontsize=8.5, color=MUTED)
        return figure

    held_out = rates["held_out"]
    alt = f"Loss on {held_out['sentences']:,} held-out sentences over the learning rate. "
    alt += " ".join(map(_told, variants))
    caption = (
        f"{rates['dataset']}, {held_out['sentences']:,} sentences held out of train. Hollow: each run. Line: "
        "the means. Dashed: the parabola in the logarithm of the rate. Vertical: the rate that was chosen. "
        f"Crosses at the top: runs that failed. {rates['budget']}."
    )
    return drawing.picture("rates", "Learning rates", caption, alt, drawn)


def draw(rates: dict[str, object]) -> bytes | None:
    """The same as a PNG."""
    picture = rates_picture(rates)
    return picture and picture.png


def parabola(variant: Variant) -> list[tuple[float, float]]:
    """(rate, loss) along the parabola of the record, half a decade to either side of the vertex.

    loss = bottom + curvature / 2 (log10 rate - log10 vertex)^2
    """
    shape = variant["parabola"]
    if not shape:
        return []
    decades = [i / 20 - 0.5 for i in range(21)]
    return [(shape["vertex"] * 10**d, shape["loss"] + shape["curvature"] / 2 * d**2) for d in decades]


def _panel(axes: Axes, variant: Variant, look: Look) -> None:
    finite = _finite(variant)
    low, high = min(loss for _, loss in finite), max(loss for _, loss in finite)
    means = sorted(p["mean_loss"] for p in variant["points"] if _is_number(p["mean_loss"]))
    if len(means) > 2:
        high = min(high, low + HEIGHT * (means[2] - means[0]) + 0.02)
    margin = 0.08 * (high - low) or 0.01
    axes.set(xscale="log", ylim=(low - margin, high + margin))
    if variant["chosen"]:
        axes.axvline(variant["chosen"], color=INK, linewidth=0.8)
    lrs = [p["lr"] for p in variant["points"] if _is_number(p["mean_loss"])]
    line = [p["mean_loss"] for p in variant["points"] if _is_number(p["mean_loss"])]
    axes.plot(lrs, line, look.marker, linestyle="-", color=look.colour, linewidth=1.2, markersize=6)
    axes.plot(*zip(*finite, strict=True), "o", markersize=4, linestyle="none", **drawing.HOLLOW)
    along = parabola(variant)
    if along:
        axes.plot(*zip(*along, strict=True), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for point in variant["points"]:
        if any(not _is_number(run["loss"]) for run in point["runs"]):
            axes.plot(point["lr"], high + margin, "x", color=INK, markersize=6, clip_on=False)
    title = f"{numbers.short(variant['label'], 40)}: {_choice(variant)}"
    axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold")


def _finite(variant: Variant) -> list[tuple[float, float]]:
    """(rate, loss) of every run that has a loss."""
    runs = [(point["lr"], run["loss"]) for point in variant["points"] for run in point["runs"]]
    return [(lr, loss) for lr, loss in runs if _is_number(loss)]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _choice(variant: Variant) -> str:
    return f"{numbers.rate(variant['chosen'])} chosen" if variant["chosen"] else "no rate chosen yet"


def _told(variant: Variant) -> str:
    each = ", ".join(
        f"{point['mean_loss']:.4f} at {numbers.rate(point['lr'])}"
        if _is_number(point["mean_loss"])
        else f"failed at {numbers.rate(point['lr'])}"
        for point in variant["points"]
    )
    vertex = variant["parabola"] and variant["parabola"]["vertex"]
    lowest = f"; the parabola is lowest at {numbers.rate(vertex)}" if vertex else ""
    return f"{variant['label']}: mean losses {each}; {_choice(variant)}{lowest}."

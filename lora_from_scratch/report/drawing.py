"""From a matplotlib figure to a picture: an SVG whose colours follow the page into the dark, and a PNG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_from_scratch.report import numbers, palette
from lora_from_scratch.report.numbers import short
from lora_from_scratch.report.palette import GROUND, INK, LINE, MUTED, PARTS, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = GROUND["light"]
WIDTH = 3.9  # inches; narrow, so that the letters are still letters on a phone
ROW = 0.46  # inches
LETTER = 5.6  # points, of a bold label; of a value a little less
CLEAR = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # behind letters, so that no line crosses them
HOLLOW = {"markerfacecolor": PAPER, "markeredgecolor": INK, "markeredgewidth": 0.8}
HATCHES = ("", "////", "||||", "")
DASHES = [(0, ()), (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2))]
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "svg.fonttype": "none",  # letters, not their outlines: small, and in the page's font
    "text.color": INK,
    "text.parse_math": False,  # a label may hold a $
    "xtick.color": MUTED,
    "xtick.labelsize": 8,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": MUTED,
    "ytick.labelsize": 8,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


@dataclass(frozen=True)
class Picture:
    """A drawing, what it is called, how it is read, and what it shows in words and numbers."""

    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


def available() -> bool:
    """Is matplotlib there?"""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def style(name: str) -> Iterator[None]:
    """matplotlib as these pictures need it, whatever the user has set; `name` tells the ids of two pictures
    on one page apart, and makes those of equal pictures equal."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page's fonts may have it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
        yield


def remove_earlier(folder: Path, known: Iterable[str], written: Container[str]) -> None:
    """Delete the PNGs that an earlier page left there and this one has not written: they show other runs."""
    names = {*known}
    for path in folder.glob("*.png"):
        if re.sub(r"-\d+$", "", path.stem) in names and path.name not in written:
            path.unlink()


def picture(name: str, title: str, caption: str, alt: str, draw: Callable[[], Figure]) -> Picture:
    """Draw, and write as SVG and as PNG."""
    with style(name):
        figure = draw()
        return Picture(title, caption, alt, _svg(figure), _png(figure))


def figure(height: float) -> Figure:
    """An empty one of the common width; `height` in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def rows(labels: Sequence[str], values: Sequence[str], ratios: Sequence[float] = (1,)) -> list[Axes]:
    """Axes side by side that share rows, from the top down at y = 0, 1, ...: above each mark its label, at
    the left of the first axes, and its value, at the right of the last."""
    room = [int((72 * WIDTH - 16) / LETTER - 0.88 * len(value)) for value in values]
    above = any(len(label) > most for label, most in zip(labels, room, strict=True))
    drawn = figure(0.62 + ROW * (1.4 if above else 1) * len(labels))
    axes = drawn.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0]
    for each in axes:
        each.grid(axis="y", visible=False)
    axes[0].set(ylim=(len(labels) - 0.6, -0.85 if above else -0.75), yticks=[])
    for y, (label, value) in enumerate(zip(labels, values, strict=True)):
        _letters(axes[0], 0, y - (0.47 if above else 0.29), short(label, 46), ha="left", fontweight="bold")
        _letters(axes[-1], 1, y - (0.2 if above else 0.29), value, ha="right")
    return list(axes)


def stack(axes: Axes, rows: Sequence[dict[str, float]], unit: float) -> list[float]:
    """Bars made of parts, each part with its tone and its hatch; the length of each bar, in the unit."""
    lefts = [0.0] * len(rows)
    for number, part in enumerate(dict.fromkeys(part for row in rows for part in row)):
        widths = [row.get(part, 0) / unit for row in rows]
        fill = {"color": PARTS[number % 4], "hatch": HATCHES[number % 4], "edgecolor": PAPER}
        axes.barh(range(len(rows)), widths, left=lefts, height=0.34, label=part, **fill)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    return lefts


def window(values: Sequence[float], *within: float) -> tuple[float, float]:
    """An axis that holds the values and a little more, but not more than lies within the bounds given."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    return (max(low, within[0]), min(high, within[1])) if within else (low, high)


def off_scale(axes: Axes, value: float, y: float, look: Look) -> bool:
    """Where a value lies beyond the axis, its mark at that end and an arrow say so."""
    low, high = axes.get_xlim()
    if low <= value <= high:
        return False
    end, arrow, side = (low, "\u2190", "left") if value < low else (high, "\u2192", "right")
    axes.plot(end, y, look.marker, color=look.colour, markersize=7, clip_on=False)
    shift = (8 if side == "left" else -8, 0)
    axes.annotate(arrow, (end, y), shift, textcoords="offset points", ha=side, va="center")
    return True


def legend_below(axes: Axes) -> None:
    """The legend, under the axes, where no point can lie; the figure grows by as much."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, int(72 * WIDTH / (28 + 5 * max(map(len, labels))))))
    lines = -(-len(labels) // columns)
    figure = axes.figure
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)
    even = -(-len(labels) // lines)
    figure.legend(handles, labels, loc="outside lower left", ncols=even, columnspacing=1.2)


def rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    """The horizontal axis of learning rates, with round numbers below it."""
    low, high = min(rates) / 1.3, max(rates) * 1.3
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 7:
            break
    axes.set(xscale="log", xlim=(low, high), xlabel="learning rate")
    axes.set_xticks(ticks, [numbers.rate(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _letters(axes: Axes, x: float, y: float, text: str, **how: str) -> None:
    place = axes.get_yaxis_transform()
    axes.text(
        x, y, text, transform=place, va="bottom", fontsize=8, bbox=CLEAR, zorder=3, **how
    ).set_in_layout(False)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    for name, colour in palette.variables("light").items():
        text = text.replace(colour, f"var(--{name})")
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()

"""Pictures of what was learned, as curves: cosines, truncation, overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_from_scratch.lens.measures import overlap_by_chance
from lora_from_scratch.report import drawing, numbers
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.lens_view import Adapter, Lens, figure, intruders, kind, share
from lora_from_scratch.report.palette import ACCENT, INK, MUTED, PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 64  # singular vectors in one picture


def cosines(lens: Lens, name: str) -> Picture | None:
    """For each tuned singular vector its largest |cosine| with one of W0's, a panel an adapter."""
    adapters, epsilon = lens["adapters"], lens["epsilon"]

    def draw() -> object:
        panels = _panels(len(adapters), 1.55)
        for axes, adapter in zip(panels, adapters, strict=True):
            curves = [layer["cosines"][:COLUMNS] for layer in adapter["layers"]]
            _layers_and_mean(axes, curves)
            axes.axhline(epsilon, color=INK, linewidth=0.8, linestyle=drawing.DASHES[1])
            axes.set(ylim=(0, 1.04))
            _title(axes, f"{numbers.short(adapter['label'], 30)}: {intruders(lens, adapter)} are intruders")
        panels[-1].set(xlabel="singular vector of W0 + ΔW, the strongest first")
        return panels[0].figure

    alt = "Largest absolute cosine of each tuned singular vector with one of W0's. " + " ".join(
        f"{one['label']} ({kind(one)}): {intruders(lens, one)} of the first {lens['top']} of each layer are "
        f"below {epsilon:g}; the lowest of these is {figure(_lowest(one, lens['top']))}."
        for one in adapters
    )
    caption = (
        f"Thin: each layer. Thick: their mean. Dashed: {epsilon:g}; a vector below it is called an intruder, "
        f"a direction that W0 did not have. Counted are the first {lens['top']} of each layer."
    )
    return drawing.picture(name, "Tuned directions that W0 had", caption, alt, draw)


def truncation(lens: Lens, name: str) -> Picture | None:
    """Accuracy, loss and energy over the directions that are kept."""
    if not lens["measured"]:
        return None
    points = lens["measured"]["kept"]
    panels_of = (("accuracy", "accuracy (%)"), ("loss", "loss (nats)"), ("energy", "energy kept"))

    def draw() -> object:
        panels = _panels(3, 1.2)
        for axes, (key, title) in zip(panels, panels_of, strict=True):
            axes.plot(range(len(points)), [point[key] for point in points], "o-", color=ACCENT, markersize=4)
            axes.set(ylabel=title)
        panels[0].set_ylim(drawing.window([point["accuracy"] for point in points], 0, 100))
        panels[-1].set(xlabel="directions kept of each layer", ylim=(-0.04, 1.04))
        panels[-1].set_xticks(range(len(points)), [f"{point['directions']}" for point in points])
        return panels[0].figure

    alt = "Accuracy, loss and energy with the first directions alone. " + " ".join(
        f"{point['directions']} kept: {numbers.percent(point['accuracy'])} %, loss {point['loss']:.4f}, "
        f"energy {share(point['energy'])}."
        for point in points
    )
    caption = (
        "Of every layer's update the first k directions are kept, of the rest of the model everything. "
        f"Energy: the share of the squared norm. On {lens['measured']['sentences']:,} sentences."
    )
    return drawing.picture(name, "What the first directions are worth", caption, alt, draw)


def overlap(lens: Lens, name: str) -> Picture | None:
    """phi(k, k) over k, a panel for each adapter beside: the updates, A, and chance."""
    found = [(one["label"], _curves(one)) for one in lens["overlaps"]]
    found = [(label, curves) for label, curves in found if curves[0]]
    if not found:
        return None

    def draw() -> object:
        panels = _panels(len(found), 1.55)
        for axes, (label, (of_update, of_A, chance)) in zip(panels, found, strict=True):
            _layers_and_mean(axes, of_update, "o")
            if of_A:
                axes.plot(*_mean(of_A), "s:", color=PARTS[1], markersize=4, linewidth=1.2)
            axes.plot(*_mean([chance]), color=INK, linewidth=0.8, linestyle=drawing.DASHES[1])
            axes.set(ylim=(-0.03, 1.04))
            axes.xaxis.get_major_locator().set_params(integer=True)
            _title(axes, f"with {numbers.short(label, 40)}")
        panels[-1].set(xlabel="first directions of each, k")
        return panels[0].figure

    alt = f"Overlap phi(k, k) of {lens['adapters'][0]['label']} with others. " + " ".join(
        f"{label}: {', '.join(f'{y:.3f} at k = {x}' for x, y in zip(*_mean(of_update), strict=True))}; by "
        f"chance {chance[0]:.3f} at k = 1 and {chance[-1]:.3f} at k = {len(chance)}."
        for label, (of_update, _, chance) in found
    )
    caption = (
        "1: the first k directions that one update reads span what the other's do; 0: nothing in common. "
        "Thin: each layer. Thick, circles: their mean. Dotted, squares: of the matrices A themselves. "
        "Dashed: by chance (Hu et al. 2021, section 7.2)."
    )
    return drawing.picture(name, "Subspaces in common", caption, alt, draw)


def _lowest(adapter: Adapter, top: int) -> float:
    return min(min(layer["cosines"][:top]) for layer in adapter["layers"])


def _panels(count: int, height: float) -> list[Axes]:
    """Axes from the top down, with one horizontal axis."""
    figure = drawing.figure(0.4 + height * count)
    return list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=8.5, fontweight="bold")


def _layers_and_mean(axes: Axes, curves: Sequence[Sequence[float]], marker: str = "") -> None:
    for curve in curves:
        axes.plot(range(1, len(curve) + 1), curve, color=MUTED, linewidth=0.6, alpha=0.7)
    axes.plot(*_mean(curves), marker=marker, color=ACCENT, markersize=4, linewidth=1.8)


def _mean(curves: Sequence[Sequence[float]]) -> tuple[list[int], list[float]]:
    """Over the curves that reach so far, at 1, 2, ..."""
    longest = max(map(len, curves))
    reaching = [[curve[i] for curve in curves if i < len(curve)] for i in range(longest)]
    return list(range(1, longest + 1)), [sum(values) / len(values) for values in reaching]


def _curves(overlap: Lens) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """phi(k, k) of the updates and of A, a curve a layer, and by chance."""
    layers = [one for one in overlap["layers"] if one["of_update"] and one["of_update"][0]]
    of_update = [_diagonal(one["of_update"]) for one in layers]
    of_A = [_diagonal(one["of_A"]) for one in layers if one["of_A"]]
    longest, count = max(map(len, of_update), default=0), len(layers)
    chance = [
        sum(overlap_by_chance(k, k, one["width"]) for one in layers) / count for k in range(1, longest + 1)
    ]
    return of_update, of_A, chance


def _diagonal(phi: Sequence[Sequence[float]]) -> list[float]:
    return [row[i] for i, row in enumerate(phi) if i < len(row)]

"""The five pictures of what was learned: spectrum, amplification, cosines, truncation, overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_from_scratch.lens.measures import overlap_by_chance
from lora_from_scratch.report import drawing, numbers
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.lens_view import Adapter, Layer, Lens, figure, intruders, kind, share
from lora_from_scratch.report.palette import ACCENT, INK, MUTED, PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 24  # layers in one picture; of more those with the largest updates
COLUMNS = 64  # singular vectors in one
BARS = (("by_update", "ΔW", PARTS[0]), ("by_base", "W0 itself", PARTS[1]), ("by_chance", "chance", PARTS[2]))
KEYS = [key for key, _, _ in BARS]


def spectrum(lens: Lens, name: str) -> Picture | None:
    """A row a layer: its singular values, and how many directions that is in effect."""
    adapter = lens["adapters"][0]
    layers, note = _shown(adapter)

    def draw() -> object:
        values = [f"effective rank {_effective(layer)}" for layer in layers]
        (axes,) = drawing.rows([layer["layer"] for layer in layers], values)
        axes.set(xlabel="singular values of ΔW")
        for y, layer in enumerate(layers):
            found = layer["singular_values"]
            axes.plot([0, found[0]], [y, y], color=MUTED, linewidth=0.6)
            axes.plot(found, [y] * len(found), "|", color=ACCENT, markersize=11, markeredgewidth=1.6)
        axes.set_xlim(left=0)
        return axes.figure

    alt = f"Singular values of the update of {adapter['label']}. " + " ".join(
        f"{layer['layer']}: the largest {figure(layer['singular_values'][0])}, the last "
        f"{figure(layer['singular_values'][-1])}, effective rank {_effective(layer)}."
        for layer in layers
    )
    caption = (
        "Each stroke is a direction: how much it stretches what it reads. The effective rank is the number "
        f"of equally large ones with the same entropy (Roy & Vetterli 2007).{note}"
    )
    return drawing.picture(name, "The spectrum of ΔW, layer by layer", caption, alt, draw)


def amplification(lens: Lens, name: str) -> Picture | None:
    """The paper's table 7: W0 seen along the directions of the update, along its own, and by chance."""
    adapter = lens["adapters"][0]
    layers, note = _shown(adapter, lambda layer: layer["amplification"]["factor"])
    if not layers:
        return None

    def draw() -> object:
        factors = [f"{figure(layer['amplification']['factor'])} times" for layer in layers]
        (axes,) = drawing.rows([layer["layer"] for layer in layers], factors)
        lowest = min(layer["amplification"][key] for layer in layers for key in KEYS) / 2
        axes.set(xscale="log", xlabel="norm of UᵀW0Vᵀ")
        for number, (key, label, colour) in enumerate(BARS):
            lengths = [layer["amplification"][key] - lowest for layer in layers]
            at = [y + 0.15 * (number - 0.8) for y in range(len(layers))]
            look = {"color": colour, "hatch": drawing.HATCHES[number], "edgecolor": drawing.PAPER}
            axes.barh(at, lengths, left=lowest, height=0.13, label=label, **look)
        axes.set_xlim(left=lowest)
        _round_ticks(axes)
        drawing.legend_below(axes)
        return axes.figure

    alt = "W0 along directions, as norms. " + " ".join(
        "{}: along those of the update {}, along its own {}, by chance {}; amplified {} times.".format(
            layer["layer"], *(figure(layer["amplification"][key]) for key in (*KEYS, "factor"))
        )
        for layer in layers
    )
    many = numbers.count(layers[0]["amplification"]["directions"], "direction")
    caption = (
        f"The norm of W0 along {many}: those of ΔW, W0's own strongest, and random ones. On the right: the "
        "norm of ΔW over the first of the three. The axis is logarithmic, so lengths of bars are not to be "
        f"compared (Hu et al. 2021, table 7).{note}"
    )
    return drawing.picture(name, "What of W0 is amplified", caption, alt, draw)


def cosines(lens: Lens, name: str) -> Picture | None:
    """For each tuned singular vector its largest |cosine| with one of W0's, a panel an adapter."""
    adapters, epsilon = lens["adapters"], lens["epsilon"]

    def draw() -> object:
        panels = _panels(len(adapters), 1.55)
        for axes, adapter in zip(panels, adapters, strict=True):
            curves = [layer["cosines"][:COLUMNS] for layer in adapter["layers"]]
            _layers_and_mean(axes, curves, 1)
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
            _layers_and_mean(axes, of_update, 1, "o")
            if of_A:
                axes.plot(*_mean(of_A, 1), "s:", color=PARTS[1], markersize=4, linewidth=1.2)
            axes.plot(*_mean([chance], 1), color=INK, linewidth=0.8, linestyle=drawing.DASHES[1])
            axes.set(ylim=(-0.03, 1.04))
            axes.xaxis.get_major_locator().set_params(integer=True)
            _title(axes, f"with {numbers.short(label, 40)}")
        panels[-1].set(xlabel="first directions of each, k")
        return panels[0].figure

    alt = f"Overlap phi(k, k) of {lens['adapters'][0]['label']} with others. " + " ".join(
        f"{label}: {', '.join(f'{y:.3f} at k = {x}' for x, y in zip(*_mean(of_update, 1), strict=True))}; by "
        f"chance {chance[0]:.3f} at k = 1 and {chance[-1]:.3f} at k = {len(chance)}."
        for label, (of_update, _, chance) in found
    )
    caption = (
        "1: the first k directions that one update reads span what the other's do; 0: nothing in common. "
        "Thin: each layer. Thick, circles: their mean. Dotted, squares: of the matrices A themselves. "
        "Dashed: by chance (Hu et al. 2021, section 7.2)."
    )
    return drawing.picture(name, "Subspaces in common", caption, alt, draw)


PICTURES = {
    "spectrum": spectrum,
    "truncation": truncation,
    "amplification": amplification,
    "cosines": cosines,
    "overlap": overlap,
}


def _shown(adapter: Adapter, key: Callable[[Layer], object] = bool) -> tuple[list[Layer], str]:
    """The layers that a picture of rows has room for, in the model's order, and what a caption says of it."""
    layers = [layer for layer in adapter["layers"] if key(layer)]
    if len(layers) <= ROWS:
        return layers, ""
    largest = sorted(layers, key=lambda layer: layer["norm"], reverse=True)[:ROWS]
    note = f" Shown are the {ROWS} layers with the largest updates; all are in the table."
    return [layer for layer in layers if layer in largest], note


def _effective(layer: Layer) -> str:
    return f"{layer['effective_rank']:.1f} of {len(layer['singular_values'])}"


def _lowest(adapter: Adapter, top: int) -> float:
    return min(min(layer["cosines"][:top]) for layer in adapter["layers"])


def _panels(count: int, height: float) -> list[Axes]:
    """Axes from the top down, with one horizontal axis."""
    figure = drawing.figure(0.4 + height * count)
    return list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _round_ticks(axes: Axes) -> None:
    """Round numbers below a logarithmic axis: powers of ten, and of a short one 2 and 5 times these too."""
    low, high = axes.get_xlim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) > 1:
            break
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=8.5, fontweight="bold")


def _layers_and_mean(axes: Axes, curves: Sequence[Sequence[float]], start: int, marker: str = "") -> None:
    for curve in curves:
        axes.plot(range(start, start + len(curve)), curve, color=MUTED, linewidth=0.6, alpha=0.7)
    axes.plot(*_mean(curves, start), marker=marker, color=ACCENT, markersize=4, linewidth=1.8)


def _mean(curves: Sequence[Sequence[float]], start: int) -> tuple[list[int], list[float]]:
    """Over the curves that reach so far, at start, start + 1, ..."""
    longest = max(map(len, curves))
    reaching = [[curve[i] for curve in curves if i < len(curve)] for i in range(longest)]
    return list(range(start, start + longest)), [sum(values) / len(values) for values in reaching]


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

"""Pictures of what was learned, a row a layer: its spectrum, and what of W0 is amplified."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_from_scratch.report import drawing, numbers
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.lens_view import Adapter, Layer, Lens, figure
from lora_from_scratch.report.palette import ACCENT, MUTED, PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 24  # layers in one picture; of more those with the largest updates
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
        axes.set(xscale="log", xlabel="norm of UᵀW0V")
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


def _round_ticks(axes: Axes) -> None:
    """Round numbers below a logarithmic axis: powers of ten, and of a short one 2 and 5 times these too."""
    low, high = axes.get_xlim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 1:
            break
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)

"""What the page of the lens says, as text: its template only sets it. And what the terminal says."""

from __future__ import annotations

from collections.abc import Sequence

from lora_from_scratch.lens.measures import overlap_by_chance
from lora_from_scratch.report import numbers
from lora_from_scratch.report.numbers import NOTHING
from lora_from_scratch.report.tables import markdown_table

Lens = dict[str, object]
Adapter = dict[str, object]
Layer = dict[str, object]
Rows = list[tuple[str, ...]]

LAYERS = ("layer", "norm of ΔW", "of W0's", "rank", "effective rank", "first direction", "q, k, v")
LAYERS += ("inside W0's first", "amplified", "intruders")
KEPT = ("directions kept", "energy", "accuracy (%)", "loss (nats)")
BESIDE = ("adapter", "what it is", "norm of ΔW, of W0's", "effective rank", "intruders")
OVERLAPS = ("layer", "first with first", "first with all", "all with all", "all of A with all of A")


def figure(value: float | None, digits: int = 3) -> str:
    """With so many digits."""
    return NOTHING if value is None else f"{value:.{digits}g}".replace("-", numbers.MINUS)


def share(value: float | None) -> str:
    """Of 1, in percent."""
    if value is None:
        return NOTHING
    return "< 0.01 %" if 0 < value < 5e-5 else f"{100 * value:.{1 if value >= 0.001 or not value else 2}f} %"


def ratio(norms: Sequence[float], of: Sequence[float]) -> float | None:
    """Of the norms of many matrices side by side; None where the others are all zero."""
    whole = sum(x * x for x in of)
    return (sum(x * x for x in norms) / whole) ** 0.5 if whole else None


def first_direction(layer: Layer) -> float | None:
    """The share of the squared norm in the first direction."""
    return (layer["singular_values"][0] / layer["norm"]) ** 2 if layer["norm"] else None


def change(adapter: Adapter) -> float | None:
    """The norm of all updates over that of all W0."""
    layers = adapter["layers"]
    return ratio([one["norm"] for one in layers], [one["base_norm"] for one in layers])


def mean_effective_rank(adapter: Adapter) -> float:
    return sum(layer["effective_rank"] for layer in adapter["layers"]) / len(adapter["layers"])


def intruders(lens: Lens, adapter: Adapter) -> str:
    """Of the first singular vectors of every layer, how many are intruders."""
    layers = adapter["layers"]
    looked_at = sum(min(lens["top"], len(layer["cosines"])) for layer in layers)
    return f"{sum(layer['intruders'] for layer in layers)} of {looked_at}"


def kind(adapter: Adapter) -> str:
    """The method, and of LoRA its rank; beside it what was asked for, where that is another."""
    method = adapter["method"] or ("LoRA" if adapter["low_rank"] else "a whole model")
    asked = f" (--rank {adapter['asked_rank']})" if adapter.get("asked_rank") else ""
    return f"{method}, rank {adapter['directions']}{asked}" if adapter["low_rank"] else method


def headline(lens: Lens) -> str:
    """How large the update is, how many directions it has, and what the first of them is worth."""
    adapter, measured = lens["adapters"][0], lens["measured"]
    told = f"The update has {share(change(adapter))} of the norm of W0. "
    told += f"Its effective rank is {mean_effective_rank(adapter):.1f} of {adapter['directions']}"
    if not measured or adapter["directions"] < 2:
        return f"{told}, and its first direction holds {share(adapter['energy'][1])} of its energy."
    first, last = measured["kept"][1], measured["kept"][-1]
    accuracies = (numbers.percent(point["accuracy"]) for point in (first, last))
    return told + "; with the first direction alone accuracy is {} %, with all {} %.".format(*accuracies)


def layer_rows(adapter: Adapter) -> Rows:
    """Under the titles `LAYERS`."""
    return [
        (
            one["layer"],
            figure(one["norm"]),
            share(ratio([one["norm"]], [one["base_norm"]])),
            f"{one['rank']}",
            f"{one['effective_rank']:.2f}",
            share(first_direction(one)),
            _parts(one),
            _inside(one["amplification"]),
            _times(one["amplification"]["factor"]),
            f"{one['intruders']}",
        )
        for one in adapter["layers"]
    ]


def _parts(layer: Layer) -> str:
    if not layer["parts"]:
        return NOTHING
    return ", ".join(f"{name} {share(part['share'])}" for name, part in layer["parts"].items())


def _inside(along: dict[str, float]) -> str:
    return f"{share(along['inside'])} (by chance {share(along['inside_by_chance'])})"


def _times(factor: float | None) -> str:
    return NOTHING if factor is None else f"{figure(factor)} times"


def kept_rows(measured: Lens) -> Rows:
    """Under the titles `KEPT`."""
    return [
        (f"{one['directions']}", share(one["energy"]), *_reached(one, measured["kept"][-1]))
        for one in measured["kept"]
    ]


def scaled_rows(measured: Lens) -> Rows:
    """The scale, accuracy, loss."""
    return [(f"{one['scale']:g}", *_reached(one, measured["kept"][-1])) for one in measured["scaled"]]


def left_out_rows(measured: Lens) -> Rows:
    """The layer, accuracy, loss."""
    return [(one["layer"], *_reached(one, measured["kept"][-1])) for one in measured["left_out"]]


def _reached(point: dict[str, float], whole: dict[str, float]) -> tuple[str, str]:
    """Accuracy with its difference to the whole update's, and the loss."""
    below = point["accuracy"] - whole["accuracy"]
    against = f" ({numbers.points(below)})" if point is not whole and below else ""
    return f"{numbers.percent(point['accuracy'])}{against}", f"{point['loss']:.4f}"


def beside_rows(lens: Lens) -> Rows:
    """Each adapter under the titles `BESIDE`."""
    return [
        (
            one["label"],
            kind(one),
            share(change(one)),
            f"{mean_effective_rank(one):.2f} of {one['directions']}",
            intruders(lens, one),
        )
        for one in lens["adapters"]
    ]


def overlap_rows(overlap: Lens) -> Rows:
    """Under the titles `OVERLAPS`; no figures where one of the two is zero."""
    rows = []
    for one in overlap["layers"]:
        phi, of_A, width = one["of_update"], one["of_A"], one["width"]
        if not (phi and phi[0]):
            rows.append((one["layer"], *[NOTHING] * (len(OVERLAPS) - 1)))
            continue
        many, most = len(phi[0]), min(len(phi), len(phi[0]))
        cells = [_phi(phi, 1, 1, width), _phi(phi, 1, many, width), _phi(phi, most, most, width)]
        cells.append(_phi(of_A, len(of_A), len(of_A[0]), width) if of_A else NOTHING)
        rows.append((one["layer"], *cells))
    return rows


def _phi(phi: Sequence[Sequence[float]], i: int, j: int, width: int) -> str:
    return f"{phi[i - 1][j - 1]:.3f} (by chance {overlap_by_chance(i, j, width):.3f})"


def screen(lens: Lens) -> str:
    """What the terminal shows."""
    adapter, measured = lens["adapters"][0], lens["measured"]
    lines = [f"{kind(adapter)}: {headline(lens)}", "", markdown_table([LAYERS, *layer_rows(adapter)])]
    if measured:
        lines += ["", markdown_table([KEPT, *kept_rows(measured)])]
    return "\n".join(lines)

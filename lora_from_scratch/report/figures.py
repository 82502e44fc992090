"""The pictures of one dataset's accuracies: each seed a point, the differences, against parameters."""

from __future__ import annotations

from collections.abc import Iterator

from lora_from_scratch.report import drawing, numbers
from lora_from_scratch.report.compared import Dataset, Variant, done, finished, named
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.palette import INK, LINE, MUTED, Look

Looks = dict[str, Look]


def accuracy(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """A row a variant: its seeds, their mean and its interval."""
    variants, shown = dataset["variants"], finished(dataset)
    if not shown:
        return None
    always = dataset["baseline"]

    def draw() -> object:
        values = [_accuracy_text(variant) for variant in variants]
        (axes,) = drawing.rows(list(map(named, variants)), values)
        axes.set(xlim=drawing.window(_seen(shown), 0, 100), xlabel="accuracy (%)")
        low, high = axes.get_xlim()
        if always and low <= always["accuracy"] <= high:
            axes.axvline(always["accuracy"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for y, variant in enumerate(variants):
            look, found = looks[variant["method"]], variant["accuracy"]
            if not found or drawing.off_scale(axes, found["mean"], y, look):
                continue
            axes.plot(found["interval"], [y, y], color=look.colour, linewidth=2, solid_capstyle="butt")
            axes.plot(found["mean"], y, look.marker, color=look.colour, markersize=7)
            seeds = [run["accuracy"] for run in done(variant)]
            axes.plot(seeds, [y + 0.24] * len(seeds), "o", markersize=4, **drawing.HOLLOW)
        return axes.figure

    alt = f"Accuracy in percent. {' '.join(map(_sentence, variants))}"
    if always:
        alt += f" Always saying {always['label']} scores {numbers.percent(always['accuracy'])}."
    caption = (
        "Thick: the mean and its 95 % interval. Hollow: each seed. Dashed: always saying the commonest "
        "class. An arrow points to what lies outside of the picture."
    )
    return drawing.picture(name, "Accuracy, each seed a point", caption, alt, draw)


def differences(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """A row a comparison: the difference, its interval, and the margin if one was named."""
    found, margin = dataset["comparisons"], dataset["margin"]
    known = [one for one in found if one["difference"] is not None]
    if not known:
        return None
    variant_of = {variant["label"]: variant for variant in dataset["variants"]}
    trained = {variant["label"] for variant in dataset["variants"] if variant["trainable_parameters"]}
    seen = [one for one in known if {one["a"], one["b"]} <= trained] or known
    label = [_pair(named(variant_of[one["a"]]), one["b"], dataset["reference"]) for one in found]
    others = any(one["b"] != dataset["reference"] for one in found)
    name_of_it = "what it is compared with" if others else dataset["reference"]

    def draw() -> object:
        (axes,) = drawing.rows(label, [_difference_text(one) for one in found])
        ends = [end for one in seen for end in one["interval"]]
        axes.set(xlim=drawing.window([*ends, 0, margin or 0, -(margin or 0)]))
        axes.set_xlabel(f"points of accuracy above {numbers.short(name_of_it)}")
        axes.axvline(0, color=INK, linewidth=0.9)
        if margin:
            axes.barh(range(len(found)), 2 * margin, left=-margin, height=0.36, color=LINE)
        for y, one in enumerate(found):
            look = looks[variant_of[one["a"]]["method"]]
            if one["difference"] is None or drawing.off_scale(axes, one["difference"], y, look):
                continue
            axes.plot(one["interval"], [y, y], color=look.colour, linewidth=2, solid_capstyle="butt")
            axes.plot(one["difference"], y, look.marker, color=look.colour, markersize=7)
        return axes.figure

    alt = f"Difference to {name_of_it} in points of accuracy. "
    alt += " ".join(
        f"{text}: {_difference_text(one)}, {one['verdict']}." for text, one in zip(label, found, strict=True)
    )
    band = f" Shaded: the margin of {margin:g} points within which two are called equal." if margin else ""
    caption = (
        "Differences with their 95 % intervals, each for its comparison alone; the verdicts count how many "
        f"comparisons there are.{band}"
    )
    return drawing.picture(name, "Differences in accuracy", caption, alt, draw)


def parameters(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """Accuracy over trainable parameters on a log axis; what trains none stands left of it."""
    shown = finished(dataset)
    counts = [variant["trainable_parameters"] for variant in shown if variant["trainable_parameters"]]
    if len(set(counts)) < 2:
        return None
    zero = min(counts) / 10

    def draw() -> object:
        figure = drawing.figure(2.6)
        axes = figure.subplots()
        low, high = drawing.window(_seen(shown), 0, 100)
        axes.set(xscale="log", xlabel="trainable parameters", ylabel="accuracy (%)", ylim=(low, high))
        taken = {}
        for variant in shown:
            look, found = looks[variant["method"]], variant["accuracy"]
            x = variant["trainable_parameters"] or zero
            taken[x] = taken.get(x, 0) + 1
            x *= 1.12 ** (taken[x] - 1)  # equal counts stand beside each other
            first = variant["method"] not in axes.get_legend_handles_labels()[1]
            label = variant["method"] if first else None
            if found["mean"] < low:  # far below: an arrow
                mean = numbers.percent(found["mean"])
                axes.annotate(f"\u2193 {mean}", (x, low), (6, 5), textcoords="offset points")
            axes.plot([x, x], found["interval"], color=look.colour, linewidth=2, solid_capstyle="butt")
            y = max(found["mean"], low)
            axes.plot(x, y, look.marker, color=look.colour, markersize=7, label=label, clip_on=False)
        _counts_axis(axes, counts, zero if len(counts) < len(shown) else None)
        drawing.legend_below(axes)
        return figure

    rows = sorted(shown, key=lambda variant: variant["trainable_parameters"])
    alt = "Accuracy in percent against trainable parameters. " + " ".join(
        f"{named(v)}: {v['trainable_parameters']:,} parameters, {_accuracy_text(v)}." for v in rows
    )
    caption = "Means with their 95 % intervals; the axis of parameters is logarithmic."
    return drawing.picture(name, "Accuracy against trainable parameters", caption, alt, draw)


def _seen(variants: list[Variant]) -> list[float]:
    """What an axis of accuracies has to hold: all that was trained."""
    trained = [variant for variant in variants if variant["trainable_parameters"]] or variants
    return [x for v in trained for x in (*v["accuracy"]["interval"], *(run["accuracy"] for run in done(v)))]


def _accuracy_text(variant: Variant) -> str:
    found = variant["accuracy"]
    return (
        f"{numbers.percent(found['mean'])} ({numbers.between(found['interval'])})" if found else "no run done"
    )


def _difference_text(one: dict[str, object]) -> str:
    if one["difference"] is None:
        return one["verdict"]
    return f"{numbers.points(one['difference'])} ({numbers.between(one['interval'])})"


def _pair(a: str, b: str, reference: str) -> str:
    return a if b == reference else f"{a} to {b}"


def _sentence(variant: Variant) -> str:
    seeds = numbers.listed([numbers.percent(run["accuracy"]) for run in done(variant)] or ["none"])
    return f"{named(variant)}: {_accuracy_text(variant)}; seeds {seeds}."


def _counts_axis(axes: object, counts: list[int], zero: float | None) -> None:
    """Powers of ten as 1k, 10k, 1M; the place of what trains nothing is called 0."""
    names = dict(_decades(min(counts), max(counts)))
    if zero:
        names = {zero: "0", **{at: name for at, name in names.items() if at > zero * 3}}
    axes.set_xticks(list(names), list(names.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlim((zero or min(counts)) / 1.6, max(counts) * 2)


def _decades(low: int, high: int) -> Iterator[tuple[int, str]]:
    for power in range(len(str(low)) - 1, len(str(high)) + 1):
        text = f"{10**power:,}"
        for zeros, letter in ((",000,000,000", "G"), (",000,000", "M"), (",000", "k")):
            text = text.replace(zeros, letter)
        yield 10**power, text

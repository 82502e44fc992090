"""Accuracy over one setting, where a comparison varies it: the rank, the learning rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from lora_from_scratch.report import drawing, numbers
from lora_from_scratch.report.compared import Dataset, Variant, done, finished, learning_rate
from lora_from_scratch.report.drawing import Picture
from lora_from_scratch.report.figures import Looks

Point = tuple[float, Variant]


def rank(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """Accuracy over the rank, a line for what is otherwise equal; None where no method has two."""
    return _sweep(dataset, looks, name, "rank", "rank", lambda variant: variant["config"].get("rank"), "{:g}")


def rate(dataset: Dataset, looks: Looks, name: str) -> Picture | None:
    """Accuracy over the peak learning rate that was used; None where no method has two."""
    return _sweep(dataset, looks, name, "lr", "learning rate", learning_rate, None)


def lines(
    dataset: Dataset, flag: str, value: Callable[[Variant], float | None]
) -> dict[tuple[str, str], list[Point]]:
    """Variants that differ in a flag, by method and by the rest of what differs: (value, variant), ascending.

    Where every value comes with a rest of its own (each rank with its rate), by method alone.
    """
    at = [(value(variant), variant) for variant in finished(dataset)]
    for keep_rest in (True, False):
        found = defaultdict(list)
        for x, variant in at:
            if x is not None:
                rest = {k: v for k, v in variant["differs"].items() if k not in (flag, "method")}
                named = ((k.replace("_", " "), numbers.setting(k, v)) for k, v in rest.items())
                text = ", ".join(map(" ".join, named))
                found[variant["method"], text if keep_rest else ""].append((x, variant))
        found = {key: sorted(points, key=lambda p: p[0]) for key, points in found.items() if _several(points)}
        if found:
            return found
    return {}


def _several(points: list[Point]) -> bool:
    return len({x for x, _ in points}) > 1


def _sweep(
    dataset: Dataset,
    looks: Looks,
    name: str,
    flag: str,
    title: str,
    value: Callable[[Variant], float | None],
    form: str | None,
) -> Picture | None:
    found = lines(dataset, flag, value)
    if not found:
        return None
    text = form.format if form else numbers.rate
    ticks = sorted({x for points in found.values() for x, _ in points})

    def draw() -> object:
        figure = drawing.figure(2.6)
        axes = figure.subplots()
        axes.set(xscale="log", xlabel=title, ylabel="accuracy (%)")
        for number, ((method, rest), points) in enumerate(found.items()):
            look, drawn = looks[method], drawing.DASHES[number % 4]
            apart = 1.03 ** (number - (len(found) - 1) / 2)  # so that intervals do not hide each other
            xs, means = [x * apart for x, _ in points], [v["accuracy"]["mean"] for _, v in points]
            label = numbers.short(f"{method}, {rest}" if rest else method, 46)
            axes.plot(xs, means, look.marker, color=look.colour, linestyle=drawn, linewidth=1.2, label=label)
            for x, (_, variant) in zip(xs, points, strict=True):
                axes.plot([x, x], variant["accuracy"]["interval"], color=look.colour, linewidth=2, alpha=0.55)
                seeds = [run["accuracy"] for run in done(variant)]
                axes.plot([x * 1.05] * len(seeds), seeds, ".", color=look.colour, markersize=3)
        if form is None:
            drawing.rate_axis(axes, ticks)
        else:
            axes.set_xticks(ticks, [text(x) for x in ticks])
            axes.set_xticks([], minor=True)
        drawing.legend_below(axes)
        return figure

    alt = f"Accuracy in percent against the {title}. " + " ".join(
        f"{method}{', ' if rest else ''}{rest}: {_readings(points, text)}."
        for (method, rest), points in found.items()
    )
    caption = "Means with their 95 % intervals; small points: each seed. The axis below is logarithmic."
    return drawing.picture(name, f"Accuracy against the {title}", caption, alt, draw)


def _readings(points: list[Point], text: Callable[[float], str]) -> str:
    return ", ".join(
        f"{numbers.percent(found['mean'])} at {text(x)} ({numbers.between(found['interval'])})"
        for x, found in ((x, variant["accuracy"]) for x, variant in points)
    )

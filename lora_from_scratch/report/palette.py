"""The colours of the page and of its pictures: a look for each method, whatever else a comparison holds.

Light and dark ones of equal rank have equal meaning. Between any two colours lie at least 10 units of CIELAB,
to eyes that lack one of the three cones too (Machado et al. 2009), and every one has a contrast of 3 to its
ground. No colour stands alone: each method has a shape as well. From the eighth method on colours come again,
with another shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_from_scratch.methods import METHODS

GROUND = {"light": "#ffffff", "dark": "#14171b"}
TONES = {  # of everything but methods, by the name of the CSS variable: light and dark
    "ink": ("#1a1e23", "#e9ecef"),
    "muted": ("#565e67", "#aab2ba"),
    "line": ("#d6dbe0", "#363c43"),
    "accent": ("#0f6a73", "#62ccd6"),
    "part0": ("#123f45", "#d3f3f5"),
    "part1": ("#27808a", "#7fc3ca"),
    "part2": ("#74b9c1", "#42828a"),
    "part3": ("#c3e2e5", "#24474c"),
}
SERIES = [  # methods, in the order of their table
    ("#868c92", "#868e96"),
    ("#bd8700", "#f2c94c"),
    ("#a01f14", "#e0572f"),
    ("#1769bd", "#62b0f7"),
    ("#0b7a4b", "#1f9f76"),
    ("#c468b8", "#f3b6ea"),
    ("#2a1f5c", "#9d8cff"),
]
SHAPES = [("o", "●"), ("s", "■"), ("D", "◆"), ("^", "▲"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★")]
PARTS = [TONES[f"part{i}"][0] for i in range(4)]
INK, MUTED, LINE, ACCENT = (TONES[name][0] for name in ("ink", "muted", "line", "accent"))


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    number: int  # of its colour: the CSS variable --method0, --method1, ...
    colour: str  # the light one
    marker: str  # matplotlib's
    sign: str  # the same shape as a character


def looks(comparison: dict[str, object]) -> dict[str, Look]:
    """A look for every method of the table, and after them for those that only the comparison knows."""
    used = [variant["method"] for dataset in comparison["datasets"] for variant in dataset["variants"]]
    found = {}
    for rank, method in enumerate(dict.fromkeys([*METHODS, *used])):
        number, shape = rank % len(SERIES), SHAPES[rank % len(SHAPES)]
        found[method] = Look(number, SERIES[number][0], *shape)
    return found


def variables(ground: str) -> dict[str, str]:
    """CSS variables and their values on the "light" or the "dark" ground."""
    column = list(GROUND).index(ground)
    methods = {f"method{number}": pair[column] for number, pair in enumerate(SERIES)}
    return {"ground": GROUND[ground], **{name: pair[column] for name, pair in TONES.items()}, **methods}

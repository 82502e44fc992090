"""How figures are written, on the page, in its pictures and in its tables alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"


def percent(value: float) -> str:
    """Of an accuracy or an F1, which are in percent already."""
    return f"{value:.2f}"


def between(interval: Sequence[float], form: str = ".1f") -> str:
    """An interval of percents: "82.1 to 86.4"."""
    return " to ".join(f"{value:{form}}" for value in interval).replace("-", MINUS)


def points(value: float) -> str:
    """A difference of two accuracies, with its sign."""
    return f"{value:+.2f}".replace("-", MINUS)


def seconds(value: float) -> str:
    return f"{value:,.1f} s"


def size(value: float) -> str:
    """Bytes, in kB, MB or GB of 10^3, 10^6 and 10^9."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} GB"
    return f"{value / 1e6:.1f} MB" if value >= 1e6 or not value else f"{value / 1e3:.1f} kB"


def count(number: int, noun: str) -> str:
    """ "1 run", "5 runs"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rate(value: float) -> str:
    """A learning rate, with at most three digits: 0.0005 is 5e-4."""
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}" if value < 0.00999 else f"{value:.3g}"


def setting(name: str, value: object) -> str:
    """A flag's value."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "default"}[value]
    return rate(value) if name == "lr" else f"{value:g}" if isinstance(value, float) else str(value)


def listed(words: Iterable[str], last: str = "and") -> str:
    """ "a, b and c"."""
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def short(text: str, longest: int = 34) -> str:
    """On one line, and of a long text its beginning and its end, where labels differ."""
    text = " ".join(text.split())
    half = longest // 2
    return text if len(text) <= longest else f"{text[: longest - half - 1]}…{text[-half:]}"


def loads(runs: Iterable[dict[str, object]]) -> str:
    """The load averages before and after runs, from the least to the largest; empty where nobody measured."""
    found = [load for run in runs for load in run["load_average"] or ()]
    ends = sorted({f"{min(found):.1f}", f"{max(found):.1f}"}, key=float) if found else ()
    return " to ".join(ends)

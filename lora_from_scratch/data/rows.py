"""Tables of raw examples: which columns are text and label, and what may stand in them."""

import math
import re
import shlex
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lora_from_scratch.errors import UserError, quoted

USUAL = {"text": ("sentence", "text"), "label": ("label",)}  # what a column is called, if nobody says
Numbered = Iterator[tuple[int, Sequence[object]]]  # line or row, and its cells
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character: JSON can hold one, UTF-8 cannot


@dataclass(frozen=True)
class Selection:
    """What is read of a source: columns, splits, and whether rows with a blank text are left out.

    None takes the usual: the columns of `USUAL`, train, and the first of validation, val, dev and test.
    """

    text_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    drop_blank: bool = False

    def found_in(
        self, names: Sequence[str], place: str, wanted: Sequence[str] = ("text", "label")
    ) -> list[str]:
        """The names of the wanted columns, case and spaces aside where no name fits to the letter.

        Raises UserError where one is not there, or is there twice.
        """
        found = {what: self._column(what, names, place) for what in wanted}
        nameless = [what for what, name in found.items() if name is None]
        if not nameless:
            if len({*found.values()}) < len(found):
                both = quoted(found[wanted[0]])
                raise UserError(
                    f"{place}: {both} is named as text and as label; name the other with its flag"
                )
            return list(found.values())
        told = any(getattr(self, f"{what}_column") is not None for what in wanted)
        if nameless == list(wanted) and not told and any(map(_looks_like_data, names)):
            seen = quoted(*names[:2], length=24) + ", ..." * (len(names) > 2)
            raise UserError(
                f"{place}: the first line is {seen}; if that is a row, put text and "
                "label above, else name its columns with --text-column and --label-column"
            )
        what = nameless[0]
        asked = getattr(self, f"{what}_column")
        missing = " or ".join(USUAL[what]) if asked is None else quoted(asked)
        raise UserError(f"{place}: no column {missing}; {_choice(names, what)}")

    def _column(self, what: str, names: Sequence[str], place: str) -> str | None:
        asked = getattr(self, f"{what}_column")
        for name in USUAL[what] if asked is None else (asked,):
            same = [other for other in names if other == name] or [
                other for other in names if folded(other) == folded(name)
            ]
            if len(same) > 1:
                raise UserError(f"{place}: two columns are called {quoted(*same)}; rename one of them")
            if same:
                return same[0]
        return None


@dataclass(frozen=True)
class Table:
    """A file, opened: its columns, and its rows as they are asked for."""

    source: str
    unit: str  # of what numbers its rows: "line" or "row"
    columns: list[str]
    pick: Callable[[Sequence[str]], Numbered]  # the cells of these columns, row by row
    label_names: Mapping[str, list[str]] = field(default_factory=dict)  # of ids, by column
    at_once: Callable[[str, str], "Rows | None"] = lambda text, label: None  # a quick way for large files

    @property
    def rows(self) -> Numbered:
        return self.pick(self.columns)


@dataclass(frozen=True)
class Rows:
    """Raw examples, column by column, and where each stands, for error messages."""

    texts: list[str]  # stripped, none blank
    labels: list[str | int | float]  # of the type that they have in their source
    numbers: Sequence[int]  # of the line or row
    source: str
    unit: str  # "line" or "row"
    label_names: list[str] | None = None  # of the ids, where the source has them

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, i: int) -> str:
        return f"{self.source}, {self.unit} {self.numbers[i]}"

    def take(self, indices: Sequence[int]) -> "Rows":
        parts = ([column[i] for i in indices] for column in (self.texts, self.labels, self.numbers))
        return Rows(*parts, self.source, self.unit, self.label_names)


def collect(
    values: Iterable[tuple[int, object, object]],
    source: str,
    unit: str,
    drop_blank: bool = False,
    label_names: list[str] | None = None,
) -> Rows:
    """Rows of numbered (text, label) pairs.

    Raises UserError for a value that is no text or no label, for blank texts unless they are dropped, and
    where nothing is left. Halves of surrogate pairs become U+FFFD, with a warning.
    """
    texts, labels, numbers, blank, repaired = [], [], array("q"), [], []
    seen: dict[str, str] = {}  # labels as they stand there, and stripped
    for number, text, label in values:
        if drop_blank and (text is None or text != text):  # NaN
            text = ""
        if type(text) is not str:
            text = str(_value(text, "text", f"{source}, {unit} {number}"))
        if not text.isascii() and whole(text) != text:
            repaired.append(number)
            text = whole(text)
        text = text.strip()
        if not text:
            blank.append(number)
            continue
        if type(label) is str and label in seen:
            label = seen[label]
        else:
            raw, label = label, _value(label, "label", f"{source}, {unit} {number}")
            if type(raw) is str:
                seen[raw] = label
                if whole(raw) != raw:
                    repaired.append(number)
        texts.append(text)
        labels.append(label)
        numbers.append(number)
    _tell(source, unit, len(texts), blank, repaired, drop_blank)
    if not texts:
        raise nothing_in(source)
    return Rows(texts, labels, numbers, source, unit, label_names)


def whole(text: str) -> str:
    """The text, with U+FFFD where it holds half of a surrogate pair, which no file can."""
    return text if text.isascii() else SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def folded(name: str) -> str:
    """A name without what people do not see in it: case, a byte-order mark, spaces but single ones."""
    return " ".join(name.strip("\ufeff").split()).casefold()


def nothing_in(source: str) -> UserError:
    return UserError(f"{source} holds no examples: give a file with a row for each text")


def _value(value: object, what: str, place: str) -> str | int | float:
    """What stands in a cell, stripped. Raises UserError unless it is text or a finite number."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{place}: the {what} is {_json(value)}; fill it in, or delete the row")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        kinds = {list: "a list", dict: "an object", bool: "true or false"}
        kind = kinds.get(type(value), f"of type {type(value).__name__}")
        raise UserError(f"{place}: the {what} is {kind}; write it as one string or number")
    if not isinstance(value, str):
        return value
    value = whole(value).strip()
    if not value and what == "label":
        raise UserError(f"{place}: the label is empty; fill it in, or delete the row")
    return value


def _json(value: float | None) -> str:
    return "null" if value is None else str(value)


def _tell(
    source: str, unit: str, kept: int, blank: Sequence[int], repaired: Sequence[int], drop_blank: bool
) -> None:
    if blank:
        count = f"{len(blank):,} of {kept + len(blank):,} texts {'is' if len(blank) == 1 else 'are'} blank"
        where = f"{unit} {blank[0]}" + (" first" if len(blank) > 1 else "")
        if not drop_blank:
            raise UserError(f"{source}: {count} ({where}); leave them out with --drop-blank")
        warnings.warn(f"{source}: {count} ({where}), left out as --drop-blank asks", stacklevel=3)
    if repaired:
        warnings.warn(
            f"{source}, {unit} {repaired[0]}: half of a surrogate pair, which is no character, is read as "
            f"U+FFFD; rows with one: {len(repaired):,}; write the file again to mend them",
            stacklevel=3,
        )


def _looks_like_data(name: str) -> bool:
    """Whether a column's name is more likely a text or a label: several words, or a number."""
    return len(name.split()) > 3 or bool(re.fullmatch(r"\s*-?\d+(\.\d*)?\s*", name))


def _choice(names: Sequence[str], what: str) -> str:
    """What to do: the names as a shell takes them, as many as fit into a sentence and can be typed."""
    shown, left = [], 90
    for name in (" ".join(name.split()) for name in names):
        typed = shlex.quote(name)
        if name.isprintable() and name and (left := left - len(typed) - 2) >= 0:
            shown.append(typed)
    if not shown:
        return f"rename one of its {len(names)} columns, whose names are none that one types"
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"name one of {', '.join(shown)}{more} with --{what}-column"

"""From labels as a source has them to ids: decided here and nowhere else.

Numbers become ids in numeric order and keep their names, whatever their range (stars 1 to 5, -1 and 1); 0.0
is 0. In text that reads as numbers they are numbers. Anything else is a string, and becomes an id in sorted
order. Where the source names its ids itself (ClassLabel), they stay as they are.
"""

import re
import unicodedata
import warnings
from collections.abc import Sequence

from lora_from_scratch.data.rows import Rows
from lora_from_scratch.errors import UserError, quoted

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?", re.ASCII)
NO_VALUE = {"nan", "na", "n/a", "null", "none", "nil", "-"}  # in a column of numbers
MANY = 20  # more fractions than this are scores
Label = str | int | float


def label_names(rows: Rows) -> list[str]:
    """The names of the labels, in the order of their ids.

    Raises UserError where there is only one, or they are scores; warns of names that differ by case or spaces
    alone.
    """
    if rows.label_names is not None and len(rows.label_names) > 1:
        return rows.label_names
    distinct = dict.fromkeys(map(_value, dict.fromkeys(rows.labels)))
    texts = [label for label in distinct if isinstance(label, str)]
    if texts and len(texts) < len(distinct) and all(text.casefold() in NO_VALUE for text in texts):
        where = rows.place(rows.labels.index(texts[0]))
        raise UserError(f"{where}: the label is {quoted(texts[0])}, where others are numbers; fill it in")
    for text in texts:
        where = rows.place(rows.labels.index(text))
        if text.casefold() == "nan":
            raise UserError(f"{where}: the label is {quoted(text)}, which is no value; fill it in")
        if len(text) > 1 and text[0] == text[-1] == '"':
            raise UserError(f"{where}: the label {quoted(text)} has its marks in it; delete the space before")
    names = sorted({*map(str, distinct)}) if texts else list(map(str, sorted(distinct)))
    if len(names) < 2:
        raise UserError(f"{rows.source}: every label is {quoted(names[0])}; add rows of a second class")
    fractions = not texts and not all(number == int(number) for number in distinct)
    if len(names) > max(2 if fractions else 5, len(rows) / 2) or (fractions and len(names) > MANY):
        raise UserError(
            f"{rows.source}: {len(names):,} labels in {len(rows):,} rows, such as {quoted(names[0])}: "
            "scores or ids, not classes; name the column of classes (--label-column), or make classes of them"
        )
    _tell_look_alikes(names, rows.source)
    return names


def label_ids(
    rows: Rows, names: Sequence[str], advice: str = "correct it, or leave the row out"
) -> list[int]:
    """The id of each row's label among the names. Where these are no numbers, an integer is an id.

    Raises UserError for a label that is none of them; it ends in the advice.
    """
    known = {str(_value(name)): i for i, name in enumerate(names)}
    numbered = not any(isinstance(_value(name), str) for name in names)
    ids: dict[Label, int] = {}
    for label in dict.fromkeys(rows.labels):
        value = _value(label)
        if rows.label_names is None:
            found = known.get(str(value), None if numbered else value)
        elif value not in range(len(rows.label_names)) or list(names) == rows.label_names:
            found = value
        else:
            found = known.get(str(_value(rows.label_names[int(value)])), value if plain(names) else None)
        if found not in range(len(names)):
            where = rows.place(rows.labels.index(label))
            raise UserError(f"{where}: label {quoted(label)} is none of {quoted(*names)}; {advice}")
        ids[label] = int(found)
    return [ids[label] for label in rows.labels]


def plain(names: Sequence[str]) -> bool:
    """Whether the names only repeat the ids, as where nobody has named them."""
    return list(names) in ([f"LABEL_{i}" for i in range(len(names))], [str(i) for i in range(len(names))])


def _value(label: Label) -> Label:
    """A number for what is one or reads as one, an int where it is whole."""
    if isinstance(label, str):
        if not NUMBER.fullmatch(label) or len(label) > 100:
            return label
        label = float(label) if "." in label else int(label)
    return int(label) if label == int(label) else label


def _tell_look_alikes(names: Sequence[str], source: str) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        seen = unicodedata.normalize("NFKC", name).casefold()
        seen = "".join(one for one in seen if not one.isspace() and unicodedata.category(one) != "Cf")
        alike.setdefault(seen, []).append(name)
    for group in alike.values():
        if len(group) > 1:
            warnings.warn(
                f"{source}: the labels {quoted(*group)} differ by case or spaces alone, and are "
                f"{len(group)} classes; spell them alike if they are one",
                stacklevel=3,
            )

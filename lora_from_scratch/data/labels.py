"""Labels: from what a source calls them to ids and names."""

from __future__ import annotations

from collections.abc import Sequence

from lora_from_scratch.data.rows import Row
from lora_from_scratch.errors import UserError


def label_names(rows: Sequence[Row]) -> list[str]:
    """Names in the order of their ids: integers stand for themselves, anything else is sorted.

    Raises:
        UserError: all rows have one label.
    """
    distinct = sorted({row.label for row in rows})
    if len(distinct) < 2:
        raise UserError(
            f"{rows[0].place}: label {distinct[0]!r}, as everywhere: there is nothing to tell apart"
        )
    return [str(i) for i in range(len(distinct))] if all(map(is_integer, distinct)) else distinct


def label_ids(rows: Sequence[Row], names: Sequence[str]) -> list[int]:
    """The id of each row's label. An integer is an id, also where the ids have names.

    Raises:
        UserError: a label is neither a name nor an id.
    """
    ids = {name: i for i, name in enumerate(names)}
    found = []
    for row in rows:
        label = row.label
        if label in ids:
            found.append(ids[label])
        elif not is_integer(label):
            raise UserError(f"{row.place}: label {label!r} is none of {', '.join(names)}")
        elif 0 <= int(label) < len(ids):
            found.append(int(label))
        else:
            raise UserError(f"{row.place}: label {label} is outside 0..{len(ids) - 1}; number labels from 0")
    return found


def is_integer(label: str) -> bool:
    return label.removeprefix("-").isdecimal()

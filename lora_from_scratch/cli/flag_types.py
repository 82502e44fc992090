"""Flags from the fields of a dataclass, and the types of argparse that they take."""

import argparse
import re
from collections.abc import Callable, Iterable, Set
from functools import wraps
from pathlib import Path
from typing import get_args, get_type_hints

from lora_from_scratch.cli.one_line import nearest
from lora_from_scratch.compare.plan import OneMethods
from lora_from_scratch.errors import quoted
from lora_from_scratch.methods import METHODS


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """A type of argparse's: one of these names. (Its own `choices` knows no near miss.)"""

    def choose(word: str) -> str:
        if word not in names:
            near, known = nearest(word, names), ", ".join(names)
            raise argparse.ArgumentTypeError(f"invalid choice: {quoted(word)}{near} (choose from {known})")
        return word

    return choose


def folder(word: str) -> Path:
    """A type of argparse's: a folder's path, not empty."""
    if not word:
        raise argparse.ArgumentTypeError("is empty; name a folder, or leave the flag out")
    return Path(word)


def _yes_or_no(word: str) -> bool:
    if word not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"takes yes and no, not {quoted(word)}")
    return word == "yes"


def _parts(word: str) -> tuple[str, ...]:
    """A list parted by commas; q, k or v alone belongs to what stands before it, as in attn.c_attn:q,v."""
    parts = tuple(re.split(",(?![qkv](?:,|$))", word))
    if word and "" in parts:
        raise argparse.ArgumentTypeError(f"has a comma too many: {quoted(word)}")
    return parts


def _also_one_methods(kind: Callable[[str], object]) -> Callable[[str], object]:
    """A type of argparse's: a value of this type, or METHOD=VALUE."""

    @wraps(kind)
    def read(word: str) -> object:
        method, _, value = word.partition("=")
        return OneMethods(method, kind(value)) if value and method in METHODS else kind(word)

    return read


def choice(names: Iterable[str]) -> dict[str, object]:
    """Options of a flag that takes one of these names."""
    return {"type": one_of(names), "metavar": f"{{{','.join(names)}}}"}


def add_flags(group: argparse._ActionsContainer, owner: type, names: Set[str], several: bool = False) -> None:
    """A flag for each of the named fields of a dataclass; what is not given is not in what is parsed.

    With `several` each takes a list: of yes and no for a switch, of lists parted by commas for a list. Any of
    its values may be METHOD=VALUE then.
    """
    for name, kind in get_type_hints(owner).items():
        if name in names:
            field = owner.__dataclass_fields__[name]
            options, text, shown = dict(field.metadata["options"]), field.metadata["help"], field.default
            is_list = "tuple" in str(kind)
            if is_list:
                options["nargs"] = "+"
                shown = shown and ("," if several else " ").join(map(str, shown))
            while inner := get_args(kind):  # int of `int | None`, str of `tuple[str, ...]`
                kind = inner[0]
            choices = options.pop("choices", None)
            if several:
                kind = _parts if is_list else _yes_or_no if kind is bool else kind
                options |= {"nargs": "+"}
            options |= {"action": "store_true"} if kind is bool else {"type": kind}
            options |= choice(choices) if choices else {}
            if several:
                options["type"] = _also_one_methods(options["type"])
            if shown is not None and shown is not False:
                text += f" (default: {shown})"
            flag = "--" + name.replace("_", "-")
            group.add_argument(flag, help=text, default=argparse.SUPPRESS, **options)

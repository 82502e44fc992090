"""What the properties of `fuzz.py` share: how bytes are damaged, and what a refusal looks like."""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lora_from_scratch.errors import UserError

Files = dict[str, bytes]  # a case: contents by name
T = TypeVar("T")
# fmt: off
# What stands where it hurts: marks, ends of lines, halves of characters, numbers that overflow, deep nests.
TOKENS = [
    b'"', b'""', b"'", b"\0", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b"\t", b",", b";", b"|", b" ", b"\\",
    "\x85".encode(), "\u2028".encode(), b"\x0b", b"\x0c", b"\x1c", b"\x1b[31m", "é".encode(), b"\xc3",
    b"\xff", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud83d", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"null",
    b"true", b"[", b"]", b"{", b"}", b":", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"-1", b"0", b".5",
    b"e5", b"x" * 300, b"\xff\xff\xff\xff\x0f", b"\xff" * 8, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"text,label\n", b"text\tlabel\n", b'{"text": "a", "label": 1}\n', b"nan", b"(", b")+", b"*", b"a{9999}",
]
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "a", "x" * 300, "\ud800", "\0", "a\nb", "(", ".*", "score", "c_attn", [], [[]], [1], ["a"], {},
    {"a": 1}, {"0": "a"}, {"0": "a", "1": "a"}, {"0": 1}, [None], ["", "("], "1", "٣", "LORA", "gpt2", "none",
]
# fmt: on


class Finding(AssertionError):
    """What a case does and must not."""


def require(holds: object, what: object) -> None:
    if not holds:
        raise Finding(what)


def outcome(load: Callable[[], T], path: Path) -> T | str:
    """What is loaded, or the sentence that refuses it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            return load()
        except UserError as error:
            _check_sentence(str(error), path)
            return str(error)
        finally:
            for one in told:
                if str(path) in str(one.message):  # else it is another library's
                    _check_sentence(str(one.message), path)


def _check_sentence(sentence: str, path: Path) -> None:
    """A line that a terminal shows, as short as promised."""
    require(sentence.isprintable(), f"not one line of printable characters: {sentence!r}")
    length = len(sentence.replace(str(path), ""))
    require(length <= 200, f"{length} characters: {sentence}")


def damaged(draw: random.Random, contents: bytes, head: int = 1000) -> bytes:
    """With flips, cuts, insertions, doubled and moved parts: one mostly; half of them in the first bytes."""
    data = bytearray(contents)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(min(len(data), draw.choice((head, len(data)))) + 1) if data else 0
        length = draw.choice((1, 1, 2, 4, 9, 30, 200))
        kind = draw.randrange(9)
        if kind < 2 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[at : at + 1] = draw.randbytes(1)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            del data[at:]
        elif kind < 7:
            data[at:at] = draw.choice(TOKENS)
        elif kind == 7:
            part = data[at : at + length]
            where = draw.choice((at, draw.randrange(len(data) + 1)))
            data[where:where] = part
        else:
            data[at:at] = draw.randbytes(draw.choice((1, 3, 8)))
    return bytes(data)


def altered(draw: random.Random, values: object, by: list[object] = VALUES) -> object:
    """JSON's values with one of them changed, added or taken away, at any depth; in place."""
    inner = values
    while True:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        if not keys:
            break
        key = draw.choice(keys)
        if isinstance(inner[key], (dict, list)) and draw.random() < 0.7:
            inner = inner[key]
            continue
        kind = draw.randrange(6)
        if kind == 0:
            del inner[key]
        elif kind == 1 and isinstance(inner, dict):
            inner[draw.choice([value for value in by if isinstance(value, str)])] = inner[key]
        elif kind == 2 and isinstance(inner[key], (int, float)):
            inner[key] += draw.choice((-1, 1, 0.5))
        else:
            inner[key] = copy.deepcopy(draw.choice(by))
        break
    return values


def altered_json(draw: random.Random, contents: bytes) -> bytes:
    values = json.loads(contents)
    for _ in range(draw.choice((1, 1, 2, 3))):
        values = altered(draw, values)
    return json.dumps(values).encode()


def altered_safetensors(draw: random.Random, contents: bytes) -> bytes:
    """With other values in the header, whose length is right again."""
    length = int.from_bytes(contents[:8], "little")
    header = altered_json(draw, contents[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + contents[8 + length :]

"""What `--target-modules` names: layers by their suffix, and of GPT-2's fused c_attn also parts of one.

`attn.c_attn:q,v` is Wq and Wv inside c_attn, each with an A and a B of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from lora_from_scratch.errors import UserError

PARTS = ("q", "k", "v")  # in the order of c_attn's outputs
FUSED = "c_attn"  # the layer that holds them


def parted(target: str) -> tuple[str, tuple[str, ...]]:
    """The suffix that a target names, and the parts as they stand there; none where it names whole layers."""
    suffix, colon, named = target.partition(":")
    return suffix, tuple(named.split(",")) if colon else ()


def in_order(parts: Iterable[str]) -> tuple[str, ...]:
    """Parts in c_attn's order; UserError unless each is q, k or v, none is there twice, and one at least."""
    parts = tuple(parts)
    ordered = tuple(part for part in PARTS if part in parts)
    if not ordered or len(ordered) < len(parts):
        told = f"{','.join(parts)!r} are no parts of {FUSED}"
        raise UserError(f"{told}: name q, k or v, each once, such as attn.{FUSED}:q,v")
    return ordered


def spelled(targets: Iterable[str]) -> tuple[str, ...]:
    """Targets with their parts in c_attn's order, so that what is the same has one name.

    UserError for what is no part, parts of another layer, layers that are named beside parts of them, and
    an empty name.
    """
    pairs = [parted(target) for target in targets]
    if ("", ()) in pairs:
        raise UserError("--target-modules '' names no layer; name one, such as attn.c_attn")
    for i, (suffix, parts) in enumerate(pairs):
        if parts and suffix.rpartition(".")[2] != FUSED:
            told = f"--target-modules {suffix}:{','.join(parts)}: only {FUSED} is q, k and v in one layer"
            raise UserError(f"{told}; leave the colon and what follows out")
        for other, others in pairs[:i]:
            if (parts or others) and (_ends_in(suffix, other) or _ends_in(other, suffix)):
                raise UserError(f"--target-modules names {suffix} twice: name it once, with all its parts")
    return tuple(f"{suffix}:{','.join(in_order(parts))}" if parts else suffix for suffix, parts in pairs)


def refuse_parts(targets: Iterable[str], method: str) -> None:
    """UserError where parts are named, for a method that takes whole layers alone."""
    for target in targets:
        if ":" in target:
            told = f"--target-modules {target}: --method {method} takes whole layers"
            raise UserError(f"{told}; leave the colon and what follows out")


def _ends_in(name: str, suffix: str) -> bool:
    return f".{name}".endswith(f".{suffix}")

"""rank_pattern and alpha_pattern of PEFT's configuration: other ranks and alphas for layers named by a key.

A key is a regular expression for the end of a layer's name, and of several that fit the first one counts.
"""

import re
from collections.abc import Collection, Mapping

PATTERN = r"(.*\.)?({})$"


def of_pattern(pattern: Mapping[str, float] | None, name: str, default: float) -> float:
    """What the pattern says of the layer of that name."""
    return next((v for key, v in (pattern or {}).items() if re.match(PATTERN.format(key), name)), default)


def idle_patterns(
    rank_pattern: Mapping[str, int] | None, alpha_pattern: Mapping[str, float] | None, names: Collection[str]
) -> list[str]:
    """Keys that name none of these layers, each after its table; PEFT says nothing of them."""
    tables = {"rank_pattern": rank_pattern or {}, "alpha_pattern": alpha_pattern or {}}
    return [
        f"{table} {key}"
        for table, pattern in tables.items()
        for key in pattern
        if not any(re.match(PATTERN.format(key), name) for name in names)
    ]

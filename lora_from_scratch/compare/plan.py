"""What is compared: methods x settings x seeds, as a list of runs in which the methods take turns.

Importing this costs nothing: a plan is made before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import NamedTuple

from lora_from_scratch.base.precisions import KEY
from lora_from_scratch.errors import UserError
from lora_from_scratch.methods import METHODS, method_named
from lora_from_scratch.runs.config import RunConfig

# What tells nothing where nothing is trained.
OF_TRAINING = {"limit_train", "epochs", "max_steps", "batch_size", "lr", "weight_decay", "precision", "plain"}
OF_TRAINING |= {"eval_every"}

Values = Mapping[str, Sequence[object]]  # of a flag, by its name; an OneMethods is of that method alone
Recipe = Mapping[str, object]


class OneMethods(NamedTuple):
    """A value that a flag has for one method alone, in place of those for all: `--rank 4 dora=3`."""

    method: str
    value: object


@dataclass(frozen=True)
class Variant:
    """All that the runs of several seeds have in common."""

    config: RunConfig  # of any seed
    label: str  # the method, and the settings in which it differs from other variants of it
    differs: dict[str, object] = field(compare=False)  # these settings; each dataset has its own table


@dataclass(frozen=True)
class Cell:
    """One run of the plan."""

    variant: Variant
    seed: int

    @property
    def config(self) -> RunConfig:
        return replace(self.variant.config, seed=self.seed)

    def __str__(self) -> str:
        return f"{self.variant.label}, seed {self.seed}"


def asked_for(methods: Iterable[str], flags: Values, recipe: Recipe) -> list[RunConfig]:
    """Every combination of the values that a method's flags have, for each method; flags go before a recipe.

    A flag of some methods alone is none of the others'. UserError names a value out of its range.
    """
    found = []
    for method in methods:
        own = _flags_of(method)
        start = {name: value for name, value in recipe.items() if name in own}
        lists = {name: values_for(method, flags[name]) for name in flags if name in own}
        lists = {name: values for name, values in lists.items() if values}
        for values in product(*lists.values()):
            found.append(RunConfig(method=method, **start | dict(zip(lists, values, strict=True))))
    return found


def values_for(method: str, values: Iterable[object]) -> list[object]:
    """Those of a flag's values that are this method's: its own, where it has such, else those for all."""
    values = list(values)
    own = [one.value for one in values if isinstance(one, OneMethods) and one.method == method]
    return own or [one for one in values if not isinstance(one, OneMethods)]


def _flags_of(method: str) -> set[str]:
    way = method_named(method)
    own = {f.name for f in fields(RunConfig)} | way.Settings.__dataclass_fields__.keys()
    own -= set() if way.trains else OF_TRAINING
    return own if way.freezes_blocks else own - {KEY}


def strangers(methods: Iterable[str], flags: Iterable[str]) -> list[str]:
    """Flags that none of the methods has."""
    own = set().union(*map(_flags_of, methods))
    return [name for name in flags if name not in own]


def with_one_methods_values(methods: Iterable[str], flags: Values) -> list[tuple[str, str]]:
    """The (flag, method) pairs of all values that are of one method alone.

    UserError where that method is not among these, or has no such flag.
    """
    pairs = [(flag, one.method) for flag in flags for one in flags[flag] if isinstance(one, OneMethods)]
    for flag, method in pairs:
        told = f"--{flag.replace('_', '-')} {method}=...: {method}"
        if method not in methods:
            raise UserError(f"{told} is not among the --methods; name it there, or leave this out")
        if flag not in _flags_of(method):
            raise UserError(f"{told} has no such flag; leave this out")
    return pairs


def named(configs: Iterable[RunConfig], told: Iterable[tuple[str, str]] = ()) -> list[Variant]:
    """The variants that the configs are, each once, with every open choice filled in before.

    A label names the (flag, method) pairs of `told` also where no other variant of the method differs in it,
    but not a learning rate, which has a column of its own.
    """
    told = {pair for pair in told if pair[0] != "lr"}
    configs = list(dict.fromkeys(replace(config, seed=0, output_dir=None) for config in configs))
    variants = []
    for config in configs:
        same = [o for o in configs if (o.method, o.dataset) == (config.method, config.dataset)]
        like = [other.as_dict() for other in same]
        mine = config.as_dict()
        differs = {
            name: mine[name]
            for name in mine
            if (name, config.method) in told or any(other[name] != mine[name] for other in like)
        }
        label = ", ".join([config.method, *(setting(name, value) for name, value in differs.items())])
        variants.append(Variant(config, label, differs))
    return variants


def cells(variants: Sequence[Variant], seeds: Iterable[int]) -> Iterator[Cell]:
    """All methods with one seed, then all with the next: drift of the machine falls on all alike."""
    return (Cell(variant, seed) for seed in seeds for variant in variants)


def setting(name: str, value: object) -> str:
    """A setting as labels have it: "rank 4". Two that differ never look alike."""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, float):
        value = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    elif isinstance(value, tuple):
        value = "+".join(map(str, value))
    return f"{name.replace('_', ' ')} {value}"


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of the table, each once."""
    return sorted(set(methods), key=list(METHODS).index)

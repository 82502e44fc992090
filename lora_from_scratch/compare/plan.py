"""What is compared: methods x settings x seeds, as a list of runs in which the methods take turns.

Importing this costs nothing: a plan is made before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product

from lora_from_scratch.base.precisions import KEY
from lora_from_scratch.methods import METHODS, method_named
from lora_from_scratch.runs.config import RunConfig

# What tells nothing where nothing is trained.
OF_TRAINING = {"limit_train", "epochs", "max_steps", "batch_size", "lr", "weight_decay", "precision", "plain"}
OF_TRAINING |= {"eval_every"}

Values = Mapping[str, Sequence[object]]  # of a flag, by its name
Recipe = Mapping[str, object]


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
        names = [name for name in flags if name in own]
        for values in product(*(flags[name] for name in names)):
            found.append(RunConfig(method=method, **start | dict(zip(names, values, strict=True))))
    return found


def _flags_of(method: str) -> set[str]:
    way = method_named(method)
    own = {f.name for f in fields(RunConfig)} | way.Settings.__dataclass_fields__.keys()
    own -= set() if way.trains else OF_TRAINING
    return own if way.freezes_blocks else own - {KEY}


def strangers(methods: Iterable[str], flags: Iterable[str]) -> list[str]:
    """Flags that none of the methods has."""
    own = set().union(*map(_flags_of, methods))
    return [name for name in flags if name not in own]


def named(configs: Iterable[RunConfig]) -> list[Variant]:
    """The variants that the configs are, each once, with every open choice filled in before."""
    configs = list(dict.fromkeys(replace(config, seed=0, output_dir=None) for config in configs))
    variants = []
    for config in configs:
        same = [o for o in configs if (o.method, o.dataset) == (config.method, config.dataset)]
        like = [other.as_dict() for other in same]
        mine = config.as_dict()
        differs = {name: mine[name] for name in mine if any(other[name] != mine[name] for other in like)}
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

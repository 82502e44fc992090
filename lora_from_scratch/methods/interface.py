"""What a method says of itself. Everybody else asks this, and knows no method by name.

Importing a method costs nothing, so `--help` answers at once: torch is imported where a model is adapted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field
from typing import TYPE_CHECKING

from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.table import FORMATS

if TYPE_CHECKING:
    from torch import Generator, nn

MOST = 10**9  # that a flag counts
NARROW = 512  # hidden sizes below this take the first of a method's two rates


def flag(default: object, text: str, metavar: str | None = None, **options: object) -> Field:
    """A dataclass field that is a flag of the command line: its default, its help, its argparse options."""
    metadata = {"help": text, "options": {**options, **({"metavar": metavar} if metavar else {})}}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """A method without flags of its own."""


class Method:
    """One way of adapting a GPT-2 classifier: a subclass in a file of this room, and a line in its table."""

    name: str  # of --method, and of folders
    summary: str  # half a line for --help
    saved_as: str = ""  # what a model card calls what was trained: "A LoRA adapter"
    rates: tuple[float, float] | None = None  # default learning rates: hidden sizes below NARROW, others
    format: str | None = None  # how what was trained is written; None where nothing is
    trains: bool = True
    freezes_blocks: bool = True  # whether their matrices are frozen, and may be kept quantised
    merges: bool = True  # whether plain transformers modules can hold what was trained
    by_default: bool = True  # whether compare and tune take it where no --methods are named
    Settings: type = NoSettings  # a frozen dataclass of `flag`s

    def adapt(self, model: nn.Module, settings: object, generator: Generator | None = None) -> nn.Module:
        """Make the GPT-2 classifier ready, in place: freeze everything, then thaw by structure.

        What is trained, counted and saved is then what has `requires_grad`. A method that adds weights has an
        `adapt` of its own, and draws them from the generator.
        """
        model.requires_grad_(False)
        for module in self.learns(model):
            module.requires_grad_(True)
        return model

    def learns(self, model: nn.Module) -> Iterable[nn.Module | nn.Parameter]:
        """What learns of the model as it is."""
        raise NotImplementedError

    def parameter_groups(
        self, model: nn.Module, settings: object, weight_decay: float
    ) -> list[dict[str, object]]:
        """AdamW's groups for the adapted model; `lr_ratio` in one multiplies the run's learning rate there.

        The first group has the run's own: its rate is what is logged.
        """
        return decay_matrices(model.parameters(), weight_decay)

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold what was added into the base's own weights, in place: plain transformers modules are left."""
        from lora_from_scratch.core.surgery import merge_lora

        return merge_lora(model)

    def describe(self, settings: object) -> str | None:
        """A line of the model card about the settings."""
        return None

    def default_lr(self, width: int) -> float | None:
        """The learning rate for a base of hidden size `width`; None where nothing is trained."""
        return self.rates[width >= NARROW] if self.rates else None


def decay_matrices(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Groups of what has `requires_grad`: matrices are decayed, vectors (biases, LayerNorm) are not."""
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def check(method: Method) -> Method:
    """The method itself; TypeError if it leaves out what it has to say, such as its rates or its format."""
    for attribute in ("name", "summary"):
        if not getattr(method, attribute, None):
            raise TypeError(f"a method needs a {attribute}: {type(method).__name__} has none")
    if method.trains and not method.rates:
        raise TypeError(f"method {method.name} trains, but has no default learning rates")
    if method.trains and (method.format not in FORMATS or not method.saved_as):
        raise TypeError(f"method {method.name} trains, but has no format ({', '.join(FORMATS)}) or saved_as")
    for setting in method.Settings.__dataclass_fields__.values():
        if setting.default is MISSING or "help" not in setting.metadata:
            raise TypeError(f"method {method.name}: its setting {setting.name} is no flag(...)")
    return method


def at_least_one(**values: int | None) -> None:
    """Refuse counts below 1, and such as no machine counts to, by the name of their flag; None passes."""
    for name, value in values.items():
        if value is not None and not 1 <= value <= MOST:
            bound = "at least 1" if value < 1 else f"at most {MOST:,}"
            raise UserError(f"--{name.replace('_', '-')} must be {bound}, not {value}")


def positive(**values: float | None) -> None:
    """Refuse what is not above 0 and finite, by the name of its flag; None passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be a positive number, not {value:g}")

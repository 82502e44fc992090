"""The ways of adapting GPT-2 that are compared: this table, and one file for each."""

from __future__ import annotations

from lora_from_scratch.errors import UserError
from lora_from_scratch.methods.bitfit import BitFit
from lora_from_scratch.methods.dora import DoRA
from lora_from_scratch.methods.full import Full
from lora_from_scratch.methods.head import Head
from lora_from_scratch.methods.ia3 import IA3
from lora_from_scratch.methods.interface import Method, check
from lora_from_scratch.methods.lora import LoRA
from lora_from_scratch.methods.lora_fa import LoRAFA
from lora_from_scratch.methods.lora_plus import LoRAPlus
from lora_from_scratch.methods.none import NoFineTuning
from lora_from_scratch.methods.pissa import PiSSA
from lora_from_scratch.methods.prefix import Prefix
from lora_from_scratch.methods.prelayer import PreLayer
from lora_from_scratch.methods.rslora import RsLoRA

METHODS: dict[str, Method] = {}
DEFAULT = LoRA.name


def register(method: Method) -> None:
    """Put a method into the table; it is refused if it does not say all that it has to (see `check`)."""
    METHODS[check(method).name] = method


for _method in (NoFineTuning(), Head(), Full(), LoRA(), PreLayer(), Prefix()):
    register(_method)
for _method in (RsLoRA(), LoRAPlus(), PiSSA(), DoRA(), LoRAFA(), BitFit(), IA3()):
    register(_method)


def method_named(name: str) -> Method:
    """A method of the table.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"--method must be one of {', '.join(METHODS)}, not {name!r}")
    return METHODS[name]

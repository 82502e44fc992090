"""In what the frozen matrices of a base are kept: a line here for each precision, and a file of this room.

Importing this costs nothing: the command line reads it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lora_from_scratch.errors import UserError, quoted

if TYPE_CHECKING:
    from torch import nn

FLOAT = "float"  # as they are: fp32, or bf16 where training computes in it
QUANTISED = {"int8": "int8.Int8Linear", "nf4": "nf4.NF4Linear", "nf4-double": "nf4.DoubleNF4Linear"}
BASE_PRECISIONS = (FLOAT, *QUANTISED)
KEY = "base_precision"  # where a model says it, and the file of an adapter


def base_precision(model: nn.Module) -> str:
    """What the matrices of the base were rounded to, whether they are kept so or dense."""
    return getattr(model, KEY, FLOAT)


def quantise(model: nn.Module, precision: str) -> nn.Module:
    """Keep the matrices of a GPT-2's blocks in that precision from now on, in place; FLOAT changes nothing.

    Embeddings, LayerNorms, biases and the head stay as they are.

    Raises:
        UserError: there is no such precision, or the model was rounded before.
    """
    if precision not in BASE_PRECISIONS:
        known = ", ".join(BASE_PRECISIONS)
        raise UserError(f"the precision of a base is one of {known}, not {quoted(precision)}")
    if precision == FLOAT:
        return model
    if base_precision(model) != FLOAT:
        raise UserError(f"this base was rounded to {base_precision(model)} before: load it anew")
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from lora_from_scratch.core.surgery import place

    file, name = QUANTISED[precision].split(".")
    kind, blocks = getattr(import_module(f"lora_from_scratch.base.{file}"), name), model.transformer.h
    for name in [name for name, _ in blocks.named_modules()]:  # not the modules: each is freed in its turn
        if isinstance(layer := blocks.get_submodule(name), (nn.Linear, Conv1D)):
            place(blocks, name, kind(layer))
    setattr(model, KEY, precision)
    return model


def rounded(model: nn.Module, precision: str) -> nn.Module:
    """The same, but dense, in fp32: what `predict` and `merge` compute on. Raises what `quantise` does."""
    from lora_from_scratch.base.quantised import dequantised

    return dequantised(quantise(model, precision))

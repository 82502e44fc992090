"""How a model is said in PEFT's adapter_config.json: the other way round than `peft_config.py`."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.base.fingerprint import is_added, names_in_base
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.adapted import HEAD_WEIGHT
from lora_from_scratch.formats.peft_config import CONFIG, HEADS, PeftConfig, understand
from lora_from_scratch.methods.dora_linear import DoRALinear


def saved_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """What an adapter's file holds, by parameter: A and B, and whole modules: GPT-2's head, and those in
    which something learns.

    Raises `UserError` for a parameter that PEFT's format has no place for.
    """
    tensors = dict(model.named_parameters())
    modules = {"score"} if HEAD_WEIGHT in tensors else set()
    for name, parameter in tensors.items():
        if is_added(name) and ".lora_" not in name:
            how = "save(Adapted(model, tokenizer, base_name, method, settings))"
            told = f"{name} is none of LoRA's, and PEFT's format has no place for it"
            raise UserError(f"{told}: {how} of lora_from_scratch.formats.tensors writes it")
        if parameter.requires_grad and ".lora_" not in name:
            module = name.rpartition(".")[0]
            if not module:
                raise UserError(f"{name} learns outside any module, and PEFT saves modules: put it into one")
            modules.add(module)
    in_base = names_in_base(model)
    for name in tensors:
        if in_base(name) != name and _within(name, modules):
            raise UserError(f"{name} stands under what learns whole and has LoRA: PEFT saves one of the two")
    return {name: p for name, p in tensors.items() if ".lora_" in name or _within(name, modules)}


def also_saved(
    model: nn.Module, config: PeftConfig, tensors: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """What the configuration asks for beside `tensors`: `classifier` names DistilBERT's `pre_classifier` too.

    Raises `UserError` where LoRA stands under such a module: PEFT saves one of the two.
    """
    more = {name: p for name, p in model.named_parameters() if config.saves(name) and name not in tensors}
    in_base = names_in_base(model)
    for name in more:
        if in_base(name) != name:
            told = f"{name} has LoRA, and its name ends as that of a module that learns whole"
            raise UserError(f"{told}: PEFT would save one of the two; leave one of them as it is")
    return more


def configuration(model: nn.Module, whole: list[str], base_name: str | None) -> dict[str, object]:
    """The configuration that gives, in PEFT and here, the model's LoRA layers and the parameters in `whole`.

    Raises `UserError` if the layers differ in dropout, or in whether they are DoRA's, which it cannot say.
    """
    layers = dict(lora_layers(model))
    dropouts = {layer.lora_dropout.p for layer in layers.values()} or {0.0}
    if len(dropouts) > 1:
        raise UserError("the LoRA layers differ in dropout, and PEFT knows one for all: set them alike")
    kinds = {isinstance(layer, DoRALinear) for layer in layers.values()}
    if len(kinds) > 1:
        raise UserError("some LoRA layers are DoRA's and some not, and PEFT knows one kind for all")
    values = {"peft_type": "LORA", "bias": "none", "inference_mode": True, "init_lora_weights": True}
    values["lora_dropout"] = dropouts.pop()
    values |= {"use_dora": True} if True in kinds else {}
    values["base_model_name_or_path"] = base_name or getattr(model, "name_or_path", None)
    heads = {name for name, _ in model.named_parameters() if PeftConfig(task_type="SEQ_CLS").saves(name)}
    values["task_type"] = "SEQ_CLS" if "score.weight" in whole and heads <= set(whole) else None
    # Modules by their last name, if that names just what learns whole, else in full.
    modules = sorted({name.split(".")[-2] for name in whole})
    by_last = _understood({**values, "modules_to_save": modules})
    if {name for name, _ in model.named_parameters() if by_last.saves(name)} != set(whole):
        modules = sorted({name.rpartition(".")[0] for name in whole})
    # PEFT names both of the usual heads for every sequence classifier.
    values["modules_to_save"] = HEADS if modules == ["score"] and values["task_type"] else modules
    # Targets by the first spelling that names just these layers: what follows the block numbers, the full
    # names, a regex (another name may end in a full one).
    short = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in layers})
    for spelling in (short or ["attn.c_attn"], sorted(layers), "|".join(map(re.escape, layers))):
        values["target_modules"] = spelling
        targets = _understood(values).targets(model)
        if targets.keys() == layers.keys() or not layers:
            break
    if not (targets or layers):
        told = "no layer is left for the LoRA that PEFT's format needs: attn.c_attn is not there or learns"
        raise UserError(f"{told}; save the whole model with its save_pretrained")
    bases = [getattr(module, "base_layer", module) for module in targets.values()]
    values["fan_in_fan_out"] = any(getattr(b, "fan_in_fan_out", isinstance(b, Conv1D)) for b in bases)
    return values | _ranks_and_alphas(layers)


def _ranks_and_alphas(layers: dict[str, LoRALinear]) -> dict[str, object]:
    """r, lora_alpha and use_rslora, with patterns for the layers that have others than the most."""
    stabilized = bool(layers) and all(layer.rank_stabilized for layer in layers.values())
    ranks = {name: layer.rank for name, layer in layers.items()} or {"": 1}
    alphas = {name: _alpha(layer, stabilized) for name, layer in layers.items()}
    values: dict[str, object] = {"use_rslora": True} if stabilized else {}
    for key, pattern, of in (
        ("r", "rank_pattern", ranks),
        ("lora_alpha", "alpha_pattern", alphas or {"": 1}),
    ):
        of = {name: int(value) if value == int(value) else float(value) for name, value in of.items()}
        values[key] = Counter(of.values()).most_common(1)[0][0]
        # "^", since PEFT puts (.*\.)? before a pattern
        others = {f"^{re.escape(name)}": value for name, value in of.items() if value != values[key]}
        values |= {pattern: others} if others else {}
    return values


def _alpha(layer: LoRALinear, stabilized: bool) -> float:
    """What stands over r, or over its root, for the layer's scaling to come out."""
    return layer.alpha if layer.rank_stabilized == stabilized else layer.scaling * layer.rank


def _within(parameter: str, modules: set[str]) -> bool:
    return any(parameter.startswith(f"{module}.") for module in modules)


def _understood(values: dict[str, object]) -> PeftConfig:
    return understand(values, Path(CONFIG))

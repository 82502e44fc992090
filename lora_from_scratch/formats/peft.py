"""Adapter files in PEFT's on-disk format, both ways: adapter_config.json and adapter_model.safetensors.

What is saved is exactly what has `requires_grad`: LoRA's A and B, and whole modules (the head always). PEFT
reads the files as its own; `load_adapter` reads PEFT's, and refuses whatever it would get silently wrong.
"""

import json
import re
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.base.fingerprint import check_base, fingerprints
from lora_from_scratch.base.load import BUNDLED
from lora_from_scratch.core.surgery import inject_lora, is_suffix, lora_layers
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.adapted import HEAD_WEIGHT, MERGED, Adapted, load_base
from lora_from_scratch.formats.files import appearing
from lora_from_scratch.formats.tensors import Tensors, check_shapes, fill, read_tensors, write_tensors

TITLE = "peft"
CONFIG, WEIGHTS = FILES = ("adapter_config.json", "adapter_model.safetensors")
PREFIX = "base_model.model."

# What a plain LoRA's configuration may hold. Any other key has to be neutral: a value there asks for what is
# not implemented here, and the logits would come out wrong.
KINDS = {"r": int, "lora_alpha": (int, float), "target_modules": (list, str), "lora_dropout": (int, float)}
UNDERSTOOD = {*KINDS, "fan_in_fan_out", "modules_to_save", "peft_type"}
HARMLESS = {"auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core", "peft_version"}
HARMLESS |= {"qalora_group_size", "revision", "task_type"}
NEUTRAL = (None, False, "", "none", [], {})
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")  # the others change the base's weights

IN_PEFT = """\
In PEFT:

```python
{imports}from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base})
base = AutoModelForSequenceClassification.from_pretrained({base}, num_labels={labels}, dtype="float32")
base.config.pad_token_id = tokenizer.eos_token_id
model = PeftModel.from_pretrained(base, ".")
```

"""


def is_in(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def save(adapted: Adapted, folder: Path) -> None:
    """`save_adapter` for a model with its tokenizer and the name of its base."""
    save_adapter(adapted.model, folder, adapted.base_name, adapted.tokenizer)


def load(folder: Path, base_name: str | None = None) -> Adapted:
    """The base that the files name, with `load_adapter` applied; raises what that and `load_base` do."""
    name = base_name or read_config(folder).get("base_model_name_or_path")
    tensors, metadata = read_tensors(folder / WEIGHTS)
    base = load_base(folder / WEIGHTS, name, metadata, tensors.get(PREFIX + HEAD_WEIGHT))
    load_adapter(base.model, folder, base.tokenizer)
    return base


def how_to_load(base_name: str, labels: int) -> list[str]:
    imports, base = "", repr(base_name)
    if base_name == BUNDLED:
        imports, base = "from lora_from_scratch.base.load import BUNDLED_MODEL\n", "str(BUNDLED_MODEL)"
    return (IN_PEFT.format(imports=imports, base=base, labels=labels) + MERGED).splitlines()


def save_adapter(
    model: nn.Module, folder: Path, base_name: str | None = None, tokenizer: Tokenizer | None = None
) -> None:
    """Write what was trained into `folder` as a PEFT adapter.

    A model without LoRA layers (`prelayer`) gets all-zero rank-1 ones in the files, around `attn.c_attn`,
    because PEFT knows no adapter that only saves modules.

    `base_name` is what the configuration calls the base (None: the model's own `name_or_path`). The
    fingerprint of `tokenizer`, the one of the training, travels in the metadata.

    Raises `UserError` if the LoRA layers differ in rank, alpha or dropout, which one configuration cannot
    say, and `OSError` if the folder cannot be written to.
    """
    tensors = {n: p for n, p in model.named_parameters() if p.requires_grad or ".lora_" in n}
    whole = [name for name in tensors if ".lora_" not in name]
    config = _configuration(model, whole, base_name)
    if len(whole) == len(tensors):
        shapes = _lora_shapes(_targeted(model, config["target_modules"]), config["r"])
        tensors |= {name: torch.zeros(shape) for name, shape in shapes.items()}
    metadata = fingerprints(model, tokenizer, whole)
    if hasattr(model, "config"):
        metadata["labels"] = json.dumps(Adapted(model, tokenizer, base_name).label_names)
    with appearing(folder) as aside:
        write_tensors({_file_key(n): tensor for n, tensor in tensors.items()}, aside / WEIGHTS, metadata)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (aside / CONFIG).write_text(text, encoding="utf-8")


def load_adapter(model: nn.Module, folder: Path, tokenizer: Tokenizer | None = None) -> nn.Module:
    """Put the adapter of a folder into the model it was trained on, and let exactly its parameters learn.

    The files may come from here or from PEFT. All is checked before the model is touched. Files without this
    project's fingerprint of the base load with a warning, since nothing then says which base they belong to.

    Raises `UserError` if a file is missing, damaged, or asks for what is not implemented here; a tensor is
    missing, unexpected, misshapen or not finite; or the base's weights or tokenizer are not its own.
    """
    config = read_config(folder)
    stored, metadata = read_tensors(folder / WEIGHTS)
    tensors = _fitting(model, config, stored, folder)
    whole = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    check_base(fingerprints(model, tokenizer, whole), metadata, folder)

    if any(tensor.any() for name, tensor in tensors.items() if name not in whole):
        targets = list(_targeted(model, config["target_modules"]))
        inject_lora(model, targets, config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0))
        fill(model, tensors)
    else:  # the zeros of a model without LoRA layers
        fill(model, whole)
    return model


def read_config(folder: Path) -> dict[str, object]:
    """The adapter's configuration; raises `UserError` unless it is there, whole, and of a plain LoRA."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # bytes that are not UTF-8, text that is not JSON
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is not LORA, the only kind that is implemented here")
    for key, value in config.items():
        neutral = INITIALISATIONS if key == "init_lora_weights" else NEUTRAL
        if key not in UNDERSTOOD | HARMLESS and value not in neutral:
            raise UserError(f"{path}: {key} = {value!r} is not implemented here")
    for key, kind in KINDS.items():
        if not isinstance({"lora_dropout": 0.0, **config}.get(key), kind):
            raise UserError(f"{path}: {key} = {config.get(key)!r} is of the wrong kind")
    return config


def _configuration(model: nn.Module, whole: list[str], base_name: str | None) -> dict[str, object]:
    layers = dict(lora_layers(model))
    settings = {(layer.rank, layer.alpha, layer.lora_dropout.p) for layer in layers.values()}
    if len(settings) > 1:
        raise UserError("the LoRA layers differ in rank, alpha or dropout: one adapter cannot hold them")
    rank, alpha, dropout = settings.pop() if layers else (1, 1, 0.0)
    targets = ["attn.c_attn"]
    if layers:  # what follows the block numbers, if that names just these layers, else full names
        targets = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in layers})
        if _targeted(model, targets).keys() != layers.keys():
            targets = sorted(layers)
    bases = [getattr(module, "base_layer", module) for module in _targeted(model, targets).values()]
    # Modules by their last name, if that names just what learns whole, else in full.
    modules = sorted({name.split(".")[-2] for name in whole})
    if {name for name, _ in model.named_parameters() if _within(name, modules)} != set(whole):
        modules = sorted({name.rpartition(".")[0] for name in whole})

    config = {"peft_type": "LORA", "bias": "none", "inference_mode": True, "init_lora_weights": True}
    config |= {"r": rank, "lora_dropout": dropout, "target_modules": targets}
    config["lora_alpha"] = int(alpha) if alpha == int(alpha) else alpha
    config["base_model_name_or_path"] = base_name or getattr(model, "name_or_path", None)
    config["fan_in_fan_out"] = any(isinstance(base, Conv1D) for base in bases)
    config["task_type"] = "SEQ_CLS" if "score.weight" in whole else None
    # PEFT names both of the usual heads for every sequence classifier.
    config["modules_to_save"] = ["classifier", "score"] if modules == ["score"] else modules
    return config


def _fitting(model: nn.Module, config: dict[str, object], stored: Tensors, folder: Path) -> Tensors:
    """The tensors of the file, by parameter of the model with its LoRA layers.

    Raises `UserError` unless they are just those that the configuration announces (A and B of every targeted
    layer, and the modules that are saved whole) in the shapes that the model has.
    """
    targets = _targeted(model, config["target_modules"])
    if not targets:
        raise UserError(f"{folder / CONFIG}: {config['target_modules']} matches nothing in this model")
    for key in sorted(stored):
        layer, is_lora, _ = key.removeprefix(PREFIX).rpartition(".lora_")
        if is_lora and layer not in targets:
            raise UserError(f"{folder / WEIGHTS}: unexpected tensor {key}")
    for name, module in targets.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise UserError(f"{folder / CONFIG}: target {name} is a {type(module).__name__} in this model")
    saved = config.get("modules_to_save") or []
    whole = {name: p.shape for name, p in model.named_parameters() if _within(name, saved)}
    shapes = _lora_shapes(targets, config["r"]) | whole
    check_shapes(stored, {_file_key(name): shape for name, shape in shapes.items()}, folder / WEIGHTS)
    return {name: stored[_file_key(name)] for name in shapes}


def _within(parameter: str, modules: list[str]) -> bool:
    """Whether a parameter belongs to a module that one of the dotted suffixes names."""
    parts = parameter.split(".")[:-1]
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(is_suffix(module, path) for module in modules for path in paths)


def _targeted(model: nn.Module, targets: list[str] | str) -> dict[str, nn.Module]:
    """The modules that PEFT's `target_modules` names: dotted suffixes, or one regular expression."""
    modules = dict(model.named_modules())
    if not isinstance(targets, str):
        return {n: m for n, m in modules.items() if any(is_suffix(target, n) for target in targets)}
    try:
        return {n: m for n, m in modules.items() if re.fullmatch(targets, n)}
    except re.error as error:
        raise UserError(f"{CONFIG}: target_modules {targets!r} is no regular expression ({error})") from error


def _lora_shapes(targets: dict[str, nn.Module], rank: int) -> dict[str, tuple[int, int]]:
    """The shapes of A `(r, in_dim)` and B `(out_dim, r)` around each layer, by the parameter's name."""
    shapes = {}
    for name, layer in targets.items():
        in_dim, out_dim = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.T.shape
        shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"] = (rank, in_dim), (out_dim, rank)
    return shapes


def _file_key(name: str) -> str:
    return f"{PREFIX}{name}.weight" if ".lora_" in name else PREFIX + name

"""Adapter files in PEFT's on-disk format, both ways: adapter_config.json and adapter_model.safetensors.

What is saved is what has `requires_grad`, LoRA's A in any case, and whole modules (the head always). PEFT
reads the files as its own; `load_adapter` reads PEFT's, and refuses whatever it would get silently wrong.
"""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.base.fingerprint import check_base, fingerprints
from lora_from_scratch.base.load import BUNDLED, BUNDLED_MODEL
from lora_from_scratch.core.surgery import inject_each, lora_layers
from lora_from_scratch.errors import UserError, printable
from lora_from_scratch.formats.adapted import HEAD_WEIGHT, MERGED, Adapted, load_base, refuse_pickle
from lora_from_scratch.formats.peft_base import base_here, check_architecture
from lora_from_scratch.formats.peft_config import CONFIG, PREFIX, PeftConfig, read_config, shown, understand
from lora_from_scratch.formats.peft_patterns import idle_patterns
from lora_from_scratch.formats.peft_writing import also_saved, configuration, saved_tensors
from lora_from_scratch.formats.seal import check_seal
from lora_from_scratch.formats.tensors import Tensors, check_shapes, fill, read_tensors, write_tensors
from lora_from_scratch.formats.whole_files import appearing
from lora_from_scratch.methods.dora_linear import with_magnitudes
from lora_from_scratch.methods.lora_fa import freeze_A
from lora_from_scratch.methods.plain_lora import as_plain_lora

TITLE = "peft"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
MAGNITUDES = ".lora_magnitude_vector"  # DoRA's, to which PEFT adds no ".weight"
FROZEN = "frozen"  # in the metadata, where B learns and A does not (LoRA-FA)
# What else may stand in a file of PEFT's, and what it asks for.
EMBEDDING = "transformer.wte.weight"
VARIANTS = {
    "lora_embedding_A": "LoRA around embeddings",
    "lora_embedding_B": "LoRA around embeddings",
    "lora_B.bias": "lora_bias",
}

IN_PEFT = """\
In PEFT:

```python
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

names = {names}
labels = dict(id2label=dict(enumerate(names)), label2id=dict((name, i) for i, name in enumerate(names)))
base_name = PeftConfig.from_pretrained(".").base_model_name_or_path
tokenizer = AutoTokenizer.from_pretrained(base_name)
base = AutoModelForSequenceClassification.from_pretrained(base_name, **labels, dtype="float32")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
base.config.pad_token_id = tokenizer.pad_token_id
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
    config = read_config(folder)
    tensors, metadata = _read_weights(folder)
    check_architecture(config, tensors, folder)
    if not base_name and config.revision not in (None, "", "main"):
        told = f"revision {shown(config.revision)} of its base is not looked for here"
        raise UserError(f"{folder / CONFIG}: {told}: download that into a folder, and name it with --model")
    name = base_name or base_here(config.base_model_name_or_path)
    base = load_base(folder / WEIGHTS, name, metadata, tensors.get(PREFIX + HEAD_WEIGHT))
    load_adapter(base.model, folder, base.tokenizer)
    return base


def how_to_load(base_name: str, label_names: list[str]) -> list[str]:
    return (IN_PEFT.format(names=label_names) + MERGED).splitlines()


def save_adapter(
    model: nn.Module, folder: Path | str, base_name: str | None = None, tokenizer: Tokenizer | None = None
) -> None:
    """Write what was trained into `folder` as a PEFT adapter.

    A model without LoRA layers (`prelayer`) gets all-zero rank-1 ones in the files, around `attn.c_attn`,
    because PEFT knows no adapter that only saves modules. A module whose name ends in that of one that
    learns whole is saved with it, as PEFT takes names for endings.

    Layers that are more than LoRA's own are written as plain LoRA that computes the same (`as_plain_lora`).
    `base_name` is what the configuration calls the base (None: the model's own `name_or_path`). The
    fingerprint of `tokenizer`, the one of the training, travels in the metadata.

    Raises `UserError` for what PEFT's format cannot say: LoRA layers that differ in dropout, a parameter that
    learns outside a module or within a LoRA layer. `OSError` if the folder cannot be written to.
    """
    folder, model = Path(folder), as_plain_lora(model)
    tensors = saved_tensors(model)
    whole = [name for name in tensors if ".lora_" not in name]
    name = str(BUNDLED_MODEL) if base_name == BUNDLED else base_name
    values = configuration(model, whole, name)
    config = understand(values, folder / CONFIG)
    tensors |= also_saved(model, config, tensors)
    whole = [name for name in tensors if ".lora_" not in name]
    targets = config.targets(model)
    if len(whole) == len(tensors):
        tensors |= {name: torch.zeros(shape) for name, shape in _lora_shapes(targets, config).items()}
    metadata = fingerprints(model, tokenizer, whole)
    if any(layer.lora_B.requires_grad > layer.lora_A.requires_grad for _, layer in lora_layers(model)):
        metadata[FROZEN] = "lora_A"
    if len(getattr(getattr(model, "config", None), "id2label", ())) > 1:
        metadata["labels"] = json.dumps(Adapted(model, tokenizer, base_name).label_names)
    with appearing(folder) as aside:
        contents = {_file_key(name): tensor for name, tensor in tensors.items()}
        write_tensors(contents, aside / WEIGHTS, metadata, _meaning(config, targets, whole))
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (aside / CONFIG).write_text(text, encoding="utf-8")


def load_adapter(model: nn.Module, folder: Path | str, tokenizer: Tokenizer | None = None) -> nn.Module:
    """Put the adapter of a folder into the model it was trained on, and let exactly its parameters learn.

    The files may come from here or from PEFT. All is checked before the model is touched. Files without this
    project's fingerprint of the base load with a warning, since nothing then says which base they belong to;
    so do settings that have no part in the logits.

    Raises `UserError` if a file is missing, damaged, or asks for what is not implemented here; a tensor is
    missing, unexpected, misshapen or not finite; or the base's weights or tokenizer are not its own.
    """
    folder = Path(folder)
    config = read_config(folder)
    stored, metadata = _read_weights(folder)
    targets = _targets(model, config, folder)
    tensors = _fitting(model, config, targets, stored, folder)
    whole = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    check_base(fingerprints(model, tokenizer, whole), metadata, folder)
    check_seal(folder / WEIGHTS, _meaning(config, targets, whole))
    idle = idle_patterns(config.rank_pattern, config.alpha_pattern, targets)
    if passed_over := [*config.passed_over, *idle]:
        names = ", ".join(printable(key)[:40] for key in passed_over[:3])
        more = f" and {len(passed_over) - 3} more" if len(passed_over) > 3 else ""
        what = f"passed over, as without effect on the logits: {names}{more}"
        warnings.warn(f"{folder / CONFIG}: {what}; delete them there to be rid of this", stacklevel=2)

    if any(tensor.any() for name, tensor in tensors.items() if name not in whole):
        inject_each(model, {name: config.update(name) for name in targets})
        if config.use_dora:
            with_magnitudes(model)
        fill(model, tensors)
        if FROZEN in metadata:
            freeze_A(model)
    else:  # the zeros of a model without LoRA layers
        fill(model, whole)
    return model


def _read_weights(folder: Path) -> tuple[Tensors, dict[str, str]]:
    refuse_pickle(folder, "adapter_model.bin", WEIGHTS)
    return read_tensors(folder / WEIGHTS)


def _targets(model: nn.Module, config: PeftConfig, folder: Path) -> dict[str, nn.Module]:
    """The layers that get A and B; raises `UserError` if there is none, or LoRA cannot wrap one."""
    targets = config.targets(model)
    if not targets:
        named = f"target_modules {shown(config.target_modules)}"
        raise UserError(
            f"{folder / CONFIG}: {named} matches nothing in this model: name its own base with --model"
        )
    for name, module in targets.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            what = f"target {name} is of type {type(module).__name__} in this model"
            raise UserError(f"{folder / CONFIG}: {what}: LoRA wraps linear layers here")
    return targets


def _fitting(
    model: nn.Module, config: PeftConfig, targets: dict[str, nn.Module], stored: Tensors, folder: Path
) -> Tensors:
    """The tensors of the file, by parameter of the model with its LoRA layers.

    Raises `UserError` unless they are those that the configuration announces (A and B of every targeted
    layer, and the modules that are saved whole) in the shapes that the model has. What else the model has a
    parameter for may be there too: PEFT loads it, the embeddings that travel along for instance.
    """
    path, parameters = folder / WEIGHTS, {name: p.shape for name, p in model.named_parameters()}
    for key in sorted(stored):
        name = key.removeprefix(PREFIX)
        if name.endswith(MAGNITUDES) and not config.use_dora:
            what = f"{printable(key)[:90]} is DoRA's, and use_dora not true in {CONFIG}"
            raise UserError(f"{path}: {what}: set it there, or take another copy")
        variant = next((what for part, what in VARIANTS.items() if part in name), None)
        if variant:
            raise UserError(
                f"{path}: {printable(key)[:90]} belongs to {variant}, not implemented here: load it with PEFT"
            )
        if "wte." in name and stored[key].shape[1:] == parameters.get(EMBEDDING, ())[1:] != ():
            there, here = len(stored[key]), parameters[EMBEDDING][0]
            if there != here:
                raise UserError(
                    f"{path}: its embeddings were resized to {there} tokens, the base has {here}: save the "
                    "resized base, with its tokenizer, and name it with --model"
                )
    shapes = _lora_shapes(targets, config)
    around = {name.rpartition(".")[0] for name in shapes}
    for name, shape in parameters.items():
        if config.saves(name) or (_file_key(name) in stored and name.rpartition(".")[0] not in around):
            shapes[name] = shape
    check_shapes(stored, {_file_key(name): shape for name, shape in shapes.items()}, path)
    tensors = {name: stored[_file_key(name)] for name in shapes}
    for name in targets:
        A, B = tensors[f"{name}.lora_A"].float(), tensors[f"{name}.lora_B"].float()
        update = config.scaling(name) * (B @ A)
        if not update.abs().sum(dim=1).isfinite().all():  # what comes out where every feature is 1 or -1
            raise UserError(f"{path}: the update of {name} is not finite in fp32: take an earlier checkpoint")
    return tensors


def _lora_shapes(targets: dict[str, nn.Module], config: PeftConfig) -> dict[str, tuple[int, int]]:
    """The shapes of A `(r, in_dim)` and B `(out_dim, r)` around each layer, by the parameter's name."""
    shapes = {}
    for name, layer in targets.items():
        rank = config.update(name)["rank"]
        in_dim, out_dim = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.T.shape
        shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"] = (rank, in_dim), (out_dim, rank)
        if config.use_dora:
            shapes[name + MAGNITUDES] = (out_dim,)
    return shapes


def _meaning(config: PeftConfig, targets: Iterable[str], whole: Iterable[str]) -> str:
    """What the seal covers of the configuration: each layer's update, and what is saved whole."""
    return json.dumps([{name: config.update(name) for name in sorted(targets)}, sorted(whole)], default=float)


def _file_key(name: str) -> str:
    return f"{PREFIX}{name}.weight" if name.endswith((".lora_A", ".lora_B")) else PREFIX + name

"""What PEFT's adapter_config.json asks for: read, checked, and understood by PEFT's own rules.

Source of the rules: PEFT 0.21, https://github.com/huggingface/peft: `LoraConfig`, `get_pattern_key`,
`check_target_module_exists`, and `_set_trainable`, whose suffixes need no dot before them.
"""

import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.surgery import is_suffix, lora_layers
from lora_from_scratch.data.lines import refuse_pointer
from lora_from_scratch.errors import UserError, first_line
from lora_from_scratch.formats.peft_patterns import PATTERN, of_pattern

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
HEADS = ["classifier", "score"]  # PEFT saves both for every sequence classifier
DEFAULT_TARGETS = {"gpt2": ["c_attn"]}  # by the model's type, where the configuration names none

# Keys that would make other logits, or another adapter of the same tensors: refused unless they are neutral.
REFUSED = {"alora_invocation_tokens", "arrow_config", "bias", "ensure_weight_tying", "kasa_config"}
REFUSED |= {"layer_replication", "megatron_config", "monteclora_config", "target_parameters", "use_bdlora"}
REFUSED |= {"lora_bias", "trainable_token_indices", "use_qalora", "velora_config"}
HARMLESS = {"auto_mapping", "fan_in_fan_out", "inference_mode", "megatron_core", "peft_type", "peft_version"}
HARMLESS |= {"init_lora_weights", "qalora_group_size"}
NEUTRAL = (None, False, "", "none", [], {})
INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")  # the others change the base's weights


def _integer(value: object) -> bool:
    return type(value) is int and abs(value) < 2**31


def _rank(value: object) -> bool:
    return _integer(value) and value > 0


def _number(value: object) -> bool:
    return _integer(value) or type(value) is float


def _alpha(value: object) -> bool:
    return _number(value) and 0 < value < math.inf


def _text(value: object) -> bool:
    return isinstance(value, str)


def _list(value: object, of: Callable[[object], bool] = _text) -> bool:
    return isinstance(value, list) and all(map(of, value))


def _table(value: object, of: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(map(of, value.values()))


KINDS = {
    "r": _rank,
    "lora_alpha": _alpha,
    "lora_dropout": lambda value: _number(value) and 0 <= value < 1,
    "target_modules": lambda value: _text(value) or _list(value),
    "exclude_modules": lambda value: _text(value) or _list(value),
    "modules_to_save": _list,
    "layers_to_transform": lambda value: _integer(value) or _list(value, _integer),
    "layers_pattern": lambda value: _text(value) or _list(value),
    "rank_pattern": lambda value: _table(value, _rank),
    "alpha_pattern": lambda value: _table(value, _alpha),
    "use_rslora": lambda value: isinstance(value, bool),
    "use_dora": lambda value: isinstance(value, bool),
    "task_type": _text,
    "base_model_name_or_path": _text,
    "revision": _text,
}
NUMBERS = {"lora_alpha": "a number above 0", "lora_dropout": "a number from 0 to below 1"}
NUMBERS |= {"r": "a whole number above 0", "alpha_pattern": "a table of numbers above 0"}


@dataclass(frozen=True)
class PeftConfig:
    """The keys that say what is computed, with PEFT's defaults for those that are missing or null."""

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None  # of the base
    passed_over: tuple[str, ...] = ()  # keys that change no logits, or that PEFT does not know

    def update(self, name: str) -> dict[str, object]:
        """The arguments of `LoRALinear` for the layer of that name."""
        return {
            "rank": of_pattern(self.rank_pattern, name, self.r),
            "alpha": of_pattern(self.alpha_pattern, name, self.lora_alpha),
            "dropout": self.lora_dropout,
            "rank_stabilized": self.use_rslora,
        }

    def scaling(self, name: str) -> float:
        """What B A is multiplied by in that layer."""
        update = self.update(name)
        return update["alpha"] / (math.sqrt(update["rank"]) if self.use_rslora else update["rank"])

    def targets(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules of the model that get A and B, by name; raises `UserError` if nothing names them."""
        within = {f"{name}.base_layer" for name, _ in lora_layers(model)}
        wanted = self.target_modules
        modules = {name: module for name, module in model.named_modules() if name not in within}
        if wanted is None:
            kind = getattr(getattr(model, "config", None), "model_type", None)
            if kind not in DEFAULT_TARGETS:
                raise UserError(f"{CONFIG}: target_modules is null and this model no GPT-2: name them there")
            wanted = DEFAULT_TARGETS[kind]
        elif isinstance(wanted, str) and wanted.lower() == "all-linear":
            output = getattr(model, "get_output_embeddings", lambda: None)()
            wanted = [n for n, m in modules.items() if isinstance(m, (nn.Linear, Conv1D)) and m is not output]
        return {n: m for n, m in modules.items() if n and not self._excludes(n) and self._names(n, wanted)}

    def saves(self, parameter: str) -> bool:
        """Whether a parameter belongs to a module that is saved whole."""
        parts = (PREFIX + parameter).split(".")[:-1]
        paths = [".".join(parts[: i + 1]) for i in range(2, len(parts))]
        return any(path.endswith(module) for module in self.whole for path in paths)

    @property
    def whole(self) -> list[str]:
        return [*(self.modules_to_save or []), *(HEADS if self.task_type in ("SEQ_CLS", "TOKEN_CLS") else [])]

    def _excludes(self, name: str) -> bool:
        out = self.exclude_modules or []
        named = re.fullmatch(out, name) if isinstance(out, str) else _ends_in(name, out)
        return bool(named) or any(re.match(_SAVED.format(module), name) for module in self.whole)

    def _names(self, name: str, wanted: list[str] | str) -> bool:
        if isinstance(wanted, str):
            return bool(re.fullmatch(wanted, name))
        layers = self.layers_to_transform
        if name in wanted or not _ends_in(name, wanted) or layers in (None, []):
            return _ends_in(name, wanted)
        patterns = self.layers_pattern or []  # "" is any, as in PEFT
        patterns = [_LAYER.format(one) for one in ([patterns] if isinstance(patterns, str) else patterns)]
        found = next((match for one in patterns or [_ANY_LAYER] if (match := re.match(one, name))), None)
        return found is not None and int(found["idx"]) in ([layers] if isinstance(layers, int) else layers)


# PEFT's patterns around what a configuration names.
_SAVED = r"(^|.*\.){}($|\..*)"
_LAYER = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
_ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."


def read_config(folder: Path) -> PeftConfig:
    """The adapter's configuration; raises `UserError` unless it is there, whole, and implemented here."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: no such file: take another copy of the folder")
    refuse_pointer(path)
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        reason = first_line(error)[:80]
        raise UserError(f"{path}: cannot be read as JSON ({reason}): take another copy") from error
    if isinstance(values, dict) and values.get("peft_type") == "PREFIX_TUNING":
        why = "learns keys and values, and moves the tokens behind them, as --method prefix does not"
        raise UserError(f"{path}: PEFT's PREFIX_TUNING {why}: load it with PEFT")
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is not LORA, the only kind that is implemented here: train one")
    return understand(values, path)


def understand(values: dict[str, object], path: Path) -> PeftConfig:
    """`PeftConfig` of what a file holds; raises `UserError` for what would be got wrong."""
    known = {field.name for field in fields(PeftConfig)} - {"passed_over"}
    for key, value in values.items():
        neutral = INITIALISATIONS if key == "init_lora_weights" else NEUTRAL
        if key in {*REFUSED, "init_lora_weights"} and not _is_one_of(value, neutral):
            raise UserError(f"{path}: {key} = {shown(value)} is not implemented here: load it with PEFT")
        if key in known and value is not None and not KINDS[key](value):
            wanted = f"it has to be {NUMBERS[key]}" if key in NUMBERS else "see PEFT's LoraConfig"
            raise UserError(f"{path}: {key} = {shown(value)} is of the wrong kind: {wanted}")
    unused = [key for key in values.keys() - known - REFUSED - HARMLESS if values[key] not in NEUTRAL]
    given = {key: values[key] for key in known if values.get(key) is not None}
    config = PeftConfig(**given, passed_over=tuple(sorted(unused)))
    _check_patterns(config, path)
    if isinstance(config.target_modules, str) and given.keys() & {"layers_to_transform", "layers_pattern"}:
        raise UserError(
            f"{path}: layers_to_transform needs a list of target_modules, as in PEFT: leave one out"
        )
    if config.layers_pattern and config.layers_to_transform is None:
        raise UserError(f"{path}: layers_pattern needs layers_to_transform, as in PEFT: leave it out")
    return config


def _check_patterns(config: PeftConfig, path: Path) -> None:
    patterns = {"target_modules": config.target_modules, "exclude_modules": config.exclude_modules}
    asked = [(key, value, value) for key, value in patterns.items() if isinstance(value, str)]
    layers = config.layers_pattern or []
    for key, names, around in (
        ("modules_to_save", config.whole, _SAVED),
        ("layers_pattern", [layers] if isinstance(layers, str) else layers, _LAYER),
        ("rank_pattern", config.rank_pattern or {}, PATTERN),
        ("alpha_pattern", config.alpha_pattern or {}, PATTERN),
    ):
        asked += [(key, name, around.format(name)) for name in names]
    for key, name, pattern in asked:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a later Python will read otherwise
                re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"{path}: {key} {shown(name)} is no regular expression ({first_line(error)[:60]}): "
                "write .* for anything, or a list of names"
            ) from error


def _ends_in(name: str, suffixes: list[str]) -> bool:
    return any(is_suffix(suffix, name) for suffix in suffixes)


def _is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    """Equal and of the same type: 0 is not False here."""
    return any(type(value) is type(one) and value == one for one in allowed)


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:47]}..."

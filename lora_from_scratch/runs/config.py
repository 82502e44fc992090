"""What one run is asked to do. Plain data: importing this costs nothing, so `--help` answers at once."""

from __future__ import annotations

import hashlib
import re
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING

from lora_from_scratch.base.precisions import BASE_PRECISIONS, FLOAT, quantise
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.errors import UserError
from lora_from_scratch.methods import DEFAULT, METHODS, method_named
from lora_from_scratch.methods.interface import Method, at_least_one, flag, positive

if TYPE_CHECKING:
    import torch
    from transformers import GPT2ForSequenceClassification

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

COUNTS = ("epochs", "batch_size", "gradient_accumulation", "max_length", "limit_train", "max_steps")
COUNTS += ("eval_every", "checkpoint_every")
WITHOUT_BEARING = ("output_dir", "eval_every", "checkpoint_every")  # on the result

# The recipe behind the published table: one learning rate for every method, whatever suits it. LoRA's own
# settings there are this project's defaults.
RECIPES: dict[str, dict[str, object]] = {
    "published": {"epochs": 2, "batch_size": 16, "lr": 2e-4, "weight_decay": 0.01, "max_length": 128}
}


@dataclass(frozen=True, kw_only=True, init=False)
class RunConfig:
    """One run: the flags of `run.py`, under their own names. None means "decided by the rest of the run".

    `RunConfig(method="lora", rank=8)` takes the method's own flags beside the common ones and keeps them in
    `settings`; `dataclasses.replace` takes them too, and another method starts from its own defaults.
    UserError names a value that is out of its range, and a flag of another method.
    """

    method: str = flag(DEFAULT, "how to adapt the model")
    model: str | None = flag(None, "hub id, folder or 'bundled' (default: gpt2; without a hub bundled)")
    random_init: bool = flag(False, "build the model from its configuration alone")
    dataset: str | None = flag(
        None,
        "sst2, a hub id, a file (.csv .tsv .json .jsonl .ndjson .parquet, also .gz), a folder of them, or "
        "'bundled' (default: sst2; without a hub bundled)",
    )
    text_column: str | None = flag(None, "where the text is (default: sentence, else text)", "NAME")
    label_column: str | None = flag(None, "where the label is (default: label)", "NAME")
    positive_class: str | None = flag(
        None, "whose F1 is shown (default: of two labels the second, else the mean of all)", "NAME"
    )
    train_split: str | None = flag(None, "of a hub dataset or a folder (default: train)", "NAME")
    validation_split: str | None = flag(
        None, "of a hub dataset or a folder (default: the first of validation, val, dev, test)", "NAME"
    )
    drop_blank: bool = flag(False, "leave out rows with a blank text")
    max_length: int | None = flag(
        None, "cut sentences there (default: 128, or the model's positions where they are fewer)", "TOKENS"
    )
    limit_train: int | None = flag(None, "train on N sentences, drawn at random", "N")
    epochs: int | None = flag(None, "passes over the sentences (default: 48,000 / sentences, from 2 to 32)")
    max_steps: int | None = flag(None, "stop after N steps", "N")
    eval_every: int | None = flag(
        None, "measure on the validation sentences every N steps and after the last one", "N"
    )
    checkpoint_every: int | None = flag(
        None,
        "keep what --resume needs every N steps (default: every epoch and every ten minutes)",
        "N",
    )
    batch_size: int = flag(16, "sentences a step", "B")
    gradient_accumulation: int = flag(
        1, "parts that a batch is computed in, to hold less in memory; dropout draws other masks", "K"
    )
    lr: float | None = flag(None, "peak learning rate (default: chosen by method; see docs/commands.md)")
    weight_decay: float = flag(0.01, "of matrices alone", "W")
    precision: str = flag("auto", "of the forward pass in training", choices=PRECISIONS)
    base_precision: str = flag(FLOAT, "of the frozen matrices of the blocks", choices=BASE_PRECISIONS)
    plain: bool = flag(False, "train by core/ alone: slower, to read along")
    shard: bool = flag(False, "share weights, gradients and moments out over the processes of torchrun")
    deterministic: bool = flag(False, "on a GPU, too, the same bits each time: slower")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ...")
    seed: int = flag(0, "of all that is drawn: head, adapter, order, dropout, --limit-train's sentences")
    output_dir: str | None = flag(None, "where results land (default: runs/, by method and flags)", "FOLDER")
    settings: object = field(default=None, repr=False)

    def __init__(self, **values: object) -> None:
        method = method_named(values.get("method", DEFAULT))
        settings = values.pop("settings", None)
        for common in fields(self):
            object.__setattr__(self, common.name, values.pop(common.name, common.default))
        for name in values.keys() - method.Settings.__dataclass_fields__:
            owners = [other.name for other in METHODS.values() if name in other.Settings.__dataclass_fields__]
            belongs = f": it belongs to {' and '.join(owners)}" if owners else ", nor of any other"
            raise UserError(f"--{name.replace('_', '-')} is no flag of --method {method.name}{belongs}")
        start = settings if type(settings) is method.Settings else method.Settings()
        object.__setattr__(self, "settings", replace(start, **values))
        self._check()

    def _check(self) -> None:
        for name in ("model", "dataset", "output_dir"):
            if getattr(self, name) == "":
                raise UserError(f"--{name.replace('_', '-')} is empty; name one, or leave the flag out")
        for name, known in (("precision", PRECISIONS), ("base_precision", BASE_PRECISIONS)):
            if (value := getattr(self, name)) not in known:
                told = f"--{name.replace('_', '-')} must be one of {', '.join(known)}"
                raise UserError(f"{told}, not {value!r}")
        if self.base_precision != FLOAT and not self.way.freezes_blocks:
            told = f"--base-precision {self.base_precision} is for frozen weights"
            raise UserError(f"{told}, and --method {self.method} trains all of them; leave it out")
        at_least_one(**{name: getattr(self, name) for name in COUNTS})
        positive(lr=self.lr)
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"--weight-decay must not be negative, not {self.weight_decay:g}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must lie in 0 .. 2^63 - 1, not {self.seed}")

    @property
    def selection(self) -> Selection:
        """What of the dataset is read."""
        return Selection(**{f.name: getattr(self, f.name) for f in fields(Selection)})

    @property
    def way(self) -> Method:
        return method_named(self.method)

    def as_dict(self) -> dict[str, object]:
        """All settings side by side, the method's own first."""
        common = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "settings"}
        return {"method": common.pop("method"), **asdict(self.settings), **common}

    def default_folder(self) -> str:
        """runs/METHOD, and each setting that is not the default and bears on the result."""
        default = RunConfig(method=self.method, model="gpt2", dataset="sst2").as_dict()
        asked = {**self.as_dict(), "model": self.model or "gpt2", "dataset": self.dataset or "sst2"}
        for name in WITHOUT_BEARING:
            del asked[name]
        changed = [f"-{name.replace('_', '-')}-{_word(v)}" for name, v in asked.items() if v != default[name]]
        return f"runs/{self.method}{''.join(changed)}"


def adapt(
    model: GPT2ForSequenceClassification, config: RunConfig, generator: torch.Generator | None = None
) -> GPT2ForSequenceClassification:
    """Make the model ready for `config.method`, in place; the generator draws what is new, LoRA's A.

    Its frozen matrices are then kept in `config.base_precision`. UserError if the model lacks what the
    settings name, or holds what a method added before: no file would say that of it. It is then as it was.
    """
    from lora_from_scratch.base.fingerprint import is_added

    if added := next((name for name, _ in model.named_parameters() if is_added(name)), None):
        raise UserError(f"this model was adapted before, and has {added}: merge it, or load its base anew")
    _rehearse(model, config)
    return config.way.adapt(quantise(model, config.base_precision), config.settings, generator)


def _rehearse(model: GPT2ForSequenceClassification, config: RunConfig) -> None:
    """Raise what the method refuses on a model of the same shapes, without memory: nothing is then to be
    undone in the other, and what has been quantised could not be. Neither draws nor warnings are left.
    """
    import torch

    with torch.device("meta"):
        shapes = type(model)(model.config)
    draws, numbers = torch.random.fork_rng(devices=()), suppress(RuntimeError)  # a method may read numbers
    with draws, numbers, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config.way.adapt(shapes, config.settings, torch.Generator())


def _word(value: object) -> str:
    """A setting's value as a part of a folder's name; what cannot stand there is told apart by a digest."""
    text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
    name = re.sub(r"[^\w.+-]", "", text.rstrip("/").rpartition("/")[2])[-40:]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

"""What one run is asked to do. Plain data: importing this costs nothing, so `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lora_from_scratch.errors import UserError

METHODS = ("none", "head", "full", "lora", "prelayer")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

BUNDLED = "bundled"
DEFAULT_MODEL = "gpt2"
DEFAULT_DATASET = "sst2"

# The recipe behind the published table: one learning rate for every method, whatever suits it.
RECIPES: dict[str, dict[str, object]] = {
    "published": {
        "rank": 4,
        "alpha": 16.0,
        "dropout": 0.05,
        "target_modules": ("attn.c_attn",),
        "epochs": 2,
        "batch_size": 16,
        "lr": 2e-4,
        "weight_decay": 0.01,
        "max_length": 128,
    }
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: the flags of `run.py`, under their own names. None means "decided by the rest of the run".

    Raises:
        UserError: a value is out of its range.
    """

    method: str = "lora"
    rank: int = 4
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("attn.c_attn",)
    model: str | None = None
    dataset: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    epochs: int | None = None
    batch_size: int = 16
    lr: float | None = None
    weight_decay: float = 0.01
    max_length: int = 128
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    output_dir: str | None = None
    limit_train: int | None = None
    max_steps: int | None = None
    random_init: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{_flag(name)} must be one of {', '.join(choices)}, not {getattr(self, name)!r}"
                )
        for name in ("rank", "epochs", "batch_size", "max_length", "limit_train", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_flag(name)} must be at least 1, not {value}")
        for name in ("alpha", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{_flag(name)} must be a positive number, not {value:g}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must lie in [0, 1), not {self.dropout:g}")
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"--weight-decay must not be negative, not {self.weight_decay:g}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must lie in 0 .. 2^63 - 1, not {self.seed}")


def default_of(name: str) -> object:
    """The default of one field, for help texts."""
    return next(field.default for field in fields(RunConfig) if field.name == name)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

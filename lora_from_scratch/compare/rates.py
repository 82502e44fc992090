"""The learning rates that a tuning chose, for whoever compares with `--recipe tuned`."""

import json
from pathlib import Path

from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.runs.config import RunConfig

FILE, TUNED = "rates.json", "tuned"  # TUNED: the recipe that reads it
OF_TRAINING = ("epochs", "max_steps", "batch_size", "weight_decay", "limit_train")
ADVICE = "tune it with run.py tune, or name a rate with --lr"


class Rates:
    """What rates.json of a tuning holds."""

    def __init__(self, path: Path) -> None:
        """UserError if there is no such file, or it is none of a tuning."""
        self.path = path
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            self._sources = record["sources"]
            chosen = [(one["method"], one["settings"], one["chosen"]) for one in record["variants"]]
            self._chosen = [
                (method, settings, float(lr)) for method, settings, lr in chosen if lr is not None
            ]
        except FileNotFoundError:
            raise UserError(
                f"--recipe tuned: there is no {path}; run.py tune writes it, or name another with --rates"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--rates {path} is no file that run.py tune wrote; name another") from error

    def rate(self, config: RunConfig, sources: dict[str, str]) -> float | None:
        """The rate for a config with every choice decided; None where its method trains nothing.

        UserError if nothing was tuned for these settings, or on another base or dataset.
        """
        if not config.way.trains:
            return None
        for what, name in (
            ("data", f"dataset {quoted(config.dataset)}"),
            ("base_weights", f"model {quoted(config.model)}"),
        ):
            if sources[what] != self._sources[what]:
                raise UserError(f"{self.path} was not tuned on {name}; {ADVICE}")
        asked = settings_of(config)
        for method, settings, lr in self._chosen:
            if method == config.method and settings == asked:
                return lr
        own = ", ".join(f"{name} {value}" for name, value in list(asked.items())[: -len(OF_TRAINING)])
        raise UserError(
            f"{self.path} has no rate for {config.method} with {own or 'these settings'}; {ADVICE}"
        )


def settings_of(config: RunConfig) -> dict[str, object]:
    """What a rate is tuned for: the method's own settings, and how it is trained."""
    values, own = config.as_dict(), config.way.Settings.__dataclass_fields__
    return {name: list(v) if isinstance(v := values[name], tuple) else v for name in (*own, *OF_TRAINING)}

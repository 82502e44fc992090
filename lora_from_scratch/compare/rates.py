"""The learning rates that a tuning chose, for whoever compares with `--recipe tuned`."""

import json
from pathlib import Path

from lora_from_scratch.base.precisions import FLOAT, KEY
from lora_from_scratch.compare.plan import setting
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.methods import method_named
from lora_from_scratch.runs.config import RunConfig

FILE, TUNED = "rates.json", "tuned"  # TUNED: the recipe that reads it
OF_TRAINING = ("epochs", "max_steps", "batch_size", "weight_decay", "limit_train", "max_length", KEY)
# What files of earlier versions say nothing of: they were made with the defaults, which were these.
EARLIER = {"max_length": 128, KEY: FLOAT}
BY = ("command", "date", "code")  # what a variant was tuned by
SEEDS = (100, 101, 102)  # of a tuning: others than a comparison's
ADVICE = "tune it with run.py tune, or name a rate with --lr"


class Rates:
    """What rates.json of a tuning holds."""

    def __init__(self, path: Path) -> None:
        """UserError if there is no such file, or it is none of a tuning."""
        self.path = path
        try:
            record = self._record = json.loads(path.read_text(encoding="utf-8"))
            self._sources = {what: record["sources"][what] for what in ("data", "base_weights")}
            for one in record["variants"]:
                one["settings"] = {**EARLIER, **one["settings"]}
            variants = [(one["method"], dict(one["settings"]), one["chosen"]) for one in record["variants"]]
            self._chosen = [(method, of, float(lr)) for method, of, lr in variants if lr is not None]
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
        for what, digest in self._sources.items():
            if sources[what] != digest:
                flag, name = ("dataset", config.dataset) if what == "data" else ("model", config.model)
                raise UserError(f"{self.path} was not tuned on {flag} {quoted(name)}; {ADVICE}")
        asked, lacking = settings_of(config), []
        for method, settings, lr in self._chosen:
            if method == config.method:
                if settings == asked:
                    return lr
                lacking.append([name for name in asked if asked[name] != settings.get(name)])
        least = min(lacking, key=len, default=[])  # of the one that is most like it
        label = ", ".join([config.method, *(setting(name, config.as_dict()[name]) for name in least)])
        raise UserError(f"{self.path} has no rate for {label}; {ADVICE}")

    def fit(self, sources: dict[str, str]) -> bool:
        """Whether they were tuned on this data and base."""
        return all(sources[what] == digest for what, digest in self._sources.items())

    def added_to(self, found: dict[str, object]) -> dict[str, object]:
        """A later tuning's record on the same data and base, with the variants that it has no rate for."""
        tuned = [_tuned(one) for one in found["variants"] if one["chosen"] is not None]
        by = {name: self._record[name] for name in BY}
        kept = [{**by, **one} for one in self._record["variants"] if _tuned(one) not in tuned]
        names = [_tuned(one) for one in kept]
        return {**found, "variants": [*kept, *(one for one in found["variants"] if _tuned(one) not in names)]}


def _tuned(variant: dict[str, object]) -> tuple[object, object]:
    return variant["method"], variant["settings"]


def tuned_apart(method: str) -> set[str]:
    """The flags whose values have a rate each."""
    return {*method_named(method).Settings.__dataclass_fields__, *OF_TRAINING}


def settings_of(config: RunConfig) -> dict[str, object]:
    """What a rate is tuned for: the method's own settings, and how it is trained."""
    values, own = config.as_dict(), config.way.Settings.__dataclass_fields__
    return {name: list(v) if isinstance(v := values[name], tuple) else v for name in (*own, *OF_TRAINING)}

"""What runs share: each base is loaded once, each dataset read and tokenised once."""

from collections.abc import Callable
from dataclasses import fields, replace

from lora_from_scratch.base.load import lasting_name
from lora_from_scratch.data.dataset import Dataset
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.runs.config import RunConfig, adapt
from lora_from_scratch.runs.prepare import decided
from lora_from_scratch.runs.random_draws import generator_for
from lora_from_scratch.runs.sources import Sources, find_sources

NAMED = ("model", "dataset")  # one however its path is spelled
OF_SOURCES = ("random_init", "positive_class", *(f.name for f in fields(Selection)))


class Shared:
    """The sources of a config, found when they are first asked for; `of` makes the dataset another one."""

    def __init__(self, of: Callable[[Dataset], Dataset] = lambda dataset: dataset) -> None:
        self._of, self._found, self._read = of, {}, {}

    def __call__(self, config: RunConfig) -> Sources:
        key = _key(config)
        if key not in self._found:
            read = find_sources(config, keep=True)
            named = replace(config, model=read.model_name, dataset=read.dataset_name)
            made = replace(read, dataset=self._of(read.dataset))
            self._found[key] = self._found.setdefault(_key(named), made)
            self._read.setdefault(id(self._found[key]), (read, read.dataset.fingerprint()))
        return self._found[key]

    def found(self) -> list[Sources]:
        """All that were found, each once."""
        return list({id(sources): sources for sources in self._found.values()}.values())

    def data_fingerprint(self, config: RunConfig) -> str:
        """Of the dataset as it was read, whatever was made of it."""
        return self._read[id(self(config))][1]

    def decided(self, config: RunConfig) -> RunConfig:
        """The config with every open choice filled in. UserError if the base lacks what it names.

        That goes by the dataset as it was read: where sentences are held out, runs are as long as with them.
        """
        read, _ = self._read[id(self(config))]
        model = read.base(config.seed)
        config = decided(config, read, model.config)
        adapt(model, config, generator_for(config.seed, "adapter"))  # told now, not when its turn comes
        return config


def _key(config: RunConfig) -> tuple[object, ...]:
    names = [(name := getattr(config, of)) and lasting_name(name) for of in NAMED]
    return (*names, *(getattr(config, name) for name in OF_SOURCES))

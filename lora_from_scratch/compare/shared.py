"""What runs share: each base is loaded once, each dataset read and tokenised once."""

from collections.abc import Callable
from dataclasses import fields, replace

from lora_from_scratch.data.dataset import Dataset
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.prepare import decided
from lora_from_scratch.runs.sources import Sources, find_sources

OF_SOURCES = ("model", "dataset", "random_init", "positive_class", *(f.name for f in fields(Selection)))


class Shared:
    """The sources of a config, found when they are first asked for; `of` makes the dataset another one."""

    def __init__(self, of: Callable[[Dataset], Dataset] = lambda dataset: dataset) -> None:
        self._of, self._found, self._read = of, {}, {}

    def __call__(self, config: RunConfig) -> Sources:
        key = _key(config)
        if key not in self._found:
            sources = find_sources(config, keep=True)
            whole = sources.dataset.fingerprint()
            sources = replace(sources, dataset=self._of(sources.dataset))
            named = replace(config, model=sources.model_name, dataset=sources.dataset_name)
            self._found[key] = self._found.setdefault(_key(named), sources)
            self._read[id(self._found[key])] = whole
        return self._found[key]

    def found(self) -> list[Sources]:
        """All that were found, each once."""
        return list({id(sources): sources for sources in self._found.values()}.values())

    def data_fingerprint(self, config: RunConfig) -> str:
        """Of the dataset as it was read, whatever was made of it."""
        return self._read[id(self(config))]

    def decided(self, config: RunConfig) -> RunConfig:
        """The config with every open choice filled in."""
        sources = self(config)
        return decided(config, sources, sources.base(config.seed).config)


def _key(config: RunConfig) -> tuple[object, ...]:
    return tuple(getattr(config, name) for name in OF_SOURCES)

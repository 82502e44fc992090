"""Labelled sentences of a dataset on the hub, or in its cache."""

import glob
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_from_scratch.data.rows import Rows, Selection, collect
from lora_from_scratch.errors import UserError, quoted

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ALIASES = {"sst2": "nyu-mll/glue/sst2"}  # what stands behind a short name
OWNERS = {"glue": "nyu-mll/glue", "tweet_eval": "cardiffnlp/tweet_eval"}  # of datasets that once had none
SECOND = ("validation", "val", "dev", "test")  # the split to measure on, if nobody says


def rows_of_hub(name: str, selection: Selection) -> tuple[Rows, Rows, str]:
    """Rows for training and for measuring, and the second split's name.

    `name` is a short name, owner/name, name/configuration or owner/name/configuration. Raises NotFound where
    the hub does not give it and its cache does not hold it; UserError where it does not load, or lacks a
    split or a column, or holds a value that is none.
    """
    splits = _load(name)
    second = _split_named(name, splits, selection.validation_split, SECOND, "--validation-split")
    first = _split_named(name, splits, selection.train_split, ("train",), "--train-split")
    return *(_rows(name, split, splits[split], selection) for split in (first, second)), second


def is_hub_name(name: str) -> bool:
    """Whether a name that is nothing here may be one of the hub's."""
    return name.count("/") <= 2 and not name.startswith((".", "/", "~"))


def warn_of_shadow(name: str) -> None:
    """Warn where a file or folder here has the name of a dataset that the hub is known to have."""
    whole = _known(name) if is_hub_name(name) and os.path.exists(name) else None
    if whole:
        elsewhere = whole == name
        that = "run elsewhere for that one" if elsewhere else f"for that one say --dataset {whole}"
        yours = f"or say --dataset ./{name}" if elsewhere else f"for yours ./{name}"
        warnings.warn(f"dataset {name} is ./{name} here, not the hub's: {that}, {yours}", stacklevel=2)


def _known(name: str) -> str | None:
    """The whole name of a dataset that the hub is known to have: by its short name, or from a cache.

    Where the caches lie is asked of the environment, as the libraries do: they read it, and whether the hub
    may be asked, when they are imported, which is too early here.
    """
    if name in ALIASES or name.partition("/")[0] in OWNERS:
        return _whole(name)
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    hub = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    caches = (
        (os.environ.get("HF_HUB_CACHE", hub), "datasets--", "--"),
        (os.environ.get("HF_DATASETS_CACHE", os.path.join(home, "datasets")), "", "___"),
    )
    for repository, configuration in _candidates(name):
        file = glob.escape(repository)
        for cache, prefix, slash in caches:
            folder = Path(cache).expanduser()
            for pattern in (file,) if "/" in file else (f"*/{file}", file):
                for found in sorted(folder.glob(prefix + pattern.replace("/", slash)))[:1]:
                    whole = found.name.removeprefix(prefix).replace(slash, "/")
                    return f"{whole}/{configuration}" if configuration else whole
    return None


def _whole(name: str) -> str:
    first, slash, rest = ALIASES.get(name, name).partition("/")
    return OWNERS.get(first, first) + slash + rest


def _candidates(name: str) -> list[tuple[str, str | None]]:
    """What a name may mean, the likelier first: a repository, and a configuration of it."""
    whole = _whole(name)
    parts = whole.split("/")
    if len(parts) == 3:
        return [("/".join(parts[:2]), parts[2])]
    return [(whole, None), (parts[0], parts[1])] if len(parts) == 2 else [(whole, None)]


def _load(name: str) -> "DatasetDict":
    """All splits of the first of the candidates that is there; the failure of the first where none is."""
    import datasets  # a second's import, needed here alone

    from lora_from_scratch.base import hub

    failures = []
    for repository, configuration in _candidates(name):
        with hub.asking() as answers:
            try:
                # By its address: a folder here that is called as the repository is not meant.
                return datasets.load_dataset(f"hf://datasets/{_owned(repository)}", configuration)
            except Exception as error:  # of many kinds: what the hub said decides
                known = _of_configurations(name, repository, configuration, error)
                if known and not (answers.trouble or answers.refusal):
                    failure, elsewhere = known, False
                elif hub.is_offline() and isinstance(error, OSError):
                    failure, elsewhere = hub.out_of_reach("dataset", name), True
                else:
                    failure = answers.failure("dataset", name, error)
                    elsewhere = answers.refusal in ("missing", "private")
                failure.__cause__ = error
        failures.append(failure)
        if not elsewhere:
            raise failure
    raise failures[0]


def _owned(repository: str) -> str:
    """The id with its owner of a dataset that is called without: the hub knows, and else its cache may."""
    import datasets
    from huggingface_hub import dataset_info

    from lora_from_scratch.base import hub

    if "/" in repository:
        return repository
    if not hub.is_offline():
        return dataset_info(repository).id
    cached = list(Path(datasets.config.HF_DATASETS_CACHE).glob(f"*___{repository}"))
    return cached[0].name.replace("___", "/") if len(cached) == 1 else repository


def _of_configurations(
    name: str, repository: str, configuration: str | None, error: Exception
) -> UserError | None:
    """What `datasets` says of configurations, in this project's words; None where it speaks of others."""
    from lora_from_scratch.base import hub

    text, named = str(error), f"dataset {quoted(name, length=40)}"
    found = re.search(r"\[(.*?)\]", text) or re.search(r"in the cache: (.*)", text)
    there = re.sub(r"['\"]", "", found[1]) if found else ""
    if empty := re.search(r'"(.+?)" corresponds to no data', text):
        return _no_rows(name, empty[1])
    if "BatchSize must be greater than 0" in f"{text} {error.__cause__}":  # of Parquet; which is not said
        return UserError(f"{named}: one of its splits holds no rows: name another dataset or configuration")
    if "Couldn't find cache for" in text:
        return hub.out_of_reach("dataset", name, f"the configuration {configuration}")
    if not isinstance(error, ValueError) or "onfig" not in text or not there:
        return None
    has = f"has no configuration {configuration}" if configuration else "has several configurations"
    example = f"{repository}/{there.partition(',')[0]}"
    return UserError(f"{named} {has}: name one of {there[:60]}, as in --dataset {example}")


def _split_named(
    name: str, splits: Mapping[str, object], asked: str | None, usual: tuple[str, ...], flag: str
) -> str:
    for split in (asked,) if asked else usual:
        if split in splits:
            return split
    wanted, there = quoted(asked) if asked else " or ".join(usual), ", ".join(splits)[:80]
    raise UserError(f"dataset {quoted(name)} has no split {wanted}: name one of {there} with {flag}")


def _rows(name: str, split: str, table: "Dataset", selection: Selection) -> Rows:
    source = f"dataset {quoted(name)}, split {split}"
    if not len(table):
        raise _no_rows(name, split)
    text, label = selection.found_in(table.column_names, source)
    label_names = getattr(table.features[label], "names", None)
    values = zip(range(len(table)), table[text], table[label], strict=True)
    return collect(values, source, "row", selection.drop_blank, label_names)


def _no_rows(name: str, split: str) -> UserError:
    source = f"dataset {quoted(name)}, split {split}"
    return UserError(f"{source} holds no rows: name another with --train-split or --validation-split")

"""Mistakes that are told at once: before torch and transformers are imported, which takes seconds.

A check returns the flags as the command takes them.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lora_from_scratch.compare.plan import asked_for, in_order, strangers, values_for, with_one_methods_values
from lora_from_scratch.compare.rates import FILE, SEEDS, TUNED, Rates, tuned_apart
from lora_from_scratch.data.dataset import local_files
from lora_from_scratch.data.files import open_table
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.methods.interface import at_least_one, positive
from lora_from_scratch.runs import texts_to_label as sources
from lora_from_scratch.runs.config import RECIPES, RunConfig
from lora_from_scratch.runs.writable import RESULTS, check_new_file, check_place

Flags = dict[str, object]
OF_PLAN = ("seeds", "recipe", "rates", "reference", "margin")  # of many runs, not of each


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what no file and no library takes: bytes of the command line that are no UTF-8."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            given = os.fsencode(argument)
            shown = given.decode(errors="backslashreplace")[:60]
            advice = "is not UTF-8; type it or rename it in UTF-8"
            if "\\x" not in shown:
                advice = "is UTF-8, which this locale does not take; set PYTHONUTF8=1"
            raise UserError(f"the argument {shown} {advice}") from None


def check_run(config: RunConfig, dry_run: bool) -> None:
    """The dataset, where it is a local one, and the folder for what is trained."""
    if config.dataset:
        _check_dataset(config.dataset, config.selection)
    if not dry_run:
        check_place(Path(config.output_dir or config.default_folder()))


def check_command(name: str, flags: Flags) -> Flags:
    """A command's flags as it takes them. UserError for what can be known to be wrong with them."""
    adapter = flags.get("adapter")
    if adapter is not None and not adapter.is_dir():
        raise UserError(f"--adapter {adapter}: no such folder; name the one that a run printed at its end")
    if flags.get("model") == "":
        raise UserError("--model is empty; name one, or leave the flag out")
    check = BY_NAME.get(name)
    return check(**flags) if check else flags


def _check_predict(
    texts: list[str],
    file: Path | None,
    dataset: Path | None,
    output: Path | None,
    text_column: str | None,
    as_json: bool,
    drop_blank: bool,
    **others: object,
) -> Flags:
    if (len(texts) > 0) + (file is not None) + (dataset is not None) > 1:
        raise UserError("texts, --file and --dataset do not go together; give one of them")
    if dataset is None:
        if output or text_column:
            flag = "--output" if output else "--text-column"
            raise UserError(f"{flag} belongs to a table; name it with --dataset")
        found = sources.given(texts, drop_blank) if texts else sources.lines(file, drop_blank)
        typed = not texts and file is None and sys.stdin.isatty()
        return {"texts": found, "typed": typed, "as_json": as_json, **others}
    if output is None:
        raise UserError("--dataset needs a file for the labelled table; name it with --output labelled.csv")
    if as_json:
        raise UserError("--json does not go with --dataset; end --output in .jsonl")
    check_new_file(output, "--output")
    rows = sources.read_table(dataset, text_column, drop_blank, output)
    return {"table": (dataset, rows, output), **others}


def _check_merge(out: Path, **others: object) -> Flags:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder; name a new one")
    check_place(out, "--out")
    return {"out": out, **others}


def _check_explain(text: str, output_dir: Path | None, **others: object) -> Flags:
    if not text.strip():
        raise UserError("the text is blank; give one with words in it")
    if output_dir is not None:
        check_place(output_dir)
    return {"text": text, "output_dir": output_dir, **others}


def _check_truncate(out: Path, rank: int, **others: object) -> Flags:
    at_least_one(rank=rank)
    return {"rank": rank, **_check_merge(out, **others)}


def _check_inspect(
    adapter: Path, beside: Sequence[Path], label_names: list[str] | None, output_dir: Path, **flags: object
) -> Flags:
    for folder in beside:
        if not folder.is_dir():
            raise UserError(f"--beside {folder}: no such folder; name the one that a run printed at its end")
    asked = RunConfig(**flags)
    check_place(output_dir)
    if asked.dataset:
        _check_dataset(asked.dataset, asked.selection, whole=True)
    own = {"beside": beside, "label_names": label_names, "output_dir": output_dir}
    return {"adapter": adapter, "asked": asked, **own}


def _check_evaluate(adapter: Path, label_names: list[str] | None, **flags: object) -> Flags:
    asked = RunConfig(**flags)
    if asked.output_dir and Path(asked.output_dir, RESULTS).exists():
        raise UserError(f"--output-dir {asked.output_dir} holds results already; name another")
    check_place(Path(asked.output_dir or "runs/evaluate"))
    _check_dataset(asked.dataset, asked.selection, whole=True)
    return {"adapter": adapter, "label_names": label_names, "asked": asked}


def _check_plan(methods: list[str], output_dir: Path, dry_run: bool, kind: str, **flags: object) -> Flags:
    """The flags of a plan's own, and, as `flags`, those of its runs: a list of values each."""
    own = {key: flags.pop(key) for key in OF_PLAN if key in flags}
    with_one_methods_values(methods, flags)
    for flag in strangers(methods, flags):
        told = f"--{flag.replace('_', '-')} is no flag of --methods {' '.join(methods)}, and left out"
        warnings.warn(f"{told}; see run.py --help for whose it is", stacklevel=2)
    recipes = own.get("recipe", [None])
    configs = [c for recipe in recipes for c in asked_for(methods, flags, RECIPES.get(recipe, {}))]
    for config in {config.dataset: config for config in configs if config.dataset}.values():
        _check_dataset(config.dataset, config.selection)
    for seed in (seeds := own.get("seeds", [])):
        RunConfig(seed=seed)
    if len(set(seeds)) < len(seeds):
        raise UserError("--seeds names a seed twice: its run would count twice; name it once")
    positive(margin=own.get("margin"))
    if TUNED in recipes:
        Rates(own["rates"])
        if taken := [str(seed) for seed in seeds if seed in SEEDS]:
            told = f"rates are tuned with seeds {' '.join(map(str, SEEDS))}, and suit these; name others than"
            warnings.warn(f"{told} {' '.join(taken)}", stacklevel=2)
    if kind == "rates":
        _check_one_base(methods, flags)
    if not dry_run:
        _check_plans_folder(output_dir, kind)
    own |= {"methods": in_order(methods), "output_dir": output_dir, "dry_run": dry_run}
    return {**own, "flags": flags}


def _check_one_base(methods: list[str], flags: Flags) -> None:
    """Refuse a list that rates.json would not tell apart, such as datasets."""
    apart = set().union(*map(tuned_apart, methods))
    for flag, values in flags.items():
        seen = {value for method in methods for value in values_for(method, values) or [None]}
        if len(seen) > 1 and flag not in apart:
            told = (
                f"--{flag.replace('_', '-')} takes one value in tune, whose rates do not tell several apart"
            )
            raise UserError(f"{told}; tune each into an --output-dir of its own")


def _check_plans_folder(folder: Path, kind: str) -> None:
    check_place(folder)
    for name in (RESULTS, FILE):
        try:
            found = json.loads((folder / name).read_bytes())["kind"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            found = None
        if found != kind:
            told = f"--output-dir {quoted(folder, length=60)} holds a {name} of another kind, or damaged"
            raise UserError(f"{told}; name another, or move that away")


def _check_dataset(name: str, selection: Selection, whole: bool = False) -> None:
    for flag in ("train_split", "validation_split"):
        if getattr(selection, flag) and Path(name).is_file():
            told = f"--{flag.replace('_', '-')} is of no use with one file, and left out"
            warnings.warn(f"{told}; it names a split of a folder or of the hub", stacklevel=2)
    try:
        files = local_files(name, selection, whole)
    except OSError as error:  # a name too long, a folder that is not to be read
        raise UserError(f"dataset {quoted(name)}: {error.strerror}; check the path") from error
    for path in files:
        table = open_table(path)
        selection.found_in(table.columns, table.source)


BY_NAME: dict[str, Callable[..., Flags]] = {
    "predict": _check_predict,
    "merge": _check_merge,
    "evaluate": _check_evaluate,
    "explain": _check_explain,
    "inspect": _check_inspect,
    "truncate": _check_truncate,
    "compare": partial(_check_plan, kind="comparison"),
    "tune": partial(_check_plan, kind="rates"),
}

"""The command line's flags, read off what a run and each method can be asked."""

import argparse
from collections.abc import Set
from pathlib import Path
from typing import get_args, get_type_hints

from lora_from_scratch.methods import DEFAULT, METHODS
from lora_from_scratch.runs.config import PRECISIONS, RECIPES, RunConfig

COMMANDS = {
    "predict": "Label texts: label, probability and text, tab-separated, one line for each.",
    "merge": "Write a plain transformers checkpoint that needs neither this project nor PEFT.",
    "evaluate": "Measure an adapted model on labelled sentences.",
    "verify": "Compare with PEFT: it reads our files, we read its.",
}


class OneLineParser(argparse.ArgumentParser):
    """argparse, without the usage before its errors."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}\n")


def run_parser() -> argparse.ArgumentParser:
    """The flags of a run. Flags that were not given are not in what it parses."""
    parser = OneLineParser(
        prog="run.py",
        description="Adapt GPT-2 to sentiment classification, measure it, and report.",
        epilog="Afterwards: run.py predict, merge, evaluate or verify (each with --help).",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    summaries = "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
    parser.add_argument("--method", choices=tuple(METHODS), help=f"{summaries} (default: {DEFAULT})")
    common = RunConfig.__dataclass_fields__.keys() - {"method", "settings"}
    _add_flags(parser.add_argument_group("of every method"), RunConfig, common)
    seen: set[str] = set()  # a flag that two methods share is shown once
    for name, method in METHODS.items():
        own = method.Settings.__dataclass_fields__.keys()
        _add_flags(parser.add_argument_group(f"of {name}"), method.Settings, own - seen)
        seen |= own
    add = parser.add_argument_group("and").add_argument
    add("--recipe", choices=tuple(RECIPES), help="published: the published table's; flags override it")
    add("--dry-run", action="store_true", help="show parameters and batches, train nothing")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def command_parser(command: str) -> argparse.ArgumentParser:
    """The flags of what can be done with what a run left."""
    parser = OneLineParser(prog=f"run.py {command}", description=COMMANDS[command], allow_abbrev=False)
    add = parser.add_argument
    add("--adapter", type=Path, required=True, metavar="RUN", help="the folder of a run, or of PEFT's files")
    add("--model", metavar="BASE", help="its base (default: the one that the files name)")
    if command == "predict":
        add("texts", nargs="*", metavar="TEXT")
        add("--file", type=Path, help="UTF-8, one text a line (default: stdin)")
        add("--json", action="store_true", dest="as_json", help="one JSON object a line")
    if command == "merge":
        add("--out", type=Path, required=True, metavar="FOLDER", help="new, or empty")
    if command == "evaluate":
        add("--dataset", required=True, help="as in training; of a file every row, else the validation rows")
        _add_flags(parser, RunConfig, {"text_column", "label_column", "positive_class", "max_length"})
        add("--precision", choices=PRECISIONS, default="fp32", help="(default: fp32)")
        add("--output-dir", metavar="FOLDER", help="new (default: a new one under runs/)")
    if command in ("predict", "evaluate"):
        add("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_flags(group: argparse._ActionsContainer, owner: type, names: Set[str]) -> None:
    """A flag for each of the named fields of a dataclass; what is not given is not in what is parsed."""
    for name, kind in get_type_hints(owner).items():
        if name in names:
            field = owner.__dataclass_fields__[name]
            options, text, shown = dict(field.metadata["options"]), field.metadata["help"], field.default
            if "tuple" in str(kind):
                options["nargs"] = "+"
                shown = shown and " ".join(map(str, shown))
            while inner := get_args(kind):  # int of `int | None`, str of `tuple[str, ...]`
                kind = inner[0]
            options |= {"action": "store_true"} if kind is bool else {"type": kind}
            if shown is not None and shown is not False:
                text += f" (default: {shown})"
            flag = "--" + name.replace("_", "-")
            group.add_argument(flag, help=text, default=argparse.SUPPRESS, **options)

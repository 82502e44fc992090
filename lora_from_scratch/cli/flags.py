"""The command line's flags, read off what a run and each method can be asked."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path

from lora_from_scratch.methods import METHODS
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
    parser.add_argument("--method", choices=tuple(METHODS), help=f"{summaries} (default: lora)")
    _add_flags(parser.add_argument_group("of every method"), fields(RunConfig)[1:])
    seen: set[str] = set()
    for name, method in METHODS.items():
        own = [field for field in fields(method.Settings) if field.name not in seen]
        if own:
            _add_flags(parser.add_argument_group(f"of {name}"), own)
        seen.update(field.name for field in own)
    also = parser.add_argument_group("and")
    also.add_argument(
        "--recipe", choices=tuple(RECIPES), help="published: the published table's; flags override it"
    )
    also.add_argument("--dry-run", action="store_true", help="show parameters and batches, train nothing")
    also.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def command_parser(command: str) -> argparse.ArgumentParser:
    """The flags of what can be done with what a run left."""
    parser = OneLineParser(prog=f"run.py {command}", description=COMMANDS[command], allow_abbrev=False)
    parser.add_argument(
        "--adapter", type=Path, required=True, metavar="RUN", help="the folder of a run, or of PEFT's files"
    )
    parser.add_argument("--model", metavar="BASE", help="its base (default: the one that the files name)")
    if command == "predict":
        parser.add_argument("texts", nargs="*", metavar="TEXT")
        parser.add_argument("--file", type=Path, help="UTF-8, one text a line (default: stdin)")
        parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON object a line")
    if command == "merge":
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new, or empty")
    if command == "evaluate":
        parser.add_argument(
            "--dataset", required=True, help="as in training; of a file every row, else the validation rows"
        )
        shared = ("text_column", "label_column", "max_length")
        _add_flags(parser, [field for field in fields(RunConfig) if field.name in shared], True)
        parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: fp32)")
        parser.add_argument(
            "--output-dir", type=Path, metavar="FOLDER", help="new (default: a new one under runs/)"
        )
    if command in ("predict", "evaluate"):
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_flags(group: argparse._ActionsContainer, flags: Iterable[Field], with_default: bool = False) -> None:
    for flag in flags:
        if "help" not in flag.metadata:
            continue
        kind, options = flag.type.split(" | ")[0], dict(flag.metadata["options"])
        if kind == "bool":
            options["action"] = "store_true"
        elif kind.startswith("tuple"):
            options["nargs"] = "+"
        else:
            options["type"] = {"int": int, "float": float, "str": str}[kind]
        text, default = flag.metadata["help"], flag.default
        if with_default:
            options["default"] = default
        if default is not None and default is not False:
            shown = " ".join(default) if isinstance(default, tuple) else default
            text += f" (default: {shown})"
        group.add_argument("--" + flag.name.replace("_", "-"), help=text, **options)

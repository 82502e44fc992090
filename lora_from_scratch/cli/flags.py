"""The command line's flags, read off what a run and each method can be asked."""

import argparse
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from lora_from_scratch.cli.flag_types import add_flags, choice, folder, one_of
from lora_from_scratch.cli.one_line import nearest, one_line
from lora_from_scratch.compare.rates import FILE, TUNED
from lora_from_scratch.errors import quoted
from lora_from_scratch.methods import DEFAULT, METHODS
from lora_from_scratch.runs.config import PRECISIONS, RECIPES, RunConfig

RUN = "run.py"  # without a command it trains
COMMANDS = {
    "predict": "Label texts: label, probability and text, tab-separated, one line for each.",
    "merge": "Write a plain transformers checkpoint that needs neither this project nor PEFT.",
    "evaluate": "Measure an adapted model on labelled sentences.",
    "verify": "Compare with PEFT: it reads our files, we read its.",
    "explain": "Show one text on its way through the model and back, tensor by tensor.",
    "inspect": "Show what was learned: its directions, what each is worth, how it lies to W0 and to others.",
    "truncate": "Write a smaller adapter: the first directions of each layer alone.",
    "compare": "Run methods x seeds x settings, and say what the differences are worth. Flags take lists.",
    "tune": "Find each method's learning rate on sentences held out of train. Flags take lists.",
}
PLANS = {"compare": Path("runs/compare"), "tune": Path("runs/tune")}  # commands of many runs, their folders
RATES = PLANS["tune"] / FILE
COMPARED = (*RECIPES, TUNED)  # recipes of a comparison


class OneLineParser(argparse.ArgumentParser):
    """argparse, without the usage before its errors, and with the name that somebody may have meant."""

    def error(self, message: str) -> None:
        help_ = "" if "did you mean" in message else f"; see {self.prog} --help"
        self.exit(2, f"error: {one_line(message + help_)}\n")

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:
        if self.prog == RUN and arguments and not arguments[0].startswith("-"):
            self.error(f"{quoted(arguments[0])} is no command{_meant_alone(arguments[0])}")
        words = takewhile("--".__ne__, arguments)  # behind it are texts
        misspelt = [word for word in map(_flag_of, words) if word and word not in _flags(self)]
        if misspelt and (meant := self._meant(misspelt[0])):  # also where a flag is missing on its account
            self.error(f"unrecognized arguments: {misspelt[0]}{meant}")
        flags, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(f"unrecognized arguments: {unknown[0]}{self._meant(unknown[0])}")
        return flags

    def _meant(self, word: str) -> str:
        if not word.startswith("-"):
            return _meant_alone(word)
        owners = [name for name in COMMANDS if word in _flags(command_parser(name))]
        if owners and self.prog == RUN:
            return f"; did you mean run.py {' or '.join(owners)}, before the flags?"
        return nearest(word, _flags(self))


def _flag_of(word: str) -> str | None:
    found = re.match(r"--[A-Za-z][\w-]*(?==|$)", word)
    return found and found[0]


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def _meant_alone(word: str) -> str:
    """What a word that stands without a flag may have meant."""
    if word in COMMANDS:
        return f"; did you mean run.py {word}, before the flags?"
    near = nearest(word, COMMANDS, "run.py ") or nearest(word, METHODS, "--method ")
    return near or (f"; did you mean --dataset {word}?" if Path(word).is_file() else "")


def run_parser() -> argparse.ArgumentParser:
    """The flags of a run. Flags that were not given are not in what it parses."""
    parser = OneLineParser(
        prog=RUN,
        description="Adapt GPT-2 to sentiment classification, measure it, and report.",
        epilog=f"Afterwards, and for many runs: {', '.join(COMMANDS)}. Each takes --help.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    summaries = "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
    parser.add_argument("--method", **choice(METHODS), help=f"{summaries} (default: {DEFAULT})")
    common = RunConfig.__dataclass_fields__.keys() - {"method", "settings"}
    add_flags(parser.add_argument_group("of every method"), RunConfig, common)
    _methods_flags(parser)
    add = parser.add_argument_group("and").add_argument
    add("--recipe", **choice(RECIPES), help="published: the published table's; flags override it")
    add("--dry-run", action="store_true", help="show parameters and batches, train nothing")
    add("--resume", type=folder, metavar="RUN", help="go on with an interrupted run, by its folder")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def command_parser(command: str) -> argparse.ArgumentParser:
    """The flags of a command."""
    parser = OneLineParser(prog=f"{RUN} {command}", description=COMMANDS[command], allow_abbrev=False)
    if command in PLANS:
        return _plan_parser(parser, command)
    add = parser.add_argument
    add("--adapter", type=Path, required=True, metavar="RUN", help="the folder of a run, or of PEFT's files")
    add("--model", metavar="BASE", help="its base (default: the one that the files name)")
    if own := OWN_FLAGS.get(command):
        own(parser)
    if command in ("merge", "truncate"):
        add("--out", type=Path, required=True, metavar="FOLDER", help="new, or empty")
    if command in ("predict", "evaluate", "inspect"):
        about = "by id, where the files carry none (LABEL_0, ...)"
        add("--label-names", nargs="+", metavar="NAME", help=about)
        add("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _predict_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT")
    add("--file", type=Path, help="UTF-8, one text a line (default: stdin)")
    add("--json", action="store_true", dest="as_json", help="one JSON object a line")
    add("--dataset", type=Path, metavar="FILE", help="a table of texts, to be labelled into --output")
    add("--text-column", metavar="NAME", help="where its texts are (default: sentence, else text)")
    add("--output", type=Path, metavar="FILE", help="new: the table with its labels, .csv, .tsv or .jsonl")
    add("--drop-blank", action="store_true", help="give blank texts no label, instead of refusing them")


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", required=True, help="as in training; of a file every row, else the validation rows")
    add_flags(parser, RunConfig, LABELLED | {"positive_class"})
    _length_flag(parser)
    add("--precision", **choice(PRECISIONS), default="fp32", help="(default: fp32)")
    add("--output-dir", metavar="FOLDER", help="new (default: a new one under runs/)")


def _length_flag(parser: argparse.ArgumentParser) -> None:
    about = "cut sentences there (default: as in training; where no record says, 128 or all positions)"
    parser.add_argument("--max-length", type=int, default=argparse.SUPPRESS, metavar="TOKENS", help=about)


def _explain_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", metavar="TEXT")
    add("--label", metavar="NAME", help="whose loss is taken (default: the predicted one)")
    add("--output-dir", type=folder, metavar="FOLDER", help="write explain.html and explain.json there")


def _inspect_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--beside", nargs="+", type=Path, default=(), metavar="RUN2", help="others, for their subspaces")
    add("--dataset", help="sentences to measure on (default: what the run was validated on)")
    add_flags(parser, RunConfig, LABELLED)
    _length_flag(parser)
    add("--output-dir", type=folder, required=True, metavar="FOLDER", help="for lens.html and lens.json")


def _truncate_flags(parser: argparse.ArgumentParser) -> None:
    about = "directions of each layer that are kept"
    parser.add_argument("--rank", type=int, required=True, metavar="K", help=about)


OWN_FLAGS = {
    "predict": _predict_flags,
    "evaluate": _evaluate_flags,
    "explain": _explain_flags,
    "inspect": _inspect_flags,
    "truncate": _truncate_flags,
}
LABELLED = {"text_column", "label_column", "validation_split", "drop_blank"}  # how labelled rows are read


def _plan_parser(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    """The flags of many runs: those of a run, with a list of values each, and the plan's own."""
    add, compares, names = parser.add_argument, command == "compare", f"{{{','.join(METHODS)}}}"
    trained = [name for name, method in METHODS.items() if compares or method.trains]
    usual = [name for name in trained if METHODS[name].by_default]
    about = f"(default: {' '.join(usual)})"
    add("--methods", nargs="+", type=one_of(trained), default=usual, metavar=names, help=about)
    if compares:
        add("--seeds", nargs="+", type=int, default=(0, 1, 2), metavar="SEED", help="(default: 0 1 2)")
        recipes = {"nargs": "+", "type": one_of(COMPARED), "metavar": f"{{{','.join(COMPARED)}}}"}
        about = "published: the published table's; tuned: each method's rate from --rates"
        add("--recipe", **recipes, default=[None], help=about)
        add("--rates", type=Path, default=RATES, metavar="FILE", help=f"of run.py tune (default: {RATES})")
        add("--reference", metavar="LABEL", help="whom the others are compared with (default: lora)")
        add("--margin", type=float, metavar="POINTS", help="differences within it are called equivalent")
    add(
        "--output-dir",
        type=folder,
        default=PLANS[command],
        metavar="FOLDER",
        help=f"(default: {PLANS[command]})",
    )
    add("--dry-run", action="store_true", help="show the plan, run nothing")
    add("--debug", action="store_true", help="show the traceback of an error")
    about = "of every run, each with one value or several; METHOD=VALUE is of that method alone"
    group = parser.add_argument_group(about)
    left_out = {"method", "settings", "seed", "output_dir", "checkpoint_every", "shard"}
    left_out |= set() if compares else {"lr"}
    add_flags(group, RunConfig, RunConfig.__dataclass_fields__.keys() - left_out, several=True)
    _methods_flags(parser, several=True)
    return parser


def _methods_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The flags of single methods; those that several share are shown once, under all their names."""
    seen: set[str] = set()
    for method in METHODS.values():
        own = method.Settings.__dataclass_fields__.keys() - seen
        owners = [
            name for name, other in METHODS.items() if own <= other.Settings.__dataclass_fields__.keys()
        ]
        add_flags(parser.add_argument_group(f"of {', '.join(owners)}"), method.Settings, own, several)
        seen |= own

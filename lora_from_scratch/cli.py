"""Flags to RunConfig, one run, and what the screen shows of it."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lora_from_scratch.config import METHODS, PRECISIONS, RECIPES, RunConfig, default_of
from lora_from_scratch.errors import UserError
from lora_from_scratch.hub import go_offline_if_unreachable

COMMANDS = {
    "predict": "Label texts: label, probability and text, tab-separated, one line for each.",
    "merge": "Write a plain transformers checkpoint that needs neither this project nor PEFT.",
    "evaluate": "Measure an adapted model on labelled sentences.",
    "verify": "Compare with PEFT: it reads our files, we read its.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after a mistake of the user's."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else None
    flags = vars((_command_parser(command) if command else _parser()).parse_args(arguments))
    debug = flags.pop("debug", False)
    warnings.showwarning = _show_warning
    try:
        _run_command(command, flags) if command else _train(flags)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _train(flags: dict[str, object]) -> None:
    dry_run = flags.pop("dry_run", False)
    recipe = RECIPES.get(flags.pop("recipe", None), {})
    if "target_modules" in flags:
        flags["target_modules"] = tuple(flags["target_modules"])
    config = RunConfig(**{**recipe, **flags})

    _before_heavy_imports()
    from lora_from_scratch import experiment, outputs, report  # torch and transformers: seconds

    prepared = experiment.prepare(config)
    if prepared.substituted:
        print(report.banner(prepared), flush=True)
    print(report.plan(prepared), flush=True)
    if dry_run:
        return
    folder = Path(config.output_dir or f"runs/{config.method}")
    outputs.check_folder(folder)
    result = experiment.execute(prepared)
    names = outputs.write_run(result, folder)
    print(f"\n{report.summary(result)}\nwritten     {folder}: {', '.join(names)}")


def _run_command(name: str, flags: dict[str, object]) -> None:
    if name == "predict" and flags["texts"] and flags["file"]:
        raise UserError("give texts or --file, not both")
    _before_heavy_imports()
    from lora_from_scratch import commands

    commands.BY_NAME[name](**flags)


def _before_heavy_imports() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    go_offline_if_unreachable()


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if category is UserWarning:  # others are for developers
        print(f"warning: {_one_line(message)}", file=sys.stderr)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="run.py",
        description="Adapt GPT-2 to sentiment classification, measure it, and report.",
        epilog="Afterwards: run.py predict, merge, evaluate or verify (each with --help).",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--method", choices=METHODS, help=_help("method", "how to adapt the model"))
    what.add_argument("--rank", type=int, metavar="R", help=_help("rank", "LoRA: rank of the update"))
    what.add_argument(
        "--alpha", type=float, help=_help("alpha", "LoRA: the update is scaled by alpha / rank")
    )
    what.add_argument("--dropout", type=float, metavar="P", help=_help("dropout", "LoRA: dropout before A"))
    what.add_argument(
        "--target-modules",
        nargs="+",
        metavar="NAME",
        help="LoRA: suffixes of the layers to adapt, such as attn.c_attn mlp.c_proj (default: attn.c_attn)",
    )
    what.add_argument(
        "--model",
        help="a hub id, a folder, or 'bundled' (default: gpt2; bundled where the hub is out of reach)",
    )
    what.add_argument(
        "--random-init", action="store_true", help="build the model from its configuration alone"
    )

    data = parser.add_argument_group("on what")
    data.add_argument(
        "--dataset",
        help="sst2, a hub id, a .tsv/.csv/.jsonl file, a folder with train.* and dev.* or validation.*, or "
        "'bundled' (default: sst2; bundled where the hub is out of reach)",
    )
    data.add_argument(
        "--text-column", metavar="NAME", help="where the text is (default: sentence, else text)"
    )
    data.add_argument("--label-column", metavar="NAME", help="where the label is (default: label)")
    data.add_argument(
        "--max-length", type=int, metavar="TOKENS", help=_help("max_length", "cut sentences there")
    )
    data.add_argument("--limit-train", type=int, metavar="N", help="train on N sentences, drawn at random")

    how = parser.add_argument_group("how")
    how.add_argument(
        "--recipe", choices=tuple(RECIPES), help="published: the published table's; flags override it"
    )
    how.add_argument(
        "--epochs", type=int, help="passes over the sentences (default: 2; bundled sentences: 16)"
    )
    how.add_argument("--max-steps", type=int, metavar="N", help="stop after N steps")
    how.add_argument("--batch-size", type=int, metavar="B", help=_help("batch_size", "sentences a step"))
    how.add_argument(
        "--lr", type=float, help="peak learning rate (default: chosen by method; see the README)"
    )
    how.add_argument(
        "--weight-decay", type=float, metavar="W", help=_help("weight_decay", "of matrices alone")
    )
    how.add_argument("--precision", choices=PRECISIONS, help=_help("precision", "dtype of the forward pass"))
    how.add_argument("--device", help=_help("device", "auto, cpu, cuda, cuda:1, ..."))
    how.add_argument("--seed", type=int, help=_help("seed", "of head, adapter, order and dropout"))

    out = parser.add_argument_group("what comes out")
    out.add_argument("--output-dir", metavar="FOLDER", help="where results land (default: runs/METHOD)")
    out.add_argument("--dry-run", action="store_true", help="show parameters and batches, train nothing")
    out.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _command_parser(command: str) -> argparse.ArgumentParser:
    parser = _OneLineParser(prog=f"run.py {command}", description=COMMANDS[command], allow_abbrev=False)
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
        parser.add_argument("--text-column", metavar="NAME")
        parser.add_argument("--label-column", metavar="NAME")
        parser.add_argument(
            "--max-length",
            type=int,
            metavar="TOKENS",
            default=default_of("max_length"),
            help="cut texts there",
        )
        parser.add_argument("--precision", choices=PRECISIONS, default="auto")
        parser.add_argument(
            "--output-dir",
            type=Path,
            metavar="FOLDER",
            default=Path("runs/evaluate"),
            help="where results.json lands (default: runs/evaluate)",
        )
    if command in ("predict", "evaluate"):
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _OneLineParser(argparse.ArgumentParser):
    """argparse, without the usage before its errors."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}\n")


def _help(name: str, text: str) -> str:
    return f"{text} (default: {default_of(name)})"

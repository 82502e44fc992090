"""The command line: one run, or a command on what a run left, and one line for every mistake."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_from_scratch.base.reachable import go_offline_if_unreachable
from lora_from_scratch.cli.flags import COMMANDS, command_parser, run_parser
from lora_from_scratch.errors import UserError
from lora_from_scratch.methods import method_named
from lora_from_scratch.runs.config import RECIPES, RunConfig

if TYPE_CHECKING:
    from lora_from_scratch.runs.prepare import Prepared


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 after a mistake of the user's, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else None
    flags = vars((command_parser(command) if command else run_parser()).parse_args(arguments))
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
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{_one_line(interrupt)}", file=sys.stderr)
        return 130
    return 0


def _train(flags: dict[str, object]) -> None:
    dry_run = flags.pop("dry_run", False)
    config = _config(flags)

    _before_heavy_imports()
    from lora_from_scratch.report import screen  # torch and transformers: seconds
    from lora_from_scratch.runs.prepare import prepare

    prepared = prepare(config)
    if prepared.substituted:
        print(screen.banner(prepared), flush=True)
    print(screen.plan(prepared), flush=True)
    if not dry_run:
        # By what was decided, so that a run on the bundle and a later one on GPT-2 do not share a folder.
        names = {"model": prepared.config.model, "dataset": prepared.config.dataset}
        place = RunConfig(**{**config.as_dict(), **names})
        train_into(prepared, Path(config.output_dir or place.default_folder()))


def train_into(prepared: Prepared, folder: Path) -> None:
    """Train; then write weights, measures, and what people look at, in this order.

    Raises:
        UserError: the folder is not to be written to, the training went wrong, or the evaluation did.
        OSError: the disk is full.
    """
    from lora_from_scratch.report import screen
    from lora_from_scratch.report.card import model_card
    from lora_from_scratch.report.picture import draw_training
    from lora_from_scratch.runs import folder as runs
    from lora_from_scratch.runs.execute import RunResult, evaluate_prepared, train_prepared
    from lora_from_scratch.runs.record import run_record

    runs.check_folder(folder)
    training = train_prepared(prepared)
    runs.write_trained(prepared, training, folder)
    with _kept(folder):
        result = RunResult(prepared, training, evaluate_prepared(prepared))
        record = runs.write_record(run_record(prepared, training, result.evaluation, folder), folder)
        print(f"\n{screen.summary(record)}")
        if training:
            if not prepared.config.random_init:
                _add(runs.CARD, lambda: model_card(record).encode(), folder)
            _add(runs.PICTURE, lambda: draw_training(record, training.metrics), folder)
    print(f"written     {folder}: {', '.join(sorted(runs.files_of_earlier_run(folder)))}")


def _add(name: str, make: object, folder: Path) -> None:
    """A card or a picture: without it a run is still whole, so its failure is a warning."""
    from lora_from_scratch.runs.folder import add_file

    try:
        if contents := make():
            add_file(name, contents, folder)
    except Exception as error:
        print(f"warning: {folder} has no {name}: {_one_line(error)}", file=sys.stderr)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """After an error in the block, say that what was trained is there all the same."""
    kept = f"what was trained is in {folder}"
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"; {kept}") from interrupt
    except (UserError, OSError, MemoryError, RuntimeError) as error:  # RuntimeError: PyTorch out of memory
        raise UserError(f"{_one_line(error)}; {kept}") from error


def _config(flags: dict[str, object]) -> RunConfig:
    """The flags over those of a recipe, as far as the method has them; a flag of another gives a warning."""
    method = method_named(flags.get("method", "lora"))
    own = {*RunConfig.__dataclass_fields__, *method.Settings.__dataclass_fields__}
    asked = {**RECIPES.get(flags.pop("recipe", None), {}), **flags}
    for name in flags.keys() - own:
        flag = "--" + name.replace("_", "-")
        print(f"warning: {flag} is no flag of --method {method.name}, and left out", file=sys.stderr)
    lists = {name: tuple(value) for name, value in asked.items() if isinstance(value, list)}
    return RunConfig(**{name: value for name, value in {**asked, **lists}.items() if name in own})


def _run_command(name: str, flags: dict[str, object]) -> None:
    if name == "predict" and flags["texts"] and flags["file"]:
        raise UserError("give texts or --file, not both")
    _before_heavy_imports()
    from lora_from_scratch.cli import commands

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

"""The command line: one run, or a command on what a run left, and one line for every mistake."""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_from_scratch.base.reachable import go_offline_if_unreachable
from lora_from_scratch.cli.early_checks import check_arguments, check_command, check_run
from lora_from_scratch.cli.flags import COMMANDS, command_parser, run_parser
from lora_from_scratch.cli.one_line import escape_what_cannot_be_encoded, one_line
from lora_from_scratch.errors import UserError
from lora_from_scratch.methods import DEFAULT, method_named
from lora_from_scratch.runs.config import RECIPES, RunConfig

if TYPE_CHECKING:
    from lora_from_scratch.runs.prepare import Prepared
    from lora_from_scratch.train.checkpoints import Checkpoints
    from lora_from_scratch.train.state import Snapshot


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns exit status: 2 after a mistake, 130 after Ctrl-C, 143 after SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else None
    escape_what_cannot_be_encoded()
    flags = vars((command_parser(command) if command else run_parser()).parse_args(arguments))
    debug = flags.pop("debug", False)
    warnings.showwarning = _show_warning
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        check_arguments(arguments)
        _run_command(command, flags) if command else _train(flags)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{one_line(interrupt)}", file=sys.stderr)
        return getattr(interrupt, "exit_status", 130)
    return 0


def _run_command(name: str, flags: dict[str, object]) -> None:
    flags = check_command(name, flags)
    go_offline_if_unreachable()
    from lora_from_scratch.cli import commands  # torch and transformers: seconds

    commands.BY_NAME[name](**flags)


def _train(flags: dict[str, object]) -> None:
    if folder := flags.pop("resume", None):
        _resume(folder, flags)
        return
    dry_run = flags.pop("dry_run", False)
    config = _config(flags)
    check_run(config, dry_run)
    prepared = _prepared(config)
    if not dry_run:
        # By what was decided, so that a run on the bundle and a later one on GPT-2 do not share a folder.
        decided = replace(config, model=prepared.config.model, dataset=prepared.config.dataset)
        train_into(prepared, Path(config.output_dir or decided.default_folder()))


def _resume(folder: Path, flags: dict[str, object]) -> None:
    """Go on with the run in a folder, with the settings that it has."""
    from lora_from_scratch.runs import resume

    found = resume.unfinished(folder)
    if not found:
        print(f"finished    {folder}: nothing is left to go on with")
        return
    about, snapshot = found
    config = resume.config_of(about, folder, flags)
    check_run(config, dry_run=False)
    prepared = _prepared(config)
    resume.check_same(about, prepared, folder)
    print(f"resumed     {folder}, after step {snapshot.steps}", flush=True)
    train_into(prepared, folder, snapshot)


def _prepared(config: RunConfig) -> "Prepared":
    """What the run needs before its first step, shown."""
    go_offline_if_unreachable()
    from lora_from_scratch.report import screen
    from lora_from_scratch.runs.prepare import prepare

    prepared = prepare(config)
    if prepared.substituted:
        print(screen.banner(prepared), flush=True)
    print(screen.plan(prepared), flush=True)
    return prepared


def _config(flags: dict[str, object]) -> RunConfig:
    """The flags over those of a recipe, as far as the method has them; a flag of another gives a warning."""
    method = method_named(flags.get("method", DEFAULT))
    own = {*RunConfig.__dataclass_fields__, *method.Settings.__dataclass_fields__}
    asked = {**RECIPES.get(flags.pop("recipe", None), {}), **flags}
    for name in flags.keys() - own:
        flag = "--" + name.replace("_", "-")
        print(
            f"warning: {flag} is no flag of --method {method.name}, and left out; see run.py --help",
            file=sys.stderr,
        )
    asked |= {name: tuple(value) for name, value in asked.items() if isinstance(value, list)}
    return RunConfig(**{name: asked[name] for name in asked.keys() & own})


def train_into(prepared: "Prepared", folder: Path, resumed: "Snapshot | None" = None) -> None:
    """Train, or go on; then write weights, measures, and what people look at, in this order.

    UserError if the folder is not to be written to, or training or evaluation go wrong; OSError if the disk
    is full. What was trained stays there whatever comes after it.
    """
    from lora_from_scratch.report import card, picture, screen
    from lora_from_scratch.runs import execute, record
    from lora_from_scratch.runs import folder as runs
    from lora_from_scratch.runs.resume import checkpoints_of
    from lora_from_scratch.train.interrupts import Interrupted

    runs.check_folder(folder, resumed is not None)
    base = Path(prepared.config.model)
    if base.is_dir() and folder.exists() and folder.samefile(base):
        raise UserError(
            f"--output-dir {folder} is where --model lies: what is trained would replace its base"
        )
    checkpoints = checkpoints_of(prepared, folder, resumed)
    try:
        training = execute.train_prepared(prepared, checkpoints)
    except Interrupted as interrupt:
        raise Interrupted(_how_to_go_on(folder, checkpoints), interrupt.signal) from interrupt
    runs.write_trained(prepared, training, folder)
    kept = f"; what was trained is in {folder}"
    try:
        evaluation = execute.evaluate_prepared(prepared)
        execute.warn_of_rate(prepared, training, evaluation)
        results = runs.write_record(record.run_record(prepared, training, evaluation, folder), folder)
        if training and not prepared.config.random_init:
            _add(runs.CARD, lambda: card.model_card(results).encode(), folder)
        if training:
            _add(runs.PICTURE, lambda: picture.draw_training(results, training.metrics), folder)
        checkpoints.clear()
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(kept) from interrupt
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in f"{type(error)} {error}".lower():
            raise  # a defect, where PyTorch out of memory is not
        raise UserError(one_line(error) + kept) from error
    print(f"\n{screen.summary(results)}")
    if said := screen.not_beaten(results):
        print(f"warning: {said}", file=sys.stderr)
    print(f"written     {folder}: {', '.join(sorted(runs.listed_files(folder)))}")


def _how_to_go_on(folder: Path, checkpoints: "Checkpoints") -> str:
    from lora_from_scratch.train.checkpoints import found_in

    if not found_in(checkpoints.folder):
        return "; no checkpoint of it could be written"
    return f"; go on with: python run.py --resume {shlex.quote(str(folder))}"


def _add(name: str, make: Callable[[], bytes | None], folder: Path) -> None:
    """A card or a picture: without it a run is still whole, so its failure is a warning."""
    from lora_from_scratch.runs.folder import add_file

    try:
        if contents := make():
            add_file(name, contents, folder)
    except Exception as error:
        print(f"warning: {folder} has no {name}: {one_line(error)}", file=sys.stderr)


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if category is UserWarning:  # others are for developers
        print(f"warning: {one_line(message)}", file=sys.stderr)

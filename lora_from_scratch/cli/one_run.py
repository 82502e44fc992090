"""One run by the command line: asked or resumed, prepared, trained, written, shown."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_from_scratch.base.reachable import go_offline_if_unreachable
from lora_from_scratch.cli.early_checks import check_run
from lora_from_scratch.cli.loading import importing, told_while
from lora_from_scratch.cli.one_line import one_line, speaks
from lora_from_scratch.errors import UserError
from lora_from_scratch.methods import DEFAULT, method_named
from lora_from_scratch.runs.config import RECIPES, RunConfig

if TYPE_CHECKING:
    from lora_from_scratch.runs.prepare import Prepared
    from lora_from_scratch.train.checkpoints import Checkpoints
    from lora_from_scratch.train.log import Training
    from lora_from_scratch.train.state import Snapshot

LOADING = "loading libraries, model and sentences"


def train(flags: dict[str, object]) -> None:
    """What the flags ask for: a new run, or one that goes on."""
    if folder := flags.pop("resume", None):
        _resume(folder, flags)
        return
    dry_run = flags.pop("dry_run", False)
    config = _config(flags)
    check_run(config, dry_run)
    with told_while(LOADING):
        with importing():
            go_offline_if_unreachable()
            from lora_from_scratch.runs.prepare import prepare

        prepared = prepare(config)
    _show(prepared)
    if not dry_run:
        # By what was decided, so that a run on the bundle and a later one on GPT-2 do not share a folder.
        decided = replace(config, model=prepared.config.model, dataset=prepared.config.dataset)
        train_into(prepared, Path(config.output_dir or decided.default_folder()))


def _resume(folder: Path, flags: dict[str, object]) -> None:
    """Go on with the run in a folder, with the settings that it has."""
    with importing(), told_while(LOADING):
        go_offline_if_unreachable()  # before the next line imports what reads it
        from lora_from_scratch.runs import resume
        from lora_from_scratch.runs.prepare import prepare

    found = resume.unfinished(folder)
    if not found:
        print(f"finished    {folder}: nothing is left to go on with")
        return
    about, snapshot = found
    config = resume.config_of(about, folder, flags)
    check_run(config, dry_run=False)
    with told_while(LOADING):
        prepared = prepare(config)
    _show(prepared)
    resume.check_same(about, prepared, folder)
    print(f"resumed     {folder}, after step {snapshot.steps}", flush=True)
    train_into(prepared, folder, snapshot)


def _show(prepared: "Prepared") -> None:
    from lora_from_scratch.report import screen

    if prepared.substituted:
        print(screen.banner(prepared), flush=True)
    print(screen.plan(prepared), flush=True)


def _config(flags: dict[str, object]) -> RunConfig:
    """The flags over those of a recipe, as far as the method has them; a flag of another gives a warning."""
    method = method_named(flags.get("method", DEFAULT))
    own = {*RunConfig.__dataclass_fields__, *method.Settings.__dataclass_fields__}
    asked = {**RECIPES.get(flags.pop("recipe", None), {}), **flags}
    for name in flags.keys() - own:
        flag = "--" + name.replace("_", "-")
        if speaks():
            told = f"{flag} is no flag of --method {method.name}, and left out; see run.py --help"
            print(f"warning: {told}", file=sys.stderr)
    asked |= {name: tuple(value) for name, value in asked.items() if isinstance(value, list)}
    return RunConfig(**{name: asked[name] for name in asked.keys() & own})


def train_into(prepared: "Prepared", folder: Path, resumed: "Snapshot | None" = None) -> None:
    """Train, or go on; then write weights, measures, and what people look at, in this order.

    Of several processes all train and measure, and the first one writes. UserError if the folder is not to be
    written to, or training or evaluation go wrong; OSError if the disk is full. What was trained stays there
    whatever comes after it.
    """
    import torch

    from lora_from_scratch.runs import execute
    from lora_from_scratch.runs import folder as runs
    from lora_from_scratch.runs.resume import checkpoints_of
    from lora_from_scratch.train.interrupts import Interrupted
    from lora_from_scratch.train.processes import joined, processes

    base = Path(prepared.config.model)
    if base.is_dir() and folder.exists() and folder.samefile(base):
        raise UserError(
            f"--output-dir {folder} is where --model lies: what is trained would replace its base"
        )
    with joined(torch.device(prepared.config.device)):
        if processes().writes:
            runs.check_folder(folder, resumed is not None)
        checkpoints = checkpoints_of(prepared, folder, resumed)
        try:
            training = execute.train_prepared(prepared, checkpoints)
        except Interrupted as interrupt:
            raise Interrupted(_how_to_go_on(folder, checkpoints), interrupt.signal) from interrupt
        if not processes().writes:
            execute.evaluate_prepared(prepared)
            return
        runs.write_trained(prepared, training, folder)
        _measure_into(prepared, training, folder)
        checkpoints.clear()


def _measure_into(prepared: "Prepared", training: "Training | None", folder: Path) -> None:
    """Evaluate what was written, add the figures and what people look at, and show it."""
    from lora_from_scratch.report import card, picture, screen
    from lora_from_scratch.runs import execute, record
    from lora_from_scratch.runs import folder as runs
    from lora_from_scratch.train.trouble import is_out_of_memory

    kept = f"; what was trained is in {folder}"
    try:
        evaluation = execute.evaluate_prepared(prepared)
        execute.warn_of_rate(prepared, training, evaluation)
        results = runs.write_record(record.run_record(prepared, training, evaluation, folder), folder)
        if training and not prepared.config.random_init:
            _add(runs.CARD, lambda: card.model_card(results).encode(), folder)
        if training:
            _add(runs.PICTURE, lambda: picture.draw_training(results, training.metrics), folder)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(kept) from interrupt
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise  # a defect
        raise UserError(one_line(error) + kept) from error
    print(f"\n{screen.summary(results)}")
    if said := screen.not_beaten(results):
        print(f"warning: {said}", file=sys.stderr)
    print(f"written     {folder}: {', '.join(sorted(runs.listed_files(folder)))}")


def _how_to_go_on(folder: Path, checkpoints: "Checkpoints") -> str:
    from lora_from_scratch.train.checkpoints import found_in
    from lora_from_scratch.train.processes import processes

    if not found_in(checkpoints.folder):
        return "; no checkpoint of it could be written"
    count = processes().count
    start = "python" if count == 1 else f"torchrun --nproc-per-node={count}"  # on one machine
    return f"; go on with: {start} run.py --resume {shlex.quote(str(folder))}"


def _add(name: str, make: Callable[[], bytes | None], folder: Path) -> None:
    """A card or a picture: without it a run is still whole, so its failure is a warning."""
    from lora_from_scratch.runs.folder import add_file

    try:
        if contents := make():
            add_file(name, contents, folder)
    except Exception as error:
        print(f"warning: {folder} has no {name}: {one_line(error)}", file=sys.stderr)

"""A training that was interrupted goes on bit for bit: in a process, by signals, from the command line."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import runpy
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from forks import in_a_fork
from small_runs import (
    METHODS,
    RELATIVES,
    STEPS,
    ready,
    trained,
    with_all_checkpoints,
    write_base,
    write_sentences,
)
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.cli.main import main
from lora_from_scratch.compare import going as of_going
from lora_from_scratch.compare.cells import Cells
from lora_from_scratch.compare.going import Going
from lora_from_scratch.compare.plan import Cell, asked_for, cells, named
from lora_from_scratch.compare.shared import Shared
from lora_from_scratch.core import loop
from lora_from_scratch.errors import UserError
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.runs import execute as of_execute
from lora_from_scratch.runs import resume as of_resume
from lora_from_scratch.runs.execute import train_prepared
from lora_from_scratch.runs.prepare import prepare
from lora_from_scratch.train import checkpoints as of_checkpoints
from lora_from_scratch.train import interrupts
from lora_from_scratch.train.checkpoints import Checkpoints, found_in, newest, read
from lora_from_scratch.train.interrupts import Interrupted, listening
from lora_from_scratch.train.log import StepLog
from lora_from_scratch.train.measure import PeakMemory, PhaseClock
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import make_scaler, resolve_precision
from lora_from_scratch.train.state import MOMENTS, TrainingState
from lora_from_scratch.train.training import Course, train

pytestmark = pytest.mark.usefixtures("undrawn")
ROOT = Path(__file__).parents[1]
PRECISIONS = sorted({"fp32", resolve_precision("auto", torch.device("cpu"))})
ALL = list(itertools.product(METHODS, (False, True), PRECISIONS))
ALL += [(method, False, PRECISIONS[0]) for method in RELATIVES]


def resumed(path: Path, **changes: object):
    """What a new run comes to that goes on from a checkpoint."""
    return trained(ready(**changes), Checkpoints(path.parent / "on", {}, 10**6, read(path)[1]))


def stop_in(step: int | None, patch: pytest.MonkeyPatch, add: Callable[..., None] = StepLog.add) -> None:
    """From here on Ctrl-C comes within that step; never again if None."""

    def add_and_stop(log: StepLog, *arguments: object) -> None:
        add(log, *arguments)
        if len(log) == step:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(StepLog, "add", add_and_stop)


@pytest.fixture
def stopping(monkeypatch):
    """`stopping(step)`: see `stop_in`."""
    return partial(stop_in, patch=monkeypatch)


@pytest.mark.parametrize(("method", "plain", "precision"), ALL)
def test_from_every_step_of_two_epochs_it_goes_on_bit_for_bit(tmp_path, method, plain, precision):
    """No sentence is trained twice and none left out (traps 1, 3), no mask of dropout is another (4, 8).

    Plain, in bf16 and by a relative of LoRA from three steps, one of them the end of an epoch.
    """
    asked = {"method": method, "plain": plain, "precision": precision}
    whole, paths = with_all_checkpoints(tmp_path, **asked)
    assert [path.name for path in paths] == [f"step-{i:09}.safetensors" for i in range(1, STEPS)]
    assert trained(ready(**asked)) == whole, "writing checkpoints is no part of what comes out (trap 14)"
    every = method in METHODS and not plain and precision == "fp32"
    for path in paths if every else paths[::3]:
        assert resumed(path, **asked) == whole


@pytest.mark.parametrize("method", ["lora", "full"])
def test_validating_on_the_way_and_batches_in_parts_go_on_too(tmp_path, method):
    for i, options in enumerate(({"eval_every": 3}, {"gradient_accumulation": 3})):
        whole, paths = with_all_checkpoints(tmp_path / str(i), method=method, **options)
        if "eval_every" in options:
            steps = [row["step"] for row in json.loads(whole.metrics) if "validation_loss" in row]
            assert steps == [3, 6, 8]
        for path in paths[::2]:
            assert resumed(path, method=method, **options) == whole


def test_three_legs_within_one_epoch(tmp_path, stopping):
    """A second stop finds its place as the first did (trap 2); a signal waits for the whole step (5)."""
    asked = {"epochs": 1, "batch_size": 2, "gradient_accumulation": 2}  # 7 steps
    whole = trained(ready(**asked))
    for step in (2, 3, 6):
        stopping(step)
        found = newest(tmp_path)
        with pytest.raises(Interrupted) as interrupt:
            trained(ready(**asked), Checkpoints(tmp_path, {}, 10**6, found and found[1]))
        assert interrupt.value.exit_status == 130
        assert newest(tmp_path)[1].steps == step, "and saving after resuming writes what it reads (trap 10)"
    assert trained(ready(**asked), Checkpoints(tmp_path, {}, 10**6, newest(tmp_path)[1])) == whole


def test_a_signal_in_the_last_step_leaves_nothing_but_the_rest_to_do(tmp_path, stopping):
    whole = trained(ready(eval_every=5))
    stopping(STEPS)
    with pytest.raises(Interrupted):
        trained(ready(eval_every=5), Checkpoints(tmp_path, {}))
    assert newest(tmp_path)[1].steps == STEPS
    assert trained(ready(eval_every=5), Checkpoints(tmp_path, {}, None, newest(tmp_path)[1])) == whole


def test_a_second_signal_acts_at_once():
    with pytest.raises(KeyboardInterrupt) as interrupt, listening() as wish:
        signal.raise_signal(signal.SIGINT)
        assert wish.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        pytest.fail("waited")
    assert not isinstance(interrupt.value, Interrupted)


def test_handlers_are_put_back(monkeypatch):
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with listening():
        assert all(signal.getsignal(n) is not h for n, h in zip(interrupts.SIGNALS, before, strict=True))
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


# The traps of state: what is restored, looked at piece by piece.


def training_state(model: GPT2ForSequenceClassification, steps: int, precision: torch.dtype) -> TrainingState:
    cpu = torch.device("cpu")
    optimizer = make_optimizer(decay_matrices(model.parameters(), 0.1), 1e-2)
    scaler = make_scaler(precision, cpu)
    state = loop.TrainState(model, optimizer, make_schedule(optimizer, steps), scaler, precision)
    return TrainingState(state, StepLog(steps, cpu, torch.float32), PhaseClock(cpu), PeakMemory(cpu))


def stepped(state: TrainingState, steps: int) -> list[float]:
    """Take so many steps over one batch; returns their rates."""
    draw = torch.Generator().manual_seed(len(state.log))
    rates = []
    for _ in range(steps):
        batch = loop.Batch(
            torch.randint(1, 50, (4, 6), generator=draw), torch.full((4,), 6), torch.tensor([0, 1, 0, 1])
        )
        (step,) = loop.train(state.loop, [[batch]])
        state.log.add(step, [batch.lengths])
        rates.append(step.lr)
    return rates


def fresh(seed: int = 0) -> GPT2ForSequenceClassification:
    torch.manual_seed(seed)
    return GPT2ForSequenceClassification(tiny_config())


def kept(snapshot):
    """A copy, as a file would be one."""
    return replace(snapshot, tensors={name: tensor.clone() for name, tensor in snapshot.tensors.items()})


def test_rates_over_the_steps_that_are_left_are_those_of_an_unbroken_run():
    """Making the schedule writes its first rate over the optimizer's (trap 6)."""
    unbroken = training_state(fresh(), 6, torch.float32)
    rates = stepped(unbroken, 6)
    first = training_state(fresh(), 6, torch.float32)
    stepped(first, 3)
    second = training_state(fresh(1), 6, torch.float32)
    second.restore(kept(first.snapshot()))
    assert [group["lr"] for group in second.loop.optimizer.param_groups] == [rates[3]] * 2
    assert stepped(second, 3) == rates[3:] == pytest.approx([5e-3, 1e-2 / 3, 1e-2 / 6])
    assert second.loop.schedule.get_last_lr() == unbroken.loop.schedule.get_last_lr() == [0.0, 0.0]


def test_every_tensor_that_learns_has_its_own_moments():
    """By name, whatever the order of the groups (trap 7)."""
    first = training_state(fresh(), 6, torch.float32)
    stepped(first, 3)
    snapshot = kept(first.snapshot())
    second = training_state(fresh(1), 6, torch.float32)
    second.restore(snapshot)
    learning = {name: p for name, p in second.loop.model.named_parameters() if p.requires_grad}
    assert set(second.loop.optimizer.state) == set(learning.values())
    theirs = dict(first.loop.model.named_parameters())
    for name, parameter in learning.items():
        assert torch.equal(parameter, theirs[name]), name
        for moment in MOMENTS:
            here = second.loop.optimizer.state[parameter][moment]
            assert torch.equal(here, first.loop.optimizer.state[theirs[name]][moment]), (name, moment)
            assert here.any(), (name, moment)


def test_one_tensor_too_few_or_of_another_shape_is_told_by_name():
    first = training_state(fresh(), 6, torch.float32)
    stepped(first, 1)
    snapshot = kept(first.snapshot())
    missing = training_state(fresh(), 6, torch.float32)
    missing.loop.model.score.weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"score\.weight learns there alone"):
        missing.restore(snapshot)
    snapshot.tensors["weights.score.weight"] = torch.zeros(3, 16)
    with pytest.raises(UserError, match=r"score\.weight is \(3, 16\), here \(2, 16\)"):
        training_state(fresh(), 6, torch.float32).restore(snapshot)


def test_what_is_restored_is_no_view_of_what_was_read(tmp_path):
    """Else the next step would change the snapshot, or the next checkpoint what it is read from (trap 10)."""
    first = training_state(fresh(), 6, torch.float32)
    stepped(first, 2)
    path = Checkpoints(tmp_path, {}).write(first)
    _, snapshot = read(path)
    before = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    phases = dict(snapshot.facts["clock"]["phases"])
    second = training_state(fresh(1), 6, torch.float32)
    second.restore(snapshot)
    assert Checkpoints(tmp_path, {}).write(second) == path, "over the file that it was read from"
    assert all(torch.equal(tensor, before[name]) for name, tensor in read(path)[1].tensors.items())
    stepped(second, 2)
    second.clock.phases["forward"] = 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot.tensors.items())
    assert snapshot.facts["clock"]["phases"] == phases


def test_the_scaler_of_fp16_comes_back_with_its_scale_and_what_it_counted():
    """No step is taken to make it (trap 9)."""
    first = training_state(fresh(), 6, torch.float16)
    first.loop.scaler = torch.amp.GradScaler("cpu", init_scale=128.0, growth_interval=2)
    stepped(first, 1)
    assert first.loop.scaler.state_dict()["_growth_tracker"] == 1
    snapshot = replace(kept(first.snapshot()), facts=json.loads(json.dumps(first.snapshot().facts)))
    second = training_state(fresh(1), 6, torch.float16)
    second.restore(snapshot)
    assert second.loop.scaler.state_dict() == first.loop.scaler.state_dict()
    assert second.loop.scaler.get_scale() == 128.0
    stepped(second, 1)
    assert second.loop.scaler.get_scale() == 256.0, "the second good step in a row, in two legs"


def test_steps_that_fp16_left_out_are_counted_over_all_legs(tmp_path, tiny_gpt2, tiny_examples):
    """The first one too, whose moments are still nothing."""
    with torch.no_grad():
        tiny_gpt2.score.weight.mul_(1000)
    start = {name: tensor.clone() for name, tensor in tiny_gpt2.state_dict().items()}

    def run(checkpoints: Checkpoints):
        tiny_gpt2.load_state_dict(start)
        torch.manual_seed(0)
        draw = torch.Generator().manual_seed(0)
        options = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.5, "precision": torch.float16}
        training = train(tiny_gpt2, tiny_examples, Course(**options, generator=draw, checkpoints=checkpoints))
        return training, {name: tensor.clone() for name, tensor in tiny_gpt2.state_dict().items()}

    whole, weights = run(Checkpoints(tmp_path, {}, every=5))
    assert whole.metrics[0]["gradient_norm"] is None and 1 < whole.skipped_steps < 12
    paths = found_in(tmp_path)
    for path in (*paths, *first_steps(tmp_path / "one", run)):
        again, same = run(Checkpoints(tmp_path / "on", {}, 99, read(path)[1]))
        assert (again.metrics, again.decay, again.skipped_steps) == (
            whole.metrics, whole.decay, whole.skipped_steps
        )  # fmt: skip
        assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())


def first_steps(folder: Path, run) -> list[Path]:
    """The checkpoint after the first step alone."""

    class First(Checkpoints):
        def are_due(self, steps: int, ends_epoch: bool) -> bool:
            return steps == 1

    run(First(folder, {}))
    return found_in(folder)


def test_seconds_are_those_of_all_legs_and_no_others(tmp_path, stopping, monkeypatch):
    """By a clock that moves by a second whenever it is asked, and by a million between legs (trap 13)."""
    ticks, offset = itertools.count(), 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)) + offset)
    whole = train_prepared(ready())
    stopping(3)
    with pytest.raises(Interrupted):
        train_prepared(ready(), Checkpoints(tmp_path, {}, 10**6))
    offset = 1e6
    _, snapshot = newest(tmp_path)
    first = snapshot.facts["clock"]
    assert first["seconds"] < 1e6
    training = train_prepared(ready(), Checkpoints(tmp_path, {}, 10**6, snapshot))
    assert training.steps == whole.steps and training.sentences == whole.sentences
    # A leg more is a start and a stop more; what lies between legs counts for none of them.
    assert whole.seconds <= training.seconds <= whole.seconds + 5
    assert training.phases == whole.phases, "each lap takes a second"
    assert all(0 < first["phases"][name] < seconds for name, seconds in training.phases.items())
    assert training.checkpoint_seconds == 0, "that of the leg before was not over when it was written"


def test_the_time_of_writing_is_not_that_of_training(tmp_path, monkeypatch):
    slept = []
    write = Checkpoints.write

    def slow(self: Checkpoints, state: TrainingState):
        slept.append(1e6)
        return write(self, state)

    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)) + sum(slept))
    monkeypatch.setattr(Checkpoints, "write", slow)
    training = train_prepared(ready(), Checkpoints(tmp_path, {}, 3))
    assert len(slept) == 2 and training.seconds < 1e6 and training.checkpoint_seconds > 0


@pytest.mark.parametrize(("every", "after"), [(3, [3, 6]), (None, [4]), (99, [])])
def test_when_one_is_written(tmp_path, every, after):
    """After so many steps, or at the end of an epoch; not after the last step, which files follow."""
    with_all = []
    write = Checkpoints.write

    class Noted(Checkpoints):
        def write(self, state: TrainingState):
            with_all.append(len(state.log))
            return write(self, state)

    train_prepared(ready(), Noted(tmp_path, {}, every))
    assert with_all == after


def test_one_is_written_where_the_last_was_ten_minutes_ago(tmp_path, monkeypatch):
    minutes = itertools.count(step=60 * 4)
    monkeypatch.setattr(time, "monotonic", lambda: next(minutes))
    train_prepared(ready(epochs=1), Checkpoints(tmp_path, {}))
    assert found_in(tmp_path), "an epoch has not ended before"


# From the command line.


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base and a file of sentences; nothing here changes them."""
    folder = tmp_path_factory.mktemp("place")
    write_base(folder / "base")
    write_sentences(folder / "reviews.csv")
    return folder


def flags(place: Path, run: Path, *more: str) -> list[str]:
    paths = ["--model", place / "base", "--dataset", place / "reviews.csv", "--output-dir", run]
    usual = ["--device", "cpu", "--precision", "fp32", "--epochs", "2", "--batch-size", "4", "--rank", "2"]
    return [*map(str, paths), *usual, *more]


@pytest.fixture(scope="module")
def stopped(place, tmp_path_factory) -> Path:
    """The folder of a run that Ctrl-C stopped after 3 of its 8 steps."""
    run, said = tmp_path_factory.mktemp("stopped") / "run", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        stop_in(3, patch)
        assert main(flags(place, run)) == 130
    assert said.getvalue().endswith(f"interrupted; go on with: python run.py --resume {run}\n")
    return run


@pytest.fixture
def interrupted(stopped, tmp_path) -> Path:
    """A copy of its own."""
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    """The folder of the same run without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(flags(place, folder)) == 0
    return folder


def figures(folder: Path) -> dict[str, object]:
    """What results.json says but for time, memory and place, and the bytes of the other files."""
    values = json.loads((folder / "results.json").read_text())
    for name in ("output_dir", "train_seconds", "checkpoint_seconds", "phase_seconds", "memory"):
        del values[name]
    for part in (values, values["evaluation"]):
        del part["sentences_per_second"], part["tokens_per_second"]
    del values["evaluation"]["seconds"], values["config"]["output_dir"], values["config"]["checkpoint_every"]
    assert values["steps"] and values["accuracy"] is not None
    files = ("metrics.jsonl", "adapter_model.safetensors", "adapter_config.json")
    return {**values, **{name: (folder / name).read_bytes() for name in files}}


def refused(capsys, *arguments: str) -> str:
    """The one line that the command line ends in."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    return line


def signalled(*arguments: str) -> None:
    """`run.py`, in a process of its own, which is told to end after its fifth step."""
    add = StepLog.add

    def add_and_signal(log: StepLog, *parts: object) -> None:
        add(log, *parts)
        if len(log) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    StepLog.add = add_and_signal
    sys.argv = ["run.py", *arguments]
    runpy.run_path("run.py", run_name="__main__")


def test_a_signal_to_the_process_leaves_a_checkpoint_and_the_command_that_goes_on(place, whole, tmp_path):
    """It ends as shells expect it, and the command that it prints ends as if nothing had been."""
    run = tmp_path / "a run"  # to be quoted in the command
    done = in_a_fork(signalled, *flags(place, run), folder=ROOT)
    said = done.stderr.splitlines()
    assert done.returncode == 143, said
    assert said[-1].startswith("interrupted; go on with: python run.py --resume ")
    assert not [line for line in said if "Traceback" in line]
    assert found_in(run / "checkpoints")[0].name == "step-000000005.safetensors"
    assert main(shlex.split(said[-1].partition("run.py ")[2])) == 0
    assert figures(run) == figures(whole)
    assert not (run / "checkpoints").exists()


def test_going_on_says_where_and_ends_as_if_nothing_had_been(interrupted, whole, capsys):
    before = json.loads((whole / "results.json").read_text())
    assert main(["--resume", str(interrupted), "--rank", "2", "--checkpoint-every", "2"]) == 0
    assert f"resumed     {interrupted}, after step 3\n" in capsys.readouterr().out
    assert figures(interrupted) == figures(whole)
    assert not (interrupted / "checkpoints").exists()
    after = json.loads((interrupted / "results.json").read_text())
    assert after.keys() == before.keys() and after["files"] == before["files"]
    assert after["phase_seconds"].keys() == before["phase_seconds"].keys()

    assert main(["--resume", str(interrupted)]) == 0
    assert capsys.readouterr().out.startswith(f"finished    {interrupted}: nothing is left")


def test_there_has_to_be_something_to_go_on_with(tmp_path, capsys):
    line = refused(capsys, "--resume", str(tmp_path / "none"))
    assert line == f"error: --resume {tmp_path / 'none'}: no such folder; name the one of an interrupted run"
    (tmp_path / "notes.txt").touch()
    line = refused(capsys, "--resume", str(tmp_path))
    assert line == f"error: --resume {tmp_path}: there is no checkpoint; start the run again without it"


def test_other_settings_are_refused_by_name(interrupted, capsys):
    for given, kept in (
        (["--lr", "0.5"], "--lr 0.00"),
        (["--epochs", "9"], "--epochs "),
        (["--device", "cuda"], "--device cpu;"),
        (["--rank", "4"], "--rank 2;"),
        (["--target-modules", "mlp.c_fc"], "--target-modules attn.c_attn;"),
        (["--method", "none"], "--method lora;"),
        (["--eval-every", "2"], "--eval-every None;"),
        (["--prefix-length", "3"], "the settings that it has, without --prefix-length;"),
        (["--recipe", "published"], "the settings that it has, without --recipe;"),
        (["--dry-run"], "the settings that it has, without --dry-run;"),
        (["--output-dir", "elsewhere"], "--output-dir {run};"),
    ):
        line = refused(capsys, "--resume", str(interrupted), *given)
        expected = f"error: --resume {interrupted} goes on with {kept.format(run=interrupted)}"
        assert line.startswith(expected) and line.endswith("leave the flag out"), given
        assert found_in(interrupted / "checkpoints"), "and nothing is lost"


def test_other_sentences_or_another_base_are_refused(place, tmp_path, stopping, capsys):
    own, run = tmp_path / "place", tmp_path / "run"
    shutil.copytree(place, own)
    stopping(3)
    assert main(flags(own, run)) == 130
    stopping(None)
    for name, damage in (("reviews.csv", "dull,dull"), ("base/model.safetensors", None)):
        file, before = own / name, (own / name).read_bytes()
        if damage:
            file.write_text(before.decode().replace(damage, "dull,good", 1))
        else:
            file.write_bytes(before[:-4] + b"\0\0\0\0")  # of the last weight
        line = refused(capsys, "--resume", str(run))
        what = "--dataset" if damage else "--model"
        assert f"--resume {run}: {what} '" in line and "is not what the run began with; put that back" in line
        file.write_bytes(before)
    assert main(["--resume", str(run)]) == 0


@pytest.mark.filterwarnings("default")
def test_another_machine_is_worth_a_warning(interrupted, whole, capsys, monkeypatch):
    here = of_resume.environment(torch.device("cpu"))
    monkeypatch.setattr(of_resume, "environment", lambda device: {**here, "threads": 64, "python": "4"})
    assert main(["--resume", str(interrupted)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: the run")]
    assert told == [
        "warning: the run goes on elsewhere (threads 1, now 64), so its last bits may be others than without "
        "the interruption"
    ]


def test_a_new_run_does_not_begin_where_one_was_interrupted(place, interrupted, capsys):
    line = refused(capsys, *flags(place, interrupted))
    assert f"{interrupted} holds an interrupted run: --resume {interrupted} goes on with it" in line
    assert newest(interrupted / "checkpoints")[1].steps == 3


@pytest.mark.filterwarnings("default")
def test_a_newest_checkpoint_that_is_cut_off_costs_the_steps_since_the_one_before(
    place, whole, tmp_path, stopping, capsys
):
    stopping(6)
    assert main(flags(place, tmp_path, "--checkpoint-every", "4")) == 130
    stopping(None)
    last = tmp_path / "checkpoints" / "step-000000006.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["--resume", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("warning: step-000000006.safetensors in ") == 1
    assert "is cut off; the one before it is taken" in captured.err and ", after step 4\n" in captured.out
    assert figures(tmp_path) == figures(whole)


@pytest.mark.filterwarnings("default")
def test_an_interruption_without_room_for_a_checkpoint_names_no_command(
    place, tmp_path, stopping, capsys, monkeypatch
):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(of_checkpoints, "save_file", full)
    stopping(3)
    assert main(flags(place, tmp_path / "run")) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "interrupted; no checkpoint of it could be written"
    assert any("warning: no checkpoint after step 3: No space left on device" in line for line in said)
    assert not (tmp_path / "run").exists()


def test_a_file_of_somebody_elses_among_the_checkpoints_stays(place, whole, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "notes.txt").write_text("mine")
    assert main(flags(place, tmp_path / "run")) == 0
    assert "checkpoints" not in capsys.readouterr().err
    assert figures(tmp_path / "run") == figures(whole)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["notes.txt"]


# In a comparison.


@pytest.fixture
def plan(place, monkeypatch) -> tuple[Shared, list[Cell]]:
    monkeypatch.setattr(of_going, "account", lambda prepared: None)
    monkeypatch.setattr(of_going, "_give_memory_back", lambda: None)
    shared = Shared()
    asked = {"model": [str(place / "base")], "dataset": [str(place / "reviews.csv")], "rank": [2]}
    asked |= {"epochs": [2], "batch_size": [4], "precision": ["fp32"], "device": ["cpu"]}
    return shared, list(cells(named(map(shared.decided, asked_for(["lora"], asked, {}))), [0]))


def kept_of(outcome: dict[str, object]) -> dict[str, object]:
    """What a cell holds but for time, memory and load."""
    record = {name: value for name, value in outcome["record"].items() if "second" not in name}
    evaluation = {name: value for name, value in record["evaluation"].items() if "second" not in name}
    record |= {"memory": None, "evaluation": evaluation}
    return {"record": record, "losses": outcome["losses"], "validation": outcome["validation"]}


def test_a_run_of_a_comparison_goes_on_where_it_was_interrupted(tmp_path, plan, stopping, monkeypatch):
    shared, (cell,) = plan
    unbroken = Going(Cells(tmp_path / "unbroken"), shared)
    unbroken.through([cell], "test")

    stopping(5)
    first = Going(Cells(tmp_path / "two"), shared)
    first.through([cell], "test")
    assert first.stopped == "interrupted" and not first.outcomes
    (folder,) = (tmp_path / "two" / "cells").iterdir()
    assert newest(folder)[1].steps == 5

    steps = []
    add = StepLog.add
    stopping(None)
    monkeypatch.setattr(StepLog, "add", lambda log, *parts: (steps.append(len(log) + 1), add(log, *parts)))
    second = Going(Cells(tmp_path / "two"), shared)
    second.through([cell], "test")
    assert steps == [6, 7, 8]
    assert kept_of(second.outcomes[cell]) == kept_of(unbroken.outcomes[cell])
    assert [path.suffix for path in (tmp_path / "two" / "cells").iterdir()] == [".json"]


def test_checkpoints_of_a_cell_stay_until_it_is_kept(tmp_path, plan, monkeypatch):
    shared, (cell,) = plan

    def full(self: Cells, key: dict[str, object], cell: dict[str, object]) -> None:
        raise UserError("no room")

    monkeypatch.setattr(Cells, "write", full)
    going = Going(Cells(tmp_path), shared)
    with pytest.raises(UserError, match="no room"):
        going.through([cell], "test")
    (folder,) = (tmp_path / "cells").iterdir()
    assert newest(folder)[1].steps == 4


def test_a_cell_with_a_damaged_checkpoint_is_begun_again_and_can_go_on_from_there(
    tmp_path, plan, stopping, monkeypatch
):
    """What is damaged is further than what the new try writes, and does not stand in its way."""
    shared, (cell,) = plan
    going = Going(Cells(tmp_path), shared)
    stopping(7)
    going.through([cell], "test")
    (folder,) = (tmp_path / "cells").iterdir()
    path = found_in(folder)[0]
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    stopping(5)
    going.through([cell], "test")
    assert newest(folder)[1].steps == 5
    stopping(None)
    going.through([cell], "test")
    unbroken = Going(Cells(tmp_path / "unbroken"), shared)
    unbroken.through([cell], "test")
    assert kept_of(going.outcomes[cell]) == kept_of(unbroken.outcomes[cell])


def test_a_kill_between_two_files_of_the_result_is_gone_on_from(interrupted, whole, capsys):
    """Once the folder is there its files appear one by one: these are the run's own."""
    (interrupted / "adapter_config.json").write_text("{}")
    assert main(["--resume", str(interrupted)]) == 0
    assert figures(interrupted) == figures(whole)


def test_another_tokenizer_or_dropout_than_at_the_start_is_refused(interrupted):
    said, _ = newest(interrupted / "checkpoints")
    for what in ("tokenizer", "config.json"):
        (name,) = [name for name in said["sources"] if what in name]
        changed = {**said, "sources": {**said["sources"], name: "another"}}
        prepared = prepare(of_resume.config_of(said, interrupted, {}))
        with pytest.raises(UserError, match=f"the {what} of --model .* is not what the run began with"):
            of_resume.check_same(changed, prepared, interrupted)


def test_checkpoints_that_are_of_no_run_are_told(interrupted, monkeypatch):
    monkeypatch.setattr(of_checkpoints, "newest", lambda folder: ({}, None))
    with pytest.raises(UserError, match="are of no run"):
        of_resume.unfinished(interrupted)


def test_the_last_validation_does_not_swallow_ctrl_c(tmp_path, monkeypatch):
    """A signal while it measures after the last step: the run is interrupted all the same."""
    measure = of_execute.validate

    def signalled(*arguments: object) -> dict[str, float | None]:
        signal.raise_signal(signal.SIGINT)
        return measure(*arguments)

    monkeypatch.setattr(of_execute, "validate", signalled)
    with pytest.raises(Interrupted):
        train_prepared(ready(eval_every=10**6), Checkpoints(tmp_path / "it", {}))
    assert newest(tmp_path / "it")[1].steps == STEPS


def test_the_interval_of_checkpoints_is_kept_unless_another_is_asked_for(interrupted):
    said, _ = newest(interrupted / "checkpoints")
    said["config"]["checkpoint_every"] = 7
    assert of_resume.config_of(said, interrupted, {}).checkpoint_every == 7
    assert of_resume.config_of(said, interrupted, {"checkpoint_every": 2}).checkpoint_every == 2


def test_signals_that_were_ignored_stay_so():
    """As for a job that a script runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as wish:
            signal.raise_signal(signal.SIGINT)
        assert wish.signal is None
    finally:
        signal.signal(signal.SIGINT, before)

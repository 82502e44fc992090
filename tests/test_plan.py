"""A plan of runs and its cells: what is run, what is believed, what happens when a run fails or is killed."""

from __future__ import annotations

import errno
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from forks import in_a_fork
from small_runs import write_base

from lora_from_scratch.cli import main as cli
from lora_from_scratch.compare import cells as of_cells
from lora_from_scratch.compare import going as of_going
from lora_from_scratch.compare import shared as of_shared
from lora_from_scratch.compare.accounting import account
from lora_from_scratch.compare.cells import Cells, code_version, digest_of, key_of
from lora_from_scratch.compare.going import Going, thinned
from lora_from_scratch.compare.plan import (
    Cell,
    OneMethods,
    Variant,
    asked_for,
    cells,
    named,
    strangers,
    with_one_methods_values,
)
from lora_from_scratch.compare.shared import Shared
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats import whole_files
from lora_from_scratch.report import page
from lora_from_scratch.runs.config import RECIPES, RunConfig
from lora_from_scratch.runs.execute import run
from lora_from_scratch.runs.prepare import prepare
from lora_from_scratch.runs.sources import Sources, find_sources
from lora_from_scratch.train.log import StepLog

ROOT = Path(__file__).parents[1]
give_memory_back = of_going._give_memory_back
LEFT = {"status": "done", "record": {}, "losses": [], "validation": [], "accounted": None}  # of a run
REVIEWS = "".join(
    f"{word} film number {i},{label}\n" for i in range(15) for word, label in (("good", 1), ("dull", 0))
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """30 rows, of which 3 are held out: a run takes less than a second."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("text,label\n" + REVIEWS, encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def light(monkeypatch) -> None:
    """Memory is neither accounted for nor given back: each takes longer than a run of these."""
    monkeypatch.setattr(of_going, "account", lambda prepared: None)
    monkeypatch.setattr(of_going, "_give_memory_back", lambda: None)


@pytest.fixture(scope="module")
def quick(dataset) -> RunConfig:
    base = str(write_base(Path(dataset).with_name("base")))
    return RunConfig(model=base, dataset=dataset, device="cpu", precision="fp32", max_steps=2, rank=2)


@pytest.fixture(scope="module")
def shared() -> Shared:
    return Shared()


def plan_of(quick: RunConfig, shared: Shared, *methods: str, seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    flags = {"model": [quick.model], "dataset": [quick.dataset], "max_steps": [2], "precision": ["fp32"]}
    return list(cells(named(map(shared.decided, asked_for(methods, flags, {}))), seeds))


def test_every_combination_of_a_methods_own_flags_is_planned():
    flags = {"rank": [1, 4], "lr": [1e-3, 2e-3, 3e-3], "prefix_length": [5, 6]}
    found = asked_for(["none", "head", "lora", "prefix"], flags, {})
    counts = Counter(config.method for config in found)
    assert counts == {"none": 1, "head": 3, "lora": 6, "prefix": 6}
    assert {(c.settings.rank, c.lr) for c in found if c.method == "lora"} == {
        (rank, lr) for rank in flags["rank"] for lr in flags["lr"]
    }


def test_flags_go_before_a_recipe_and_a_recipe_before_defaults():
    (config,) = asked_for(["lora"], {"batch_size": [8]}, RECIPES["published"])
    assert (config.batch_size, config.lr, config.epochs, config.max_length) == (8, 2e-4, 2, 128)


def test_a_value_of_one_method_is_that_methods_alone_and_its_label_tells_it():
    methods = ["head", "lora", "dora", "pissa"]
    flags = {"rank": [4, OneMethods("dora", 3)], "lr": [OneMethods("lora", 1e-3), OneMethods("lora", 2e-3)]}
    configs = asked_for(methods, flags, {"lr": 5e-3})
    found = [(c.method, getattr(c.settings, "rank", None), c.lr) for c in configs]
    of_others = [("dora", 3, 5e-3), ("pissa", 4, 5e-3)]
    assert found == [("head", None, 5e-3), ("lora", 4, 1e-3), ("lora", 4, 2e-3), *of_others]
    told = with_one_methods_values(methods, flags)
    assert told == [("rank", "dora"), ("lr", "lora"), ("lr", "lora")]
    labels = [variant.label for variant in named(configs, told)]
    assert labels == ["head", "lora, lr 0.001", "lora, lr 0.002", "dora, rank 3", "pissa"]
    of_one_rate = named(asked_for(["lora"], {"lr": [OneMethods("lora", 1e-3)]}, {}), [("lr", "lora")])
    assert [variant.label for variant in of_one_rate] == ["lora"], "the rate has a column"
    (alone,) = asked_for(["lora"], {"rank": [OneMethods("dora", 3)]}, {})
    assert alone.settings.rank == 4, "the default, where only another method has a value"


def test_flags_of_no_planned_method_are_known():
    assert strangers(["head", "full"], ["rank", "lr", "dataset"]) == ["rank"]
    assert strangers(["none"], ["lr"]) == ["lr"] and not strangers(["none", "lora"], ["lr", "rank"])


def test_a_label_names_what_differs_within_a_method():
    flags = {"rank": [1, 4], "alpha": [16.0], "target_modules": [("attn.c_attn", "mlp.c_fc")]}
    variants = named(asked_for(["lora", "head"], flags, {}))
    assert [v.label for v in variants] == ["lora, rank 1", "lora, rank 4", "head"]
    assert [v.differs for v in variants] == [{"rank": 1}, {"rank": 4}, {}]


def test_settings_that_differ_have_labels_that_differ():
    flags = {"lr": [1e-3, 0.00012345, 0.00012346, 0.1 + 0.2, 0.3], "plain": [False, True]}
    labels = [variant.label for variant in named(asked_for(["head"], flags, {}))]
    assert len(set(labels)) == 10 and labels[0] == "head, lr 0.001, plain no"
    assert labels[3] == "head, lr 0.00012345, plain yes"


def test_what_comes_to_the_same_is_run_once():
    twice = asked_for(["lora"], {"lr": [1e-5, 0.00001], "seed": [0, 1]}, {})
    assert len(twice) == 4 and len(named(twice)) == 1


def test_a_dataset_is_one_however_its_path_is_spelled(quick, monkeypatch):
    folder, name = os.path.split(quick.dataset)
    monkeypatch.chdir(folder)
    shared = Shared()
    asked = [replace(quick, dataset=spelled) for spelled in (f"./{name}", name, quick.dataset)]
    assert len(named(map(shared.decided, asked))) == 1 and len(shared.found()) == 1


def test_what_stands_in_for_a_name_is_found_under_its_own(quick, monkeypatch):
    asked: list[RunConfig] = []

    def find(config: RunConfig, keep: bool) -> Sources:
        asked.append(config)
        return find_sources(replace(config, model="bundled", dataset=quick.dataset), keep)

    monkeypatch.setattr(of_shared, "find_sources", find)
    shared = Shared()
    assert shared(shared.decided(RunConfig(method="head"))) is shared(RunConfig(method="lora"))
    assert len(asked) == len(shared.found()) == 1


@pytest.mark.parametrize(
    "changes", [{"target_modules": ("nonsense",)}, {"max_length": 5000}, {"positive_class": "nonsense"}]
)
def test_what_base_or_data_lack_is_told_before_anything_is_run(quick, shared, changes):
    shared(quick)
    with pytest.raises(UserError, match=r"nonsense|--max-length 5000"):
        shared.decided(replace(quick, **changes))


def test_methods_take_turns_within_a_seed():
    variants = named(asked_for(["head", "lora"], {}, {}))
    assert [str(cell) for cell in cells(variants, [3, 4])] == [
        "head, seed 3", "lora, seed 3", "head, seed 4", "lora, seed 4"
    ]  # fmt: skip


def test_shared_sources_give_the_run_that_one_alone_gives(quick, shared):
    """A base loaded once and copied, tokens made once: not a bit differs from a run by itself."""
    for config in (quick, replace(quick, method="full", seed=1, limit_train=10)):
        alone = run(config)
        for _ in range(2):  # the second after a first one has trained on its copy
            prepared = prepare(config, shared(config))
            among = of_going.execute(prepared)
            assert among.evaluation.probabilities == alone.evaluation.probabilities
            for name, parameter in alone.prepared.model.named_parameters():
                assert torch.equal(parameter, prepared.model.get_parameter(name)), name
            assert among.as_dict()["config"] == alone.as_dict()["config"]


def test_the_base_is_loaded_once_and_the_sentences_are_tokenised_once(quick, monkeypatch):
    from lora_from_scratch.runs import sources

    counts = {"load_headless": 0, "tokenize": 0}

    def counting(name, function):
        def counted(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return counted

    monkeypatch.setattr(sources.base, "load_headless", counting("load_headless", sources.base.load_headless))
    monkeypatch.setattr(sources, "tokenize", counting("tokenize", sources.tokenize))
    shared = Shared()
    for method in ("lora", "head", "full"):
        for seed in (0, 1):
            prepare(replace(quick, method=method, seed=seed), shared(quick))
    assert counts == {"load_headless": 1, "tokenize": 2}  # train and validation


def test_random_weights_are_drawn_by_the_seed_in_a_comparison_too(quick):
    config = replace(quick, random_init=True, method="none")
    sources = find_sources(config, keep=True)
    for seed in (0, 1):
        alone = prepare(replace(config, seed=seed)).model
        among = prepare(replace(config, seed=seed), sources).model
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), among.parameters(), strict=True))


@pytest.fixture
def key(quick, shared) -> dict[str, object]:
    return key_of(shared.decided(quick), digest_of(shared(quick)))


def test_a_cell_is_read_back_by_its_key_alone(tmp_path, key):
    cells = Cells(tmp_path)
    written = cells.write(key, {**LEFT, "seconds": 1.5})
    assert cells.read(json.loads(json.dumps(key))) == written
    (file,) = (tmp_path / "cells").iterdir()
    assert len(file.stem) == 32
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace('"seed": 0', '"seed": 7'), encoding="utf-8")
    assert cells.read(key) is None, "its name fits, what it says does not"
    for damaged in ("", "{", "[]", "null", whole.replace('"record"', '"other"'), '{"status": "failed"}'):
        file.write_text(damaged, encoding="utf-8")
        assert cells.read(key) is None, damaged
    file.unlink()
    file.mkdir()
    assert cells.read(key) is None
    with pytest.raises(UserError, match="cannot be written: Is a directory; mend that"):
        cells.write(key, LEFT)


def test_a_cell_that_was_changed_by_hand_is_told_and_run_again(tmp_path, quick, shared, failing):
    (cell,), tried = plan_of(quick, shared, "none"), failing({})
    going = Going(Cells(tmp_path), shared)
    going.through([cell], "test")
    (file,) = (tmp_path / "cells").iterdir()
    whole = json.loads(file.read_bytes())
    better, unsealed = json.loads(file.read_bytes()), dict(whole)
    better["record"]["accuracy"] += 1.0
    better["record"]["evaluation"]["predictions"][0] ^= 1
    del unsealed["contents_sha256"]
    for changed in (better, unsealed):
        file.write_text(json.dumps(changed), encoding="utf-8")
        with pytest.warns(UserWarning, match=r"\.json in '.* is damaged, or was changed by hand; it is not"):
            assert going.done([cell]) == {}
        with pytest.warns(UserWarning, match="was changed by hand"):
            Going(Cells(tmp_path), shared).through([cell], "test")
        assert json.loads(file.read_bytes())["record"]["accuracy"] == whole["record"]["accuracy"]
    assert tried == ["none 0"] * 3
    file.write_text(json.dumps(whole, indent=3), encoding="utf-8")  # no other values
    assert going.done([cell])


def test_two_processes_write_into_one_folder(tmp_path, key, monkeypatch):
    """The other one makes the folder, and a cell in it, just before this one's cell appears."""
    publish = whole_files._publish

    def slower(path: Path) -> None:
        (tmp_path / "cells").mkdir(exist_ok=True)
        (tmp_path / "cells" / "other.json").touch()
        publish(path)

    monkeypatch.setattr(whole_files, "_publish", slower)
    cells = Cells(tmp_path)
    assert cells.write(key, LEFT) == cells.read(key)
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_everything_that_a_run_depends_on_is_in_its_key(tmp_path, quick, shared, key, monkeypatch):
    cells, decided = Cells(tmp_path), shared.decided(quick)
    digest = digest_of(shared(quick))
    cells.write(key, LEFT)
    for changes in (
        {"rank": 3},
        {"seed": 1},
        {"lr": 1e-5},
        {"precision": "bf16"},
        {"plain": True},
        {"eval_every": 1},
    ):
        assert cells.read(key_of(replace(decided, **changes), digest)) is None, changes
    for part in digest:
        assert cells.read(key_of(decided, {**digest, part: "another"})) is None, part
    assert cells.read(key_of(replace(decided, output_dir="elsewhere"), digest)), (
        "where it lands changes nothing"
    )
    version = {**code_version(), "digest": "another"}
    monkeypatch.setattr(of_cells, "code_version", lambda: version)
    assert cells.read(key_of(decided, digest)) is None


def test_other_data_is_another_cell(tmp_path, quick):
    """Under the same name, which is all that the settings say of it."""
    file = tmp_path / "reviews.csv"
    digests = []
    for label in (1, 0):
        file.write_text(f"text,label\n{REVIEWS}a long film,{label}\n", encoding="utf-8")
        digests.append(digest_of(Shared()(replace(quick, dataset=str(file)))))
    first, second = digests
    assert first.pop("data") != second.pop("data") and first == second
    assert first.keys() == {"base_weights", "base_config", "tokenizer"}


def test_numbers_have_one_spelling(tmp_path, quick, shared):
    cells, digest = Cells(tmp_path), digest_of(shared(quick))
    cells.write(key_of(replace(quick, alpha=16, lr=1e-5), digest), LEFT)
    assert cells.read(key_of(replace(quick, alpha=16.0, lr=0.00001), digest))


def test_the_code_counts_and_its_comments_do_not(tmp_path, monkeypatch):
    package = tmp_path / "lora_from_scratch"
    (package / "core").mkdir(parents=True)
    file = package / "core" / "lora.py"
    monkeypatch.setattr(of_cells, "PACKAGE", package)

    def digest(text: str) -> str:
        file.write_text(text, encoding="utf-8")
        code_version.cache_clear()
        return code_version()["digest"]

    assert (
        code_version().items()
        >= {"torch": torch.__version__, "transformers": transformers.__version__}.items()
    )
    first = digest('"""A layer."""\ndef f(x):\n    """Twice."""\n    return 2 * x  # why\n')
    assert digest('"""The layer."""\n\n\ndef f(x):\n    """Two times."""\n    return 2 * x\n') == first
    assert digest("def f(x):\n    return 3 * x\n") != first
    monkeypatch.undo()
    code_version.cache_clear()


def test_a_plan_is_gone_through_once(tmp_path, quick, shared, monkeypatch):
    monkeypatch.setattr(of_going, "account", account)
    plan = plan_of(quick, shared, "none", "lora", seeds=(0, 1))
    going = Going(Cells(tmp_path), shared)
    going.through(plan, "test")
    assert list(going.outcomes) == plan and all(one["status"] == "done" for one in going.outcomes.values())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert len(files) == 4

    again = Going(Cells(tmp_path), shared)
    again.through(plan, "test")
    assert again.outcomes == going.outcomes
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == files

    outcome = going.outcomes[plan[-1]]
    alone = run(plan[-1].config).as_dict()
    assert outcome["record"]["evaluation"]["predictions"] == alone["evaluation"]["predictions"]
    assert outcome["record"]["evaluation"]["loss"] == alone["evaluation"]["loss"]
    assert [step for step, _ in outcome["losses"]] == [1, 2] and outcome["validation"] == []
    assert len(outcome["load_average"]) == 2 and outcome["seconds"] > 0
    assert outcome["accounted"].keys() == {"weights", "gradients", "moments", "activations"}
    assert outcome["warnings"] == []


def test_memory_is_given_back_before_a_run_and_the_load_read_on_either_side(
    quick, shared, tmp_path, monkeypatch
):
    order, loads = [], iter((0.5, 1.5, 2.5, 3.5))
    monkeypatch.setattr(of_going, "_load_average", lambda: next(loads))
    monkeypatch.setattr(of_going, "_give_memory_back", lambda: order.append("given back"))
    monkeypatch.setattr(
        of_going, "execute", lambda prepared, checkpoints: order.append(prepared.config.method)
    )
    going = Going(Cells(tmp_path), shared)
    going.through(plan_of(quick, shared, "none", "head"), "test")
    assert [one["load_average"] for one in going.outcomes.values()] == [[0.5, 1.5], [2.5, 3.5]]
    assert order == ["given back", "none", "given back", "head"]
    give_memory_back()  # as the system can


@pytest.fixture
def failing(monkeypatch):
    """Runs that fail as told, by label; returns the list of those that were tried."""
    tried: list[str] = []

    def go(errors: dict[str, Exception]):
        def execute(prepared, checkpoints=None):
            tried.append(f"{prepared.config.method} {prepared.config.seed}")
            if error := errors.get(prepared.config.method):
                raise error
            return original(prepared)

        original = of_going.execute
        monkeypatch.setattr(of_going, "execute", execute)
        return tried

    return go


def test_a_failing_run_is_noted_and_the_others_go_on(tmp_path, quick, shared, failing):
    failing({"head": UserError("the loss is nan after 20 steps"), "lora": RuntimeError("of ours\nand more")})
    going = Going(Cells(tmp_path), shared)
    plan = plan_of(quick, shared, "head", "lora", "none")
    going.through(plan, "test")
    assert going.stopped is None
    errors = [one.get("error") for one in going.outcomes.values()]
    assert errors == ["the loss is nan after 20 steps", "RuntimeError: of ours", None]


def test_a_loss_that_is_no_number_is_a_failure(tmp_path, quick, shared):
    asked = asked_for(["lora"], {"lr": [1e30], "model": [quick.model], "dataset": [quick.dataset]}, {})
    (cell,) = cells(named(map(shared.decided, asked)), [0])
    going = Going(Cells(tmp_path), shared)
    going.through([cell], "test")
    assert going.outcomes[cell]["status"] == "failed" and "--lr 1e+30" in going.outcomes[cell]["error"]


def test_what_failed_is_tried_again_and_what_is_done_is_not(tmp_path, quick, shared, failing):
    plan = plan_of(quick, shared, "head", "none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            of_going, "execute", lambda prepared, checkpoints: (_ for _ in ()).throw(OSError("a full disk"))
        )
        Going(Cells(tmp_path), shared).through(plan[:1], "test")
    tried = failing({})
    going = Going(Cells(tmp_path), shared)
    going.through(plan, "test")
    going.through(plan, "test")
    assert tried == ["head 0", "none 0"] and all(one["status"] == "done" for one in going.outcomes.values())


def test_what_another_process_has_done_meanwhile_is_taken(tmp_path, quick, shared, failing, monkeypatch):
    """It works in the same folder: what it finished is not repeated, nor replaced by a failure."""
    plan, other = plan_of(quick, shared, "none", "head"), Going(Cells(tmp_path), shared)
    tried, execute = failing({}), of_going.execute

    def overtaken(prepared, checkpoints=None):
        monkeypatch.setattr(of_going, "execute", execute)
        other.through(plan, "test")
        raise FileNotFoundError("the other's checkpoint is gone")

    monkeypatch.setattr(of_going, "execute", overtaken)
    going = Going(Cells(tmp_path), shared)
    going.through(plan, "test")
    assert tried == ["none 0", "head 0"]
    assert going.outcomes == other.outcomes == Going(Cells(tmp_path), shared).done(plan)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2][:15], 16))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def at_work(tmp_path):
    """Start a process that is at work on a run, by the lock that it holds, until it is killed."""
    started = []

    def start(going: Going, cell: Cell) -> subprocess.Popen:
        name = going.cells.checkpoints(going._key(cell)).stem
        command = [sys.executable, "-c", HOLD, str(tmp_path / "cells.lock"), name]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_that_another_process_is_at_work_on_comes_last_and_is_not_repeated(
    tmp_path, quick, shared, failing, monkeypatch, capsys, at_work
):
    """Nor is anything waited for while other runs are left; the other process finishes after two looks."""
    plan, tried = plan_of(quick, shared, "none", "head", "lora"), failing({})
    going = Going(Cells(tmp_path), shared)
    process, looks = at_work(going, plan[0]), []
    left = {**going._run(plan[0]), "seconds": 1.25}
    tried.clear()

    def look(seconds: float) -> None:
        looks.append(list(tried))
        if len(looks) == 2:
            going.cells.write(going._key(plan[0]), left)
            process.kill()
            process.wait()

    monkeypatch.setattr(of_going.time, "sleep", look)
    going.through(plan, "test")
    assert tried == ["head 0", "lora 0"] and looks == [tried, tried]
    assert list(going.outcomes) == [plan[1], plan[2], plan[0]] and going.outcomes[plan[0]]["seconds"] == 1.25
    told = "none, seed 0: at work in another process, which is waited for; Ctrl-C ends this one"
    assert capsys.readouterr().err.count(told) == 1


def test_a_run_whose_process_is_killed_is_run_by_the_one_that_waited(
    tmp_path, quick, shared, failing, monkeypatch, at_work
):
    plan, tried = plan_of(quick, shared, "none"), failing({})
    going = Going(Cells(tmp_path), shared)
    process, looks = at_work(going, plan[0]), []

    def look(seconds: float) -> None:
        looks.append(seconds)
        process.kill()
        process.wait()

    monkeypatch.setattr(of_going.time, "sleep", look)
    going.through(plan, "test")
    assert tried == ["none 0"] and going.outcomes[plan[0]]["status"] == "done" and len(looks) == 1


def test_ctrl_c_ends_the_waiting(tmp_path, quick, shared, failing, monkeypatch, at_work):
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    plan, tried = plan_of(quick, shared, "none", "head"), failing({})
    going = Going(Cells(tmp_path), shared)
    at_work(going, plan[0])
    monkeypatch.setattr(of_going.time, "sleep", interrupted)
    going.through(plan, "test")
    assert going.stopped == "interrupted" and list(going.outcomes) == [plan[1]] and tried == ["head 0"]


def test_where_the_system_knows_no_locks_nobody_is_kept_off(tmp_path, key, monkeypatch):
    """As on Windows, and on some network file systems."""

    def without(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(of_cells.fcntl, "lockf", without)
    for system in (of_cells.fcntl, None):
        monkeypatch.setattr(of_cells, "fcntl", system)
        with Cells(tmp_path).claimed(key) as mine:
            assert mine
    monkeypatch.undo()
    (tmp_path / "cells.lock").unlink()
    (tmp_path / "cells.lock").mkdir()
    with pytest.raises(UserError, match="cannot be written: Is a directory"), Cells(tmp_path).claimed(key):
        pass


def both_at_once(model: str, dataset: str, out: str) -> None:
    """Two `run.py compare` of one plan, started together; a line of runs.txt for each run that was made."""
    of_going.account, of_going.BETWEEN_LOOKS = lambda prepared: None, 0.05
    page.comparison_pictures = lambda comparison: {}
    execute = of_going.execute

    def noted(prepared: object, checkpoints: object) -> object:
        with Path(out, "runs.txt").open("a") as file:
            file.write(f"{prepared.config.method} {prepared.config.seed}\n")
        return execute(prepared, checkpoints)

    of_going.execute = noted
    flags = ["--model", model, "--dataset", dataset, "--max-steps", "2", "--precision", "fp32"]
    command = ["compare", "--methods", "head", "lora", "--seeds", "0", "1", *flags, "--output-dir", out]
    children = []
    for _ in range(2):
        children.append(os.fork())
        if not children[-1]:
            os._exit(cli.main(command))
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


def test_two_commands_in_one_folder_share_the_runs_and_both_end_with_all(tmp_path, quick):
    done = in_a_fork(both_at_once, quick.model, quick.dataset, tmp_path, folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "runs.txt").read_text().splitlines()) == [
        "head 0",
        "head 1",
        "lora 0",
        "lora 1",
    ]
    assert done.stdout.count("done        4 of 4 runs, 0 failed") == 2
    assert not list((tmp_path / "cells").glob("*.checkpoints"))


def test_three_equal_failures_in_a_row_end_it(tmp_path, quick, shared, failing):
    tried = failing({"head": RuntimeError("no memory"), "lora": RuntimeError("no memory")})
    going = Going(Cells(tmp_path), shared)
    going.through(plan_of(quick, shared, "none", "head", "lora", seeds=(0, 1, 2)), "test")
    assert len(tried) == 9 and going.stopped is None, "a run that is done in between starts the count anew"

    tried.clear()
    going = Going(Cells(tmp_path / "b"), shared)
    going.through(plan_of(quick, shared, "head", "lora", seeds=(0, 1, 2)), "test")
    assert tried == ["head 0", "lora 0", "head 1"]
    assert going.stopped == "3 equal failures in a row: RuntimeError: no memory"


def test_a_rate_that_is_too_high_is_no_fault_of_all(tmp_path, quick, shared, failing):
    too_high = UserError("the loss is nan after 20 steps: --lr 1 is too high for this run")
    tried = failing({"head": too_high, "lora": too_high})
    going = Going(Cells(tmp_path), shared)
    going.through(plan_of(quick, shared, "head", "lora", seeds=(0, 1, 2)), "test")
    assert len(tried) == 6 and going.stopped is None, "a tuning has to try such rates"


def test_a_warning_names_its_run(tmp_path, quick, shared, monkeypatch, capsys):
    def execute(prepared, checkpoints=None):
        warnings.warn("the loss rose", stacklevel=1)
        if prepared.config.method == "lora":
            warnings.warn(f"it is {prepared.config.seed}", stacklevel=1)
            warnings.warn("for developers", DeprecationWarning, stacklevel=1)
        return original(prepared)

    original = of_going.execute
    monkeypatch.setattr(of_going, "execute", execute)
    going = Going(Cells(tmp_path), shared)
    going.through(plan_of(quick, shared, "head", "lora", seeds=(0, 1)), "test")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: head, seed 0: the loss rose",
        "warning: lora, seed 0: it is 0",
        "warning: lora, seed 1: it is 1",
    ]
    told = [one["warnings"] for one in going.outcomes.values()]
    assert told == [
        ["the loss rose"],
        ["the loss rose", "it is 0"],
        ["the loss rose"],
        ["the loss rose", "it is 1"],
    ]


def test_an_interruption_keeps_what_is_done(tmp_path, quick, shared, failing):
    failing({"lora": KeyboardInterrupt()})
    going = Going(Cells(tmp_path), shared)
    plan = plan_of(quick, shared, "none", "lora", "head")
    going.through(plan, "test")
    assert going.stopped == "interrupted" and list(going.outcomes) == plan[:1]
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_a_curve_is_thinned_to_means(quick):
    points = [(step, float(step)) for step in range(1, 1001)]
    thin = thinned(points)
    assert len(thin) == 200 and thin[0] == [5, 3.0] and thin[-1] == [1000, 998.0]
    assert thinned(points[:3]) == [[1, 1.0], [2, 2.0], [3, 3.0]] and thinned([]) == []


def test_the_time_left_is_what_runs_of_the_same_kind_took():
    head, full = (Cell(Variant(RunConfig(method=name), name, {}), 0) for name in ("head", "full"))
    took = {head: {"status": "done", "seconds": 60.0}, full: {"status": "done", "seconds": 600.0}}
    took[replace(full, seed=3)] = {"status": "failed", "seconds": 1.0}
    left = [replace(full, seed=1), replace(head, seed=1), replace(full, seed=2)]
    assert of_going._time_left(left, took) == ", 21 min left" and of_going._time_left(left, {}) == ""
    assert of_going._time_left(left[:0], took) == ", under a minute left"
    other_rate = Cell(Variant(RunConfig(method="full", lr=1.0), "full, lr 1", {}), 0)
    other_method = Cell(Variant(RunConfig(method="lora"), "lora", {}), 0)
    assert of_going._time_left([other_rate, other_method], took) == ", 16 min left"
    other_data = Cell(Variant(RunConfig(method="full", dataset="other.csv"), "full", {}), 0)
    assert of_going._time_left([other_data], took) == ", 6 min left", "its label says nothing of its length"


def killed_in_its_second_run(model: str, dataset: str, out: str) -> None:
    """`run.py compare`, in a process of its own, that is killed in the first step there is after a cell."""
    add = StepLog.add

    def killed(log: StepLog, *parts: object) -> None:
        if list(Path(out, "cells").glob("*.json")):
            os.kill(os.getpid(), signal.SIGKILL)
        add(log, *parts)

    StepLog.add = killed
    of_going.account = lambda prepared: None
    flags = ["--model", model, "--dataset", dataset, "--max-steps", "2", "--precision", "fp32"]
    plan = ["--methods", "none", "lora", "--seeds", "0", "1"]
    sys.argv = ["run.py", "compare", *plan, *flags, "--output-dir", out]
    runpy.run_path("run.py", run_name="__main__")


def test_killed_and_started_again_it_goes_on(tmp_path, quick, shared, failing):
    """SIGKILL in the middle of a plan: the cells that were finished stay, and no other is there."""
    done = in_a_fork(killed_in_its_second_run, quick.model, quick.dataset, tmp_path, folder=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    cells = tmp_path / "cells"
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 1 <= len(done) < 4

    tried, going = failing({}), Going(Cells(tmp_path), shared)
    plan = plan_of(quick, shared, "none", "lora", seeds=(0, 1))
    going.through(plan, "test")
    assert len(tried) == 4 - len(done), "what had finished is not run again"
    assert set(going.outcomes) == set(plan) and all(
        one["status"] == "done" for one in going.outcomes.values()
    )
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(cells.glob("*.json"))) == 4

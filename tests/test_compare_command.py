"""run.py compare and run.py tune, from flags to files."""

from __future__ import annotations

import csv
import html
import json
import shlex
import warnings
from pathlib import Path

import pytest

from lora_from_scratch.cli import main as cli
from lora_from_scratch.cli.flags import command_parser
from lora_from_scratch.compare import going
from lora_from_scratch.errors import UserError
from lora_from_scratch.report import page

pytestmark = pytest.mark.usefixtures("tiny_bundle")
ROWS = "".join(
    f"{word} film number {i},{label}\n" for i in range(15) for word, label in (("good", 1), ("dull", 0))
)
QUICK = ["--model", "bundled", "--precision", "fp32", "--device", "cpu", "--max-steps", "2"]
ACCOUNT = {"weights": 4000, "gradients": 300, "moments": 600, "activations": 5000}


@pytest.fixture(scope="module", autouse=True)
def light():
    """Memory is neither accounted for nor given back: each takes longer than a run of these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(going, "account", lambda prepared: ACCOUNT)
        patch.setattr(going, "_give_memory_back", lambda: None)
        yield


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """The page without its pictures, which take longer than the runs."""
    monkeypatch.setattr(page, "comparison_pictures", lambda comparison: {})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("text,label\n" + ROWS, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def compared(dataset, tmp_path_factory) -> Path:
    """The folder of a comparison of two methods over two seeds, one of them with two ranks."""
    folder = tmp_path_factory.mktemp("compared")
    flags = shlex.split("--methods lora none --seeds 0 1 --eval-every 1 --rank 1 2")
    assert cli.main(["compare", *QUICK, "--dataset", dataset, *flags, "--output-dir", str(folder)]) == 0
    return folder


def results(folder: Path) -> dict[str, object]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_flags_take_lists_of_what_a_run_takes():
    parse = command_parser("compare").parse_args
    asked = "--lr 1e-4 1e-3 --plain no yes --target-modules attn.c_attn,mlp.c_fc all-linear"
    flags = vars(parse(shlex.split(asked)))
    assert flags["lr"] == [1e-4, 1e-3] and flags["plain"] == [False, True]
    assert flags["target_modules"] == [("attn.c_attn", "mlp.c_fc"), ("all-linear",)]
    assert "rank" not in flags and flags["seeds"] == (0, 1, 2) and len(flags["methods"]) == 6
    assert {"lr", "seed", "seeds"}.isdisjoint(vars(command_parser("tune").parse_args([])))


def test_a_comparison_leaves_its_page_tables_and_cells(compared):
    names = {path.name for path in compared.iterdir()}
    assert names >= {"cells", "results.json", "report.html", "table.md", "runs.csv"}
    assert len(list((compared / "cells").iterdir())) == 6
    found = results(compared)
    assert (found["kind"], found["planned"], found["done"], found["failed"]) == ("comparison", 6, 6, 0)
    labels = [row["label"] for row in found["datasets"][0]["variants"]]
    assert labels == ["none", "lora, rank 1", "lora, rank 2"] and found["reference"] == "lora, rank 1"
    lora = found["datasets"][0]["variants"][1]
    assert [run["seed"] for run in lora["runs"]] == [0, 1]
    assert [[step for step, *_ in run["validation"]] for run in lora["runs"]] == [[1, 2], [1, 2]]
    assert lora["accounted"] == ACCOUNT
    with (compared / "runs.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    page = html.unescape((compared / "report.html").read_text(encoding="utf-8")).replace("\u00a0", " ")
    assert found["datasets"][0]["headline"] in page and "lora, rank 2" in page


def test_what_is_done_is_said_and_not_repeated(compared, dataset, capsys, monkeypatch):
    monkeypatch.setattr(
        going, "execute", lambda prepared, checkpoints: pytest.fail("repeated what had finished")
    )
    flags = shlex.split("--methods none lora --rank 1 --seeds 1 --eval-every 1 --dry-run")
    assert cli.main(["compare", *QUICK, "--dataset", dataset, *flags, "--output-dir", str(compared)]) == 0
    out = capsys.readouterr().out
    assert "runs        2 planned, 2 done" in out and "2 variants x 1 seed, compared with lora" in out


def test_methods_that_train_nothing_know_no_rate(tmp_path, dataset, capsys):
    flags = ["--methods", "none", "head", "--lr", "1e-3", "1e-2", "--recipe", "published", "--dry-run"]
    assert cli.main(["compare", *QUICK, "--dataset", dataset, *flags, "--output-dir", str(tmp_path)]) == 0
    assert "none; head, lr 0.001; head, lr 0.01\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_shows_what_is_there(tmp_path, dataset, capsys, monkeypatch, no_pictures):
    original, runs = going.execute, []

    def execute(prepared, checkpoints=None):
        runs.append(prepared.config.method)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return original(prepared)

    monkeypatch.setattr(going, "execute", execute)
    command = ["compare", *QUICK, "--dataset", dataset, "--methods", "none", "head", "--seeds", "0", "1"]
    command += ["--output-dir", str(tmp_path)]
    assert cli.main(command) == 130
    captured = capsys.readouterr()
    assert "2 of 4 runs" in captured.out and "the same command goes on from there" in captured.err
    assert "Of 4 runs 2 are done.**" in captured.out
    assert results(tmp_path)["stopped"] == "interrupted" and (tmp_path / "report.html").exists()
    assert cli.main(command) == 0
    assert runs == ["none", "head", "none", "none", "head"] and results(tmp_path)["done"] == 4


def test_a_fault_common_to_all_ends_it_in_one_line(tmp_path, dataset, capsys, monkeypatch, no_pictures):
    def execute(prepared, checkpoints=None):
        raise RuntimeError("no memory is left")

    monkeypatch.setattr(going, "execute", execute)
    flags = ["--methods", "none", "head", "--seeds", "0", "1", "--output-dir", str(tmp_path)]
    assert cli.main(["compare", *QUICK, "--dataset", dataset, *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    told = "3 equal failures in a row: RuntimeError: no memory is left"
    assert lines == [f"error: {told}; mend that and start the same command again"]
    assert (results(tmp_path)["done"], results(tmp_path)["failed"]) == (0, 3)


def test_what_failed_and_what_was_warned_of_is_told_at_the_end(
    tmp_path, dataset, capsys, monkeypatch, no_pictures
):
    """By run, each text once; also of runs that were made before."""

    def execute(prepared, checkpoints=None):
        config = prepared.config
        warnings.warn(f"the loss of {config.method} rose", stacklevel=1)
        if config.method == "head" or config.seed:
            raise UserError(f"seed {config.seed} failed")
        return original(prepared)

    original = going.execute
    monkeypatch.setattr(going, "execute", execute)
    flags = ["--methods", "none", "head", "--seeds", "0", "1", "--output-dir", str(tmp_path)]
    for _ in range(2):
        assert cli.main(["compare", *QUICK, "--dataset", dataset, *flags]) == 0
        err = capsys.readouterr().err
        assert err[err.rindex("\r") :].splitlines()[-4:] == [
            "warning: none, seed 0 and 1 more: the loss of none rose",
            "warning: head, seed 0 and 1 more: the loss of head rose",
            "warning: head, seed 0: seed 0 failed",
            "warning: none, seed 1 and 1 more: seed 1 failed",
        ]


def test_a_comparison_without_a_run_and_a_tuning_without_a_rate_are_errors(
    tmp_path, dataset, capsys, monkeypatch, no_pictures
):
    def execute(prepared, checkpoints=None):
        raise UserError(f"the loss is nan: --lr {prepared.config.lr} is too high")

    monkeypatch.setattr(going, "execute", execute)
    head = ["--methods", "head", *QUICK, "--dataset", dataset, "--output-dir"]
    assert cli.main(["compare", *head, str(tmp_path / "compare")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: every run failed, as told above; mend that and start the same command again"
    assert (results(tmp_path / "compare")["done"], results(tmp_path / "compare")["failed"]) == (0, 3)
    assert cli.main(["tune", *head, str(tmp_path / "tune")]) == 2
    captured = capsys.readouterr()
    last = "error: no rate for 'head': runs failed, as told above; mend that and start again"
    assert (
        captured.err.splitlines()[-1] == last and "head                           no rate\n" in captured.out
    )


@pytest.mark.filterwarnings("always::UserWarning")  # to be printed, not raised
def test_a_comparison_takes_the_rates_that_tune_chose(tmp_path, dataset, capsys, monkeypatch):
    tuned = ["--methods", "head", "--model", "bundled", "--dataset", dataset, "--max-steps", "2"]
    tuned += ["--precision", "fp32"]
    assert cli.main(["tune", *tuned, "--output-dir", str(tmp_path / "tune")]) == 0
    rates = json.loads((tmp_path / "tune" / "rates.json").read_text(encoding="utf-8"))
    assert (tmp_path / "tune" / "rates.png").read_bytes().startswith(b"\x89PNG")
    (variant,) = rates["variants"]
    told, tried = capsys.readouterr(), [point["lr"] for point in variant["points"]]
    assert f"lr {variant['chosen']:g}" in told.out
    assert ("lies at the edge of what was tried" in told.err) == (variant["chosen"] in (tried[0], tried[-1]))
    flags = ["--recipe", "published", "tuned", "--rates", str(tmp_path / "tune" / "rates.json"), "--dry-run"]
    asked = ["--max-length", "128", "--epochs", "32", "--output-dir", str(tmp_path / "compare")]
    assert cli.main(["compare", *tuned, *flags, *asked]) == 0
    assert f"head, lr 0.0002; head, lr {variant['chosen']:g}\n" in capsys.readouterr().out

    monkeypatch.setattr(
        going.Going, "through", lambda self, plan, title: setattr(self, "stopped", "interrupted")
    )
    variant["chosen"] = tried[-1]
    (tmp_path / "tune" / "rates.json").write_text(json.dumps(rates), encoding="utf-8")
    other = ["--methods", "full", *tuned[2:], "--output-dir", str(tmp_path / "tune")]
    assert cli.main(["tune", *other]) == 130
    assert (
        f"warning: head: the best rate, {tried[-1]:g}, lies at the edge of what was tried; "
        "a better one may lie beyond it, which compare --lr can try\n"
    ) in capsys.readouterr().err
    left = json.loads((tmp_path / "tune" / "rates.json").read_bytes())
    assert left["stopped"] == "interrupted"
    assert [(one["method"], one["chosen"]) for one in left["variants"]] == [
        ("head", variant["chosen"]),
        ("full", None),
    ]

"""The front door: flags, output files, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_from_scratch.cli import loading
from lora_from_scratch.cli import main as cli
from lora_from_scratch.cli.loading import told_while
from lora_from_scratch.cli.one_line import one_line
from lora_from_scratch.errors import UserError
from lora_from_scratch.report import screen
from lora_from_scratch.runs.config import RECIPES

pytestmark = pytest.mark.usefixtures("few_sentences")
ROOT = Path(__file__).parents[1]
BUNDLED = ["--model", "bundled", "--dataset", "bundled", "--device", "cpu", "--precision", "fp32"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line, expect exit status 2 and one line on stderr, and return the line."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert len(lines) == 1 and "Traceback" not in captured.err
    return lines[0]


def test_help_answers_at_once_because_it_loads_no_library():
    """Afterwards no package from outside is loaded that Python did not start with."""
    code = """
import runpy, sys
def outside():
    files = {name.split(".")[0]: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
    return {name for name, file in files.items() if "-packages" in file}
before, sys.argv = outside(), ["run.py", "--help"]
try:
    runpy.run_path("run.py", run_name="__main__")
except SystemExit as stop:
    print("status", stop.code, sorted(outside() - before))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert "--target-modules" in done.stdout and done.stderr == ""
    assert done.stdout.splitlines()[-1] == "status 0 []"


def test_a_run_leaves_results_metrics_and_a_picture(tmp_path, capsys):
    out = tmp_path / "deep" / "er"
    flags = ["--method", "lora", "--rank", "3", "--limit-train", "40", "--max-steps", "4"]
    assert cli.main([*BUNDLED, *flags, "--output-dir", str(out)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert set(results) >= {
        *("method", "model", "dataset", "accuracy", "f1", "trainable_parameters", "adapter_parameters"),
        *(
            "head_parameters",
            "total_parameters",
            "train_seconds",
            "sentences_per_second",
            "tokens_per_second",
        ),
        *("padding_efficiency", "memory", "config", "environment", "data"),
    }
    assert set(results["memory"]) == {"kind", "allocated_bytes", "peak_bytes", "parts_bytes"}
    assert set(results["phase_seconds"]) == {"data", "forward", "backward", "optimizer"}
    assert results["config"]["rank"] == 3
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]) == {"step", "loss", "gradient_norm", "lr", "sentences", "tokens"}
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert results["files"] == sorted(path.name for path in out.iterdir())
    assert set(results["files"]) == {
        *("results.json", "metrics.jsonl", "training.png"),
        *("README.md", "adapter_config.json", "adapter_model.safetensors"),
    }
    assert "| method | accuracy (%), 95 % interval | F1 of class positive (%) | trainable" in printed
    assert f"{results['accuracy']:.2f} (" in printed


def test_flags_reach_the_config():
    seen = {}

    def remember(flags):
        seen.update(flags)

    arguments = [
        "--target-modules",
        "attn.c_attn",
        "mlp.c_proj",
        "--lr",
        "1e-3",
        "--seed",
        "4",
        "--random-init",
    ]
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(cli.one_run, "train", remember)
    assert cli.main(arguments) == 0
    monkeypatch.undo()
    assert seen == {
        "target_modules": ["attn.c_attn", "mlp.c_proj"],
        "lr": 1e-3,
        "seed": 4,
        "random_init": True,
    }


def test_the_published_recipe_and_flags_on_top_of_it(tmp_path, undrawn):
    quick = [*BUNDLED, "--limit-train", "16", "--max-steps", "1", "--output-dir", str(tmp_path)]
    assert cli.main([*quick, "--method", "full", "--recipe", "published", "--batch-size", "8"]) == 0
    config = json.loads((tmp_path / "results.json").read_text())["config"]
    assert (config["lr"], config["epochs"], config["weight_decay"]) == (2e-4, 2, 0.01)
    assert config["batch_size"] == 8 and config["method"] == "full"
    assert RECIPES["published"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("method", "trainable"),
    [
        ("lora", "16,896"),
        ("prelayer", "2,130,432"),
        ("full", "5,289,984"),
        ("head", "512"),
        ("prefix", "5,632"),
    ],
)
def test_a_dry_run_counts_what_learns(capsys, tmp_path, monkeypatch, method, trainable):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*BUNDLED, "--method", method, "--rank", "4", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"trainable   {trainable} of " in printed
    assert "padding efficiency" in printed and " tokens," in printed
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_gpt2_small_on_sst2(shared, capsys):
    paths = ["--model", str(shared / "gpt2"), "--dataset", str(shared / "data" / "sst2")]
    assert cli.main(["--dry-run", "--random-init", "--limit-train", "200", *paths]) == 0
    printed = capsys.readouterr().out
    assert "200 sentences, 13 steps, " in printed and "trainable   148,992 of " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--target-modules", "attn.q_proj"],
            "target module 'attn.q_proj' matches nothing; this model has attn",
        ),
        (["--rank", "0"], "--rank must be at least 1, not 0"),
        (["--rank", "four"], "argument --rank: invalid int value: 'four'"),
        (["--method", "magic"], "argument --method: invalid choice: 'magic'"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--model", "./nowhere"], "model './nowhere' is not a folder"),
        (["--dataset", "nowhere.tsv"], "dataset 'nowhere.tsv': no such file or folder"),
        (
            ["--dataset", "no/such"],
            "dataset 'no/such' is neither here nor cached, and the hub is out of reach",
        ),
        (["--device", "cuda:99"], "--device cuda:99: PyTorch cannot use it here"),
        (["--max-length", "4096"], "--max-length 4096: this model has"),
        (["--lr", "1e30", "--max-steps", "40", "--limit-train", "40"], "--lr 1e+30 is too high"),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *BUNDLED, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_broken_file_of_the_users(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_bytes(b"text,label\nfine,1\ncaf\xe9,0\n")
    assert "mine.csv, line 3: not UTF-8" in fails(capsys, *BUNDLED, "--dataset", "mine.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_an_output_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = fails(capsys, *BUNDLED, "--output-dir", str(tmp_path / "file" / "out"))
    assert "--output-dir" in line and "is not a folder" in line


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="--rank must be at least 1"):
        cli.main(["--rank", "0", "--debug"])


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(screen, "plan", lambda prepared: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main([*BUNDLED, "--dry-run"])


class Screen(io.StringIO):
    def __init__(self, is_terminal: bool = True) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def looked_at(self) -> None:
        """Until something is on it, or for half a second; then an error ends what is tested."""
        until = time.monotonic() + (60 if self.is_terminal else 0.5)
        while not self.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        raise UserError("looked")


PREDICT = ["predict", "--adapter", ".", "a film"]
WAITS = {  # the command line, and where it is held up
    "imports": (PREDICT, "lora_from_scratch.cli.main.go_offline_if_unreachable"),
    "model": (PREDICT, "lora_from_scratch.cli.commands.loaded"),
    "run": (BUNDLED, "lora_from_scratch.cli.one_run.go_offline_if_unreachable"),
    "sentences": (BUNDLED, "lora_from_scratch.runs.prepare.prepare"),
}


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("wait", WAITS)
def test_after_a_second_a_terminal_is_told_what_takes_long_and_it_is_gone_afterwards(
    monkeypatch, tmp_path, wait, terminal
):
    seen, (arguments, place) = Screen(terminal), WAITS[wait]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "PATIENCE", 0.01)
    monkeypatch.setattr(place, lambda *_: seen.looked_at())
    monkeypatch.setattr(sys, "stderr", seen)
    assert cli.main(arguments) == 2
    *lines, error = seen.getvalue().split("\r")
    assert error == "error: looked\n"
    if terminal:
        told, blank = lines
        assert told.startswith("loading ") and blank == " " * len(told)
    assert bool(lines) == terminal


def test_no_garbage_is_looked_for_while_libraries_are_imported(tmp_path):
    """Each way in ends here where torch is asked for; test_commands.py has one that goes on."""
    ways = [PREDICT, ["--model", "bundled", "--dataset", "bundled"], ["--resume", "."]]
    code = f"""
import gc, sys
from lora_from_scratch.cli.main import main
from lora_from_scratch.errors import UserError
class Torch:
    def find_spec(self, name, *_):
        if name == "torch":
            raise UserError("looks for garbage" if gc.isenabled() else "looks for none")
sys.meta_path.insert(0, Torch())
for arguments in {ways!r}:
    assert main(arguments) == 2 and gc.isenabled()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "error: looks for none\n" * 3)


def test_what_is_over_within_a_second_is_not_told_of_nor_whoever_types(monkeypatch):
    monkeypatch.setattr(sys, "stderr", seen := Screen())
    with told_while("loading"):
        pass
    monkeypatch.setattr(loading, "PATIENCE", 0.0)
    with told_while("loading", unless=True):
        time.sleep(0.1)
    monkeypatch.setenv("RANK", "1")  # of several processes the first one speaks
    with told_while("loading"):
        time.sleep(0.1)
    assert not seen.getvalue()


def test_interrupting_is_not_an_error(monkeypatch, capsys):
    def interrupt(flags):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.one_run, "train", interrupt)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_mistakes_are_told_before_heavy_imports_and_nothing_stays(tmp_path):
    """In one process: each of these mistakes is told, and no library has been loaded since."""
    (tmp_path / "file").write_text("")
    (tmp_path / "mine.csv").write_text("words,mood\ngood,1\nbad,0\n")
    (tmp_path / "latin.csv").write_bytes(b"text,label\ncaf\xe9,1\n")
    (tmp_path / "adapter").mkdir()
    dataset = ["--dataset", "mine.csv"]
    mistakes = [
        *(["--ranks", "4"], ["--method", "lorra"], ["predcit"], ["--rank", "0"], ["--recipe", "publish"]),
        *(
            dataset,
            [*dataset, "--text-column", "words"],
            ["--dataset", "latin.csv"],
            ["--dataset", "adapter"],
        ),
        *(["--dataset", "no.csv"], ["--output-dir", "file/x"], ["--output-dir", "deep/" + "x" * 250]),
        *(["evaluate", "--adapter", "adapter", *dataset], ["evaluate", "--adapter", "nowhere", *dataset]),
        ["evaluate", "--adapter", "adapter", *dataset, "--max-length", "0"],
        ["merge", "--adapter", "adapter", "--out", "file/x"],
        *(["predict", "--adapter", "adapter", *rest] for rest in ([""], dataset, ["--file", "mine.csv"])),
        ["predict", "--adapter", "adapter", *dataset, "--output", "new.csv"],
    ]
    code = f"""
import sys
from lora_from_scratch.cli.main import main
for mistake in {mistakes!r}:
    try:
        status = main(mistake)
    except SystemExit as stop:
        status = stop.code
    loaded = {{"torch", "transformers", "datasets", "pandas", "numpy"}} & sys.modules.keys()
    if status != 2 or loaded:
        print(mistake, status, loaded)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == len(mistakes)
    assert all(line.startswith("error: ") and len(line) <= 200 for line in done.stderr.splitlines())
    assert sorted(tmp_path.rglob("*")) == before


def test_long_values_are_cut_and_what_a_line_says_is_not():
    path = "/tmp/" + "long/" * 40 + "run"
    for text in (f"what was trained is in {path}", "x 'short' " * 30):
        assert one_line(text) == text.strip()
    cell = "it's " + "very " * 100_000
    cut = one_line(f"mine.csv, line 2: the label {cell!r} is none of 'bad', 'good'; {'b' * 999}; rename it")
    assert len(cut) <= 200 and cut.startswith("mine.csv, line 2: the label \"it's very very")
    assert cut.endswith("; rename it") and "'bad', 'good'" in cut
    assert one_line("two\nlines\t'and  more'") == "two lines 'and more'"


def test_run_py_is_the_same_door():
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "run.py", "--rank", "0"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "error: --rank must be at least 1, not 0\n")

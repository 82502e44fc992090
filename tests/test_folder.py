"""The folder of a run: what was trained survives whatever comes after it; nobody else's file is touched."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forks import in_a_fork
from small_runs import write_base, write_sentences

from lora_from_scratch import RunConfig, UserError
from lora_from_scratch.base.load import BUNDLED_MODEL, load_tokenizer
from lora_from_scratch.cli import main as cli
from lora_from_scratch.cli.one_run import train_into
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.runs.folder import check_folder, listed_files
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.runs.prepare import prepare

pytestmark = pytest.mark.usefixtures("few_sentences", "tiny_bundle", "undrawn")
QUICK = RunConfig(
    model="bundled", dataset="bundled", device="cpu", precision="fp32", limit_train=16, max_steps=1
)
FLAGS = ["--model", "bundled", "--dataset", "bundled", "--device", "cpu", "--precision", "fp32"]
FLAGS += ["--limit-train", "16", "--max-steps", "1", "--rank", "1"]
FIGURES = {"results.json", "metrics.jsonl"}
SEEN = {"training.png", "README.md"}
WEIGHTS = {
    "none": set(),
    "head": {"trained.safetensors"},
    "full": {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"},
    "lora": {"adapter_config.json", "adapter_model.safetensors"},
    "prelayer": {"adapter_config.json", "adapter_model.safetensors"},
    "prefix": {"trained.safetensors"},
}


def train(folder: Path, **changes: object) -> dict[str, object]:
    train_into(prepare(replace(QUICK, **changes)), folder)
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for method in WEIGHTS:
        train(folder / method, method=method)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_each_run_leaves_its_own_files_and_none_of_the_run_before(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for method in ("lora", "full", "head", "none"):
        record = train(tmp_path, method=method)
        left = FIGURES | WEIGHTS[method] | (SEEN if method != "none" else set())
        assert set(record["files"]) == left and names(tmp_path) == left | {"notes.txt"}


@pytest.mark.parametrize(
    "name",
    ["README.md", "config.json", "model.safetensors", "adapter_config.json", "training.png", "metrics.jsonl"],
)
def test_files_of_somebody_else_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds a {name} that is no earlier run's"):
        check_folder(tmp_path)
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": ["thesis.docx", "results.json"]}'])
def test_a_results_file_of_somebody_elses_is_not_replaced(tmp_path, text):
    (tmp_path / "thesis.docx").write_text("mine")
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"holds a results\.json that is no earlier run's"):
        train(tmp_path, method="none")
    assert names(tmp_path) == {"thesis.docx", "results.json"}


@pytest.mark.parametrize("listed", ["thesis.docx", "../outside", ".."])
def test_a_record_cannot_name_files_that_no_run_writes(tmp_path, listed):
    (tmp_path / "outside").write_text("mine")
    record = train(tmp_path / "run", method="none")
    (tmp_path / "run" / "thesis.docx").write_text("mine")
    (tmp_path / "run" / "results.json").write_text(
        json.dumps({**record, "files": [*record["files"], listed]})
    )
    train(tmp_path / "run", method="none")
    assert names(tmp_path / "run") == {*record["files"], "thesis.docx"} and (tmp_path / "outside").exists()


def test_the_bases_own_folder_is_no_place_for_what_is_trained_on_it(tmp_path):
    train(tmp_path / "full", method="full")
    before = names(tmp_path / "full")
    with pytest.raises(UserError, match="is where --model lies"):
        train(tmp_path / "full", method="lora", model=str(tmp_path / "full"))
    assert names(tmp_path / "full") == before


def test_random_weights_are_not_saved(tmp_path):
    assert set(train(tmp_path / "run", random_init=True)["files"]) == FIGURES | {"training.png"}


def test_a_base_folder_is_named_so_that_it_is_found_from_anywhere(tmp_path, monkeypatch, tiny_bundle):
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_bundle)
    train(tmp_path / "out", model="base")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_bundle.resolve())


def test_the_record_says_what_was_measured_on_what(runs):
    from lora_from_scratch.base.fingerprint import weights_fingerprint
    from lora_from_scratch.runs.predict import predict

    record = json.loads((runs / "lora" / "results.json").read_text())
    assert (record["record"], record["kind"], record["output_dir"]) == (3, "run", str(runs / "lora"))
    base = prepare(replace(QUICK, method="none")).model
    assert record["base"] == {
        "name": "bundled",
        "weights_sha256": weights_fingerprint(base, ["score.weight"]),
    }
    validation = prepare(QUICK).dataset.validation
    labels = predict(load_adapted(runs / "lora"), validation.sentences)
    evaluation = record["evaluation"]
    assert evaluation["labels"] == validation.labels and evaluation["precision"] == "fp32"
    assert [record["data"]["label_names"][i] for i in evaluation["predictions"]] == [p.label for p in labels]
    assert evaluation["probabilities"] == pytest.approx([p.probability for p in labels], abs=2e-6)
    right = sum(a == b for a, b in zip(evaluation["labels"], evaluation["predictions"], strict=True))
    assert record["accuracy"] == pytest.approx(100 * right / 20) and record["f1_of"] == "positive"


@pytest.mark.parametrize("method", ["head", "full", "lora", "prelayer", "prefix"])
def test_the_card_says_what_how_and_how_to_load_it(runs, method):
    card = (runs / method / "README.md").read_text()
    values = json.loads((runs / method / "results.json").read_text())
    opening, front, body = card.split("---\n", 2)
    assert opening == ""
    keys = dict(line.split(": ", 1) for line in front.splitlines() if ": " in line)
    assert keys["base_model"] == '"bundled"'
    library = {"lora": "peft", "prelayer": "peft", "prefix": "lora-from-scratch"}.get(method, "transformers")
    assert keys["library_name"] == library
    for key in ("tags:\n- text-classification", 'datasets:\n- "bundled"', "metrics:\n- accuracy\n- f1"):
        assert key in front
    for said in (
        f"{values['accuracy']:.2f} (",
        "F1 of class positive",
        "Always saying ",
        f"{values['trainable_parameters']:,}",
        f"learning rate {values['config']['lr']:g}",
        "mini-gpt2 (bundled)",
        "negative or positive",
        "1 steps of 16 sentences",
        values["data"]["fingerprint"][:16],
        "python -m lora_from_scratch predict --adapter .",
    ):
        assert said in body, said
    assert ("pipeline(" in body) == ("merge --adapter" in body or method == "full") == (method != "prefix")
    assert ("PeftModel.from_pretrained" in body) == (method in ("lora", "prelayer"))
    assert "None" not in card and "TODO" not in card and "{" not in card


@pytest.mark.parametrize("method", ["head", "full", "lora", "prelayer", "prefix"])
def test_the_cards_commands_run_where_it_lies(runs, tmp_path, monkeypatch, capsys, method):
    """`test_predict_stops_quietly_when_nobody_reads_on` starts Python itself in such a place."""
    lies = shutil.copytree(runs / method, tmp_path / "elsewhere")
    monkeypatch.chdir(lies)
    commands = "".join(re.findall(r"```bash\n(.*?)```", (lies / "README.md").read_text(), re.S)).splitlines()
    assert len(commands) == (1 if method in ("full", "prefix") else 2)
    for command in commands:
        program, *arguments = shlex.split(command.removeprefix("python -m "))
        assert program == "lora_from_scratch" and cli.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split("\t")[0] in ("negative", "positive") and said[0].endswith("\ta text to classify")
    assert method in ("full", "prefix") or "merged" in names(lies)


def test_the_cards_code_for_prefixes_runs(runs, monkeypatch):
    monkeypatch.chdir(runs / "prefix")
    code, found = Path("README.md").read_text().split("From Python:\n\n```python\n")[1].split("```")[0], {}
    exec(code.replace("predict(load", "answers = predict(load"), found)
    evaluated = json.loads(Path("results.json").read_text())["data"]["label_names"]
    assert found["answers"][0].label in evaluated


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
def test_the_cards_code_for_peft_runs(runs, monkeypatch):
    """What the card tells a reader to paste gives the logits of the model that was trained."""
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(runs / "lora")
    code = Path("README.md").read_text().split("In PEFT:\n\n```python\n")[1].split("```")[0]
    found: dict[str, object] = {}
    exec(code, found)
    assert isinstance(found["model"], peft.PeftModel)
    input_ids = torch.arange(5, 15)[None]
    ours = load_adapted(runs / "lora").model
    with torch.no_grad():
        expected, got = ours(input_ids=input_ids).logits, found["model"](input_ids=input_ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
def test_the_cards_code_for_peft_pads_as_the_tokenizer_does(tmp_path, monkeypatch):
    """Where that has a padding token of its own, transformers looks for it, and not for end-of-text."""
    pytest.importorskip("peft")
    base = write_base(tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(8191)
    tokenizer.save_pretrained(base)
    flags = ["--model", str(base), "--dataset", str(write_sentences(tmp_path / "d.csv")), "--lr", "1e-2"]
    assert cli.main([*flags, "--max-steps", "3", "--output-dir", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path / "run")
    found: dict[str, object] = {}
    exec(Path("README.md").read_text().split("In PEFT:\n\n```python\n")[1].split("```")[0], found)
    texts = ["so good", "so so so so so so dull"]
    padded = found["tokenizer"](texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        got = found["model"].eval()(**padded).logits.softmax(dim=1).max(dim=1).values.tolist()
    assert got == pytest.approx([one.probability for one in predict(load_adapted("."), texts)], abs=1e-5)


def main_fails(capsys: pytest.CaptureFixture[str], folder: Path, status: int, *more: str) -> str:
    """Run into the folder, expect the exit status, and return the one line that says why."""
    capsys.readouterr()
    assert cli.main([*FLAGS, *more, "--output-dir", str(folder)]) == status
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith(("error: ", "interrupted", "warning: "))]
    lines = [line for line in lines if "always saying" not in line]  # true of a run that hardly trained
    assert len(lines) == 1 and "Traceback" not in err
    return lines[0]


def assert_trained_is_kept(folder: Path) -> None:
    """Weights that load and predict, the metrics, and a results.json that claims no accuracy."""
    assert names(folder) == FIGURES | WEIGHTS["lora"]
    assert load_adapted(folder).label_names == ["negative", "positive"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    record = json.loads((folder / "results.json").read_text())
    assert record["accuracy"] is record["evaluation"] is None and record["steps"] == 1


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            UserError("its logits are not finite"),
            2,
            "error: its logits are not finite; what was trained is in",
        ),
        (torch.OutOfMemoryError("no\nroom"), 2, "error: no room; what was trained is in"),
        (MemoryError("no room"), 2, "error: no room; what was trained is in"),
        (OSError("disk full"), 2, "error: disk full; what was trained is in"),
        (KeyboardInterrupt(), 130, "interrupted; what was trained is in"),
    ],
)
@pytest.mark.parametrize("stage", ["evaluate_prepared", "write_record"])
def test_what_was_trained_survives_the_evaluation(tmp_path, capsys, monkeypatch, stage, error, status, said):
    from lora_from_scratch.runs import execute, folder

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(execute if stage == "evaluate_prepared" else folder, stage, fail)
    assert main_fails(capsys, tmp_path / "run", status).startswith(f"{said} {tmp_path / 'run'}")
    assert_trained_is_kept(tmp_path / "run")


def test_logits_that_are_not_finite_lose_nothing(tmp_path, capsys, monkeypatch):
    from lora_from_scratch.train import evaluate

    monkeypatch.setattr(evaluate, "predict_logits", lambda *_, **__: torch.full((20, 2), float("nan")))
    assert "logits are not finite" in main_fails(capsys, tmp_path / "run", 2)
    assert_trained_is_kept(tmp_path / "run")


def test_a_defect_in_the_evaluation_keeps_its_traceback_and_the_weights(tmp_path, monkeypatch):
    from lora_from_scratch.runs import execute

    monkeypatch.setattr(execute, "evaluate_prepared", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main([*FLAGS, "--output-dir", str(tmp_path / "run")])
    assert_trained_is_kept(tmp_path / "run")


@pytest.mark.parametrize(
    ("room", "name"), [("draw_training", "training.png"), ("model_card", "README.md"), ("both", None)]
)
def test_a_picture_or_card_that_fails_is_a_warning(tmp_path, capsys, monkeypatch, room, name):
    from lora_from_scratch.report import card, picture
    from lora_from_scratch.runs import folder

    def fail(*_: object) -> None:
        raise KeyError("no such key")

    if room == "both":  # a full disk, from the first of them on
        monkeypatch.setattr(folder, "add_file", fail)
    else:
        monkeypatch.setattr(picture if room == "draw_training" else card, room, fail)
    assert cli.main([*FLAGS, "--output-dir", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    for lost in [name] if name else sorted(SEEN):
        assert f"warning: {tmp_path / 'run'} has no {lost}: 'no such key'" in err
    left = FIGURES | WEIGHTS["lora"] | (SEEN - {name} if name else set())
    assert names(tmp_path / "run") == left == listed_files(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"] > 0


def test_ctrl_c_while_the_picture_is_drawn_keeps_weights_and_figures(tmp_path, capsys, monkeypatch):
    from lora_from_scratch.report import picture

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(picture, "draw_training", interrupt)
    assert "interrupted; what was trained is in" in main_fails(capsys, tmp_path / "run", 130)
    assert names(tmp_path / "run") == FIGURES | WEIGHTS["lora"] | {"README.md"}
    assert json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"] > 0


def test_ctrl_c_in_training_leaves_nothing(tmp_path, capsys, monkeypatch):
    from lora_from_scratch.runs import execute

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "train", interrupt)
    assert main_fails(capsys, tmp_path / "run", 130) == "interrupted"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_the_weights_are_written_writes_them_all_the_same(tmp_path, capsys, monkeypatch):
    from lora_from_scratch.formats import peft

    whole, calls = peft.save, []

    def interrupted_once(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(peft, "save", interrupted_once)
    line = main_fails(capsys, tmp_path / "run", 130)
    assert line == f"interrupted; what was trained is in {tmp_path / 'run'}"
    assert_trained_is_kept(tmp_path / "run")


def test_a_disk_that_is_full_for_the_weights_sends_them_elsewhere(tmp_path, capsys, monkeypatch):
    import tempfile

    from lora_from_scratch.formats import peft

    whole = peft.save

    def no_room(adapted: object, folder: Path) -> None:
        if "elsewhere" not in str(folder):
            raise OSError(28, "No space left on device")
        whole(adapted, folder)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(peft, "save", no_room)
    line = main_fails(capsys, tmp_path / "run", 2)
    (rescue,) = (tmp_path / "elsewhere").iterdir()
    assert "No space left on device" in line and line.endswith(f"what was trained is in {rescue}")
    assert_trained_is_kept(rescue)
    assert names(tmp_path) == {"elsewhere"}


# Room in bytes for each file: for none at all, for all but the weights, for all but the picture.
@pytest.mark.parametrize("room", [100, 10_000, 25_000])
def test_a_full_disk(tmp_path, capsys, monkeypatch, room):
    import tempfile

    from lora_from_scratch.report import picture

    resource = pytest.importorskip("resource")
    monkeypatch.setattr(picture, "draw_training", lambda record, metrics: bytes(30_000))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        large = ("--model", str(BUNDLED_MODEL))  # a tiny one's weights are smaller than the figures
        line = main_fails(capsys, tmp_path / "run", 0 if room == 25_000 else 2, *large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in line
    if room == 25_000:
        left = FIGURES | WEIGHTS["lora"] | {"README.md"}
        assert line.startswith("warning: ") and names(tmp_path / "run") == left
        assert listed_files(tmp_path / "run") == left
    else:
        assert names(tmp_path) == {"elsewhere"} and not names(tmp_path / "elsewhere")


def killed_while_it_writes() -> None:
    """A run, in a process of its own, that is killed once its weights are written beside its folder."""
    from lora_from_scratch.formats import peft

    whole = peft.save

    def killed(*arguments: object) -> None:
        whole(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    peft.save = killed
    cli.main([*FLAGS, "--output-dir", "runs/mine"])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_killed_while_it_writes_it_leaves_litter_that_the_next_run_takes_away(tmp_path):
    (tmp_path / "runs" / "neighbour").mkdir(parents=True)
    (tmp_path / "runs" / ".other.part-1").mkdir()
    assert in_a_fork(killed_while_it_writes, folder=tmp_path).returncode == -signal.SIGKILL
    (litter,) = (tmp_path / "runs").glob(".mine.part-*")
    train(tmp_path / "runs" / "mine")
    assert litter.exists()  # young: its owner may still be writing
    old = time.time() - 7200
    os.utime(litter, (old, old))
    os.utime(tmp_path / "runs" / ".other.part-1", (old, old))
    train(tmp_path / "runs" / "mine")
    assert names(tmp_path / "runs") == {"mine", "neighbour", ".other.part-1"}


def test_other_settings_go_to_other_folders():
    folders = [
        RunConfig(**changes).default_folder()
        for changes in (
            {},
            {"rank": 8},
            {"seed": 1},
            {"rank": 8, "seed": 1},
            {"lr": 1e-5},
            {"lr": 1.00000001e-5},
            {"target_modules": ("attn.c_attn", "mlp.c_fc")},
            {"target_modules": ("attn.c_attn-mlp.c_fc",)},
            {"dataset": "a/x.csv"},
            {"dataset": "b/x.csv"},
            {"model": "bundled", "dataset": "bundled"},
            {"plain": True},
            {"method": "full"},
        )
    ]
    assert folders[:3] == ["runs/lora", "runs/lora-rank-8", "runs/lora-seed-1"]
    assert len(set(folders)) == len(folders)
    assert all(Path(folder).parts[0] == "runs" and len(Path(folder).parts) == 2 for folder in folders)
    assert RunConfig(rank=4, dataset="sst2").default_folder() == "runs/lora"
    assert RunConfig(output_dir="elsewhere").default_folder() == "runs/lora"


def test_a_run_on_the_bundle_and_one_on_gpt2_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["--device", "cpu", "--precision", "fp32", "--limit-train", "16", "--max-steps", "1"]) == 0
    )

    (folder,) = (tmp_path / "runs").iterdir()
    assert "model-bundled" in folder.name and "dataset-bundled" in folder.name


def test_a_full_disk_under_a_whole_checkpoint_is_one_line_too(tmp_path, capsys, monkeypatch):
    """safetensors has an error of its own for it, which is no OSError."""
    import tempfile

    resource = pytest.importorskip("resource")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    flags = [*FLAGS[:-2], "--method", "full"]  # without LoRA's rank
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert cli.main([*flags, "--output-dir", str(tmp_path / "run")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert f"error: {tmp_path / 'run'}: " in err and "File too large" in err and "Traceback" not in err
    assert names(tmp_path) == {"elsewhere"} and not names(tmp_path / "elsewhere")


def test_a_full_disk_under_a_tokenizer_is_one_line_that_names_the_folder(tmp_path, capsys, monkeypatch):
    """tokenizers raises a plain Exception for it; the run's own folder is the one that its user knows."""
    import tempfile

    from transformers import PreTrainedTokenizerBase

    def no_room(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", no_room)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    flags = [*FLAGS[:-2], "--method", "full", "--output-dir", str(tmp_path / "run")]
    assert cli.main(flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line == f"error: {tmp_path / 'run'}: No space left on device (os error 28)"
    assert names(tmp_path) == {"elsewhere"} and not names(tmp_path / "elsewhere")


def test_whatever_stops_the_writing_sends_the_weights_elsewhere(tmp_path, capsys, monkeypatch):
    """Not a full disk alone: also out of memory, or a file system's refusal after an interruption."""
    import tempfile

    from lora_from_scratch.formats import peft

    whole, errors = peft.save, [KeyboardInterrupt(), MemoryError()]

    def fails_twice(*arguments: object) -> None:
        if errors:
            raise errors.pop(0)
        whole(*arguments)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(peft, "save", fails_twice)
    line = main_fails(capsys, tmp_path / "run", 2)
    (rescue,) = (tmp_path / "elsewhere").iterdir()
    assert line == f"error: MemoryError; what was trained is in {rescue}"
    assert_trained_is_kept(rescue)


def test_a_defect_of_pytorchs_kind_is_not_taken_for_a_full_memory(tmp_path, monkeypatch):
    from lora_from_scratch.runs import execute

    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(execute, "evaluate_prepared", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main([*FLAGS, "--output-dir", str(tmp_path / "run")])
    assert_trained_is_kept(tmp_path / "run")

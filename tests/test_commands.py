"""predict, merge, evaluate, verify: on every kind of folder, and one clear line for every bad one."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import pytest
import torch
from forks import in_a_fork
from safetensors.torch import load_file, save_file
from small_runs import write_base
from test_cli import BUNDLED, fails
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lora_from_scratch.base.fingerprint import is_added
from lora_from_scratch.cli import commands
from lora_from_scratch.cli import main as cli
from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.data.dataset import load_labelled
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.runs import predict as labelling
from lora_from_scratch.runs import texts_to_label as texts
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.train import evaluate
from lora_from_scratch.train.evaluate import compare, predict_logits

pytestmark = pytest.mark.usefixtures("few_sentences", "undrawn")
METHODS = ("head", "full", "lora", "prelayer", "dora", "lora-fa", "bitfit", "ia3")
KEPT = (*METHODS, "prefix")  # cannot be merged
TEXTS = ["a warm and funny film .", "dull", "it is not a bad film , and the end is a triumph"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A tiny one of random weights, found from anywhere."""
    return str(write_base(tmp_path_factory.mktemp("base") / "tiny", n_positions=128))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base) -> Path:
    """A folder with a run of every method that leaves something, each trained for a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    for method in KEPT:
        flags = ["--method", method, "--batch-size", "4", "--max-steps", "8", "--lr", "2e-3"]
        assert cli.main([*BUNDLED, "--model", base, *flags, "--output-dir", str(folder / method)]) == 0
    return folder


@pytest.fixture(scope="module")
def merged(runs) -> tuple[Path, dict[str, str]]:
    """Every run, merged: a folder with one for each method, and what was printed."""
    texts = {}
    for method in METHODS:
        with redirect_stdout(io.StringIO()) as out:
            command = ["merge", "--adapter", str(runs / method), "--out", str(runs / "merged" / method)]
            assert cli.main(command) == 0
        texts[method] = out.getvalue()
    return runs / "merged", texts


def by_transformers_alone(*methods: str) -> None:
    """Print what a pipeline says of two texts by each checkpoint, where neither this package nor PEFT is."""
    from transformers import pipeline

    for name in list(sys.modules):
        if name.partition(".")[0] in ("lora_from_scratch", "peft"):
            sys.modules[name] = None  # importing it again is an error
    answers = {}
    for method in methods:
        AutoModelForSequenceClassification.from_pretrained(method)
        classify = pipeline("text-classification", model=f"./{method}")
        answers[method] = [(r["label"], r["score"]) for r in classify(["a fine film", "a mess"])]
    print(answers)


@pytest.fixture(scope="module")
def read_by_transformers(merged) -> dict[str, list[tuple[str, float]]]:
    done = in_a_fork(by_transformers_alone, *METHODS, folder=merged[0])
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("method", KEPT)
def test_evaluate_repeats_the_measures_of_the_run(runs, method, capsys, tmp_path):
    flags = ["--dataset", "bundled", "--precision", "fp32", "--device", "cpu", "--output-dir", tmp_path]
    text = printed(capsys, "evaluate", "--adapter", runs / method, *flags)
    values = json.loads((tmp_path / "results.json").read_text())
    trained = json.loads((runs / method / "results.json").read_text())
    for key in ("accuracy", "accuracy_interval_95", "f1", "total_parameters", "head_parameters"):
        assert values[key] == trained[key]
    assert values["trainable_parameters"] == trained["trainable_parameters"]
    assert values["data"]["validation_sentences"] == 20 and values["kind"] == "evaluation"
    assert values["evaluation"]["sentences_per_second"] > 0
    probabilities = values["evaluation"]["probabilities"]
    assert probabilities == pytest.approx(trained["evaluation"]["probabilities"], abs=1e-6)
    digest = None if method in ("full", "prelayer", "bitfit") else trained["base"]["weights_sha256"]
    assert values["base"]["weights_sha256"] == digest  # None where the base's own weights were replaced
    assert values.keys() == trained.keys()
    assert f"{values['accuracy']:.2f} (" in text
    assert values["baseline"] == {"label": "positive", "accuracy": 55}  # of what was measured


def test_evaluate_reads_every_row_of_a_file(runs, capsys, tmp_path):
    (tmp_path / "mine.csv").write_text("words,mood\nfine,positive\nfine,negative\n" + "fine,1\n" * 3)
    columns = ["--text-column", "words", "--label-column", "mood", "--positive-class", "negative"]
    flags = ["--dataset", tmp_path / "mine.csv", *columns, "--output-dir", tmp_path / "out"]
    capsys.readouterr()
    assert cli.main(list(map(str, ["evaluate", "--adapter", runs / "lora", *flags]))) == 0
    said, values = capsys.readouterr(), json.loads((tmp_path / "out" / "results.json").read_text())
    assert "F1 of class negative" in said.out and "classes     negative (1), positive (4)" in said.out
    assert "beat always saying 'positive' (80.00 %)" in said.err  # what is said of one text is the same
    assert values["f1_of"] == "negative" and values["data"]["validation_classes"]["positive"] == 4
    labels, predictions = values["evaluation"]["labels"], values["evaluation"]["predictions"]
    from sklearn.metrics import f1_score

    each = f1_score(labels, predictions, average=None)
    assert values["f1"] == pytest.approx(100 * each[0]) and each[0] != each[1]
    wrong = ["--dataset", "bundled", "--positive-class", "glad"]
    line = fails(capsys, "evaluate", "--adapter", str(runs / "lora"), *wrong)
    assert "'glad': there is no such label; choose one of 'negative', 'positive'" in line
    assert values["data"]["validation_sentences"] == 5
    assert values["data"]["validation_name"] == "mine.csv"


@pytest.mark.filterwarnings("always::UserWarning")
def test_evaluate_cuts_sentences_where_the_run_did(base, capsys, tmp_path):
    """The figures are the run's own, to the bit, and others where --max-length asks for more."""
    rows = "".join(f"{'so ' * (i % 7)}{word} a film,{word}\n" for i in range(14) for word in ("good", "bad"))
    (tmp_path / "rows").mkdir()
    for name in ("train.csv", "dev.csv"):
        (tmp_path / "rows" / name).write_text(f"text,label\n{rows}")
    run, dataset = tmp_path / "run", ["--dataset", tmp_path / "rows"]
    asked = ["--model", base, "--device", "cpu", "--method", "head", "--max-steps", "2", "--max-length", "3"]
    assert cli.main([*asked, *map(str, dataset), "--output-dir", str(run)]) == 0
    own = json.loads((run / "results.json").read_text())
    assert own["data"]["validation_truncated"] > 0

    def measured(*flags: object) -> dict:
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        printed(
            capsys, "evaluate", "--adapter", run, *dataset, "--device", "cpu", *flags, "--output-dir", out
        )
        return json.loads((out / "results.json").read_text())

    assert measured()["config"]["max_length"] == 3
    assert measured()["evaluation"]["probabilities"] == own["evaluation"]["probabilities"]
    longer = measured("--max-length", 64)
    assert longer["config"]["max_length"] == 64 and longer["data"]["validation_truncated"] == 0
    assert longer["evaluation"]["probabilities"] != own["evaluation"]["probabilities"]
    (run / "results.json").unlink()
    assert measured()["config"]["max_length"] == 128
    beside = ["--max-length", 5, "--output-dir", run]  # an evaluation's record says nothing of a training
    printed(capsys, "evaluate", "--adapter", run, *dataset, "--device", "cpu", *beside)
    assert measured()["config"]["max_length"] == 128


def test_evaluate_leaves_a_trainings_results_alone(runs, capsys):
    flags = ["--dataset", "bundled", "--output-dir", str(runs / "lora")]
    assert "holds results already" in fails(capsys, "evaluate", "--adapter", str(runs / "lora"), *flags)


def test_labels_of_two_sources_are_matched_by_name_or_number(tmp_path):
    path = tmp_path / "file.tsv"
    path.write_text("sentence\tlabel\na\tpositive\nb\t0\n")
    assert load_labelled(str(path), ["negative", "positive"])[0].labels == [1, 0]
    with pytest.raises(ValueError, match="label 'positive' is none of 'bad', 'good'"):
        load_labelled(str(path), ["bad", "good"])
    with pytest.raises(ValueError, match=r"label 'positive' is none of '0', '1'; .* --label-names"):
        load_labelled("bundled", ["0", "1"])


@pytest.mark.parametrize("method", METHODS)
def test_predict_gives_label_probability_and_text_in_order(runs, method, capsys):
    adapted = load_adapted(runs / method)
    expected = []
    for text in TEXTS:  # one by one, without this project's batches
        input_ids = adapted.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            expected.append(adapted.model(input_ids=input_ids).logits.softmax(1)[0])
    out = printed(capsys, "predict", "--adapter", runs / method, "--device", "cpu", *TEXTS)
    for line, text, probabilities in zip(out.splitlines(), TEXTS, expected, strict=True):
        label, probability, given = line.split("\t")
        assert label == ["negative", "positive"][int(probabilities.argmax())]
        assert float(probability) == pytest.approx(probabilities.max().item(), abs=6e-5)
        assert given == text


def test_predict_reads_standard_input_too(runs, capsys, monkeypatch):
    out = printed(capsys, "predict", "--adapter", runs / "lora", *TEXTS)
    typed(monkeypatch, "\n".join(TEXTS).encode())
    assert printed(capsys, "predict", "--adapter", runs / "lora") == out


def test_predict_reads_a_file_and_speaks_json(runs, capsys, tmp_path):
    lines = ['caf\u00e9 , a "gem"', "tab\there", "last"]
    (tmp_path / "texts").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    out = printed(capsys, "predict", "--adapter", runs / "lora", "--file", tmp_path / "texts", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == lines
    assert all(
        set(row) == {"label", "probability", "text"} and 0.5 <= row["probability"] <= 1 for row in rows
    )
    plain = printed(capsys, "predict", "--adapter", runs / "lora", "--file", tmp_path / "texts")
    assert [line.count("\t") for line in plain.splitlines()] == [2, 2, 2]


def test_predict_on_more_lines_than_one_portion(runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(labelling, "PORTION", 7)
    texts = [f"film number {i} is " + "very " * (i % 9) + "good" for i in range(50)]
    (tmp_path / "texts").write_text("\n".join(texts))
    out = printed(capsys, "predict", "--adapter", runs / "lora", "--file", tmp_path / "texts", "--json")
    whole = predict(load_adapted(runs / "lora"), texts)
    for line, expected in zip(out.splitlines(), whole, strict=True):
        row = json.loads(line)
        assert (row["text"], row["label"]) == (expected.text, expected.label)
        assert row["probability"] == pytest.approx(expected.probability, abs=1e-5)


def typed(monkeypatch: pytest.MonkeyPatch, content: bytes, terminal: bool = False) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(content))
    stdin.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdin", stdin)


def test_blank_lines_keep_their_place_where_they_may_be_there(runs, capsys, monkeypatch):
    lines = b"\xef\xbb\xbffine\r\n\r\n \t\ndull"
    typed(monkeypatch, lines)
    out = printed(capsys, "predict", "--adapter", runs / "lora", "--drop-blank")
    assert [line.count("\t") for line in out.splitlines()] == [2] * 4
    assert [line.split("\t")[2] for line in out.splitlines()] == ["fine", "", "", "dull"]
    typed(monkeypatch, lines)
    rows = printed(capsys, "predict", "--adapter", runs / "lora", "--drop-blank", "--json").splitlines()
    assert [json.loads(row)["label"] is None for row in rows] == [False, True, True, False]
    typed(monkeypatch, lines)
    assert "stdin, line 2: the text is blank" in fails(capsys, "predict", "--adapter", str(runs / "lora"))
    typed(monkeypatch, b"fine\ncaf\xe9\n")
    assert "stdin, line 2: not UTF-8" in fails(capsys, "predict", "--adapter", str(runs / "lora"))


def test_predict_stops_quietly_when_nobody_reads_on(runs):
    """By the card's command. It loads no more than it needs, and looks for no garbage meanwhile.

    Each of these takes a part of a second: what datasets brings, pictures, what many runs need, and garbage
    that is looked for between the import of torch and the moment from which what is there is left alone.
    """
    code = """
import gc, runpy, sys
from lora_from_scratch.cli.loading import importing
looks = []
def look(phase, _):
    if gc.get_freeze_count():  # which takes long to count
        gc.callbacks.remove(look)
    elif "torch" in sys.modules:
        looks.append(phase)
gc.callbacks.append(look)
try:
    runpy.run_module("lora_from_scratch", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0
assert gc.isenabled() and gc.get_freeze_count() > 100_000 and not looks, len(looks)
with importing():
    assert gc.isenabled(), "of no use where they are there"
heavy = ("datasets", "matplotlib", "peft", "lora_from_scratch.cli.plans")
if "sklearn" not in sys.modules:  # which transformers 5.17 loads where it is installed, and so these two
    heavy += ("pandas", "pyarrow")
found = [name for name in (*heavy, "lora_from_scratch.compare.going") if name in sys.modules]
print(found, "transformers" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$0" -c "$1" predict --adapter . | head -1', sys.executable, code],
        input="a fine film\n" * 4200,
        capture_output=True,
        text=True,
        cwd=runs / "lora",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "[] True\n")
    assert done.stdout.endswith("\ta fine film\n")


def test_whoever_types_is_not_written_over(runs, monkeypatch):
    """The line that says what takes long would be in the way of what is typed ahead."""
    typed(monkeypatch, b"fine\n", terminal=True)
    told = []
    for module in (cli, commands):
        monkeypatch.setattr(module, "told_while", lambda *_, unless: told.append(unless) or nullcontext())
    assert cli.main(["predict", "--adapter", str(runs / "lora")]) == 0
    assert cli.main(["predict", "--adapter", str(runs / "lora"), "a film"]) == 0
    assert told == [True, True, False, False]


def test_at_a_terminal_it_says_what_it_waits_for(runs, capsys, monkeypatch):
    said = []  # before torch is imported
    monkeypatch.setattr(cli, "go_offline_if_unreachable", lambda: said.append(capsys.readouterr().err))
    for terminal in (True, False):
        capsys.readouterr()
        typed(monkeypatch, b"fine\n", terminal)
        assert cli.main(["predict", "--adapter", str(runs / "lora")]) == 0
    assert said == ["waiting for texts, one a line; end with Ctrl-D (on Windows Ctrl-Z and Enter)\n", ""]


def test_a_label_with_a_line_break_stays_on_its_line():
    """A cell in quotation marks may hold one."""
    assert commands._as_line(labelling.Prediction("so\n\tso", 0.5, "a\nb")) == "so so\t0.5000\ta b"


def test_what_the_terminal_cannot_encode_is_escaped(runs, monkeypatch):
    for flags, expected in ((["caf\u00e9"], b"\tcaf\\xe9\n"), (["--json", "caf\u00e9"], b'"caf\\u00e9"}\n')):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        assert cli.main(["predict", "--adapter", str(runs / "lora"), *flags]) == 0
        assert written.getvalue().endswith(expected)


TABLE = [  # a row of each kind of cell: what a .csv makes difficult, a blank text, and lines in a text
    {"id": 1, "text": 'a "fine" film, really', "note": "tab\there"},
    {"id": 2, "text": "  ", "note": "\u00e9\u2028\x85"},
    {"id": 3, "text": "dull\nand\r\nlong\ragain", "note": ""},
    {"id": 4, "text": "good", "note": "=1+1"},
]


def write_as(kind: str, path: Path) -> None:
    if kind in ("csv", "tsv", "csv.gz"):
        out = io.StringIO()
        writer = csv.DictWriter(out, TABLE[0], delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(TABLE)
        data = out.getvalue().encode()
        path.write_bytes(gzip.compress(data) if kind == "csv.gz" else data)
    elif kind == "parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(TABLE), path)
    else:
        path.write_text(json.dumps(TABLE) if kind == "json" else "\n".join(map(json.dumps, TABLE)))


def read_back(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))
    return [{**row, "id": int(row["id"])} for row in rows]


@pytest.mark.filterwarnings("ignore:.*1 of 4 texts is blank")
@pytest.mark.parametrize(
    ("kind", "output"),
    [
        *(("csv", "csv"), ("tsv", "tsv"), ("json", "csv")),
        *(("jsonl", "jsonl"), ("parquet", "jsonl"), ("csv.gz", "tsv")),
    ],
)
def test_a_labelled_table_keeps_its_columns_and_its_rows(runs, capsys, tmp_path, kind, output):
    path, out = tmp_path / f"mine.{kind}", tmp_path / f"labelled.{output}"
    write_as(kind, path)
    flags = ["--dataset", path, "--output", out, "--drop-blank"]
    said = printed(capsys, "predict", "--adapter", runs / "lora", *flags)
    assert said == f"written     {out}: 3 texts labelled\n"
    rows = read_back(out)
    assert [list(row) for row in rows] == [["id", "text", "note", "predicted_label", "probability"]] * 4
    assert [{key: row[key] for key in TABLE[0]} for row in rows] == TABLE
    assert rows[1]["predicted_label"] == rows[1]["probability"] == (None if output == "jsonl" else "")
    there = [row for row in rows if row["id"] != 2]
    expected = predict(load_adapted(runs / "lora"), [row["text"] for row in there])
    assert [row["predicted_label"] for row in there] == [p.label for p in expected]
    probabilities = [float(row["probability"]) for row in there]
    assert probabilities == pytest.approx([p.probability for p in expected], abs=1e-5)
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_one_text_is_not_labelled_letter_by_letter(runs):
    with pytest.raises(UserError, match="put the one into brackets"):
        predict(load_adapted(runs / "lora"), "good")


@pytest.mark.filterwarnings("ignore:.*1 of 2 texts is blank")
def test_a_null_text_stays_without_a_label_where_blank_ones_do(runs, capsys, tmp_path):
    path, out = tmp_path / "mine.jsonl", tmp_path / "labelled.jsonl"
    path.write_text('{"text": "good"}\n{"text": null}\n')
    asked = ["predict", "--adapter", str(runs / "lora"), "--dataset", str(path), "--output", str(out)]
    assert cli.main(asked) == 2 and "line 2: the text is null" in capsys.readouterr().err
    assert cli.main([*asked, "--drop-blank"]) == 0
    assert [row["predicted_label"] is None for row in read_back(out)] == [False, True]


def test_cells_of_every_kind_are_written(tmp_path):
    cells = [None, float("nan"), True, 1.5, ["a", {"b": "\u00e9"}], "half \ud83d", "x"]
    row = dict(zip("abcdefg", cells, strict=True))
    (tmp_path / "mine.jsonl").write_text(json.dumps({**row, "text": "fine"}) + "\n")
    answers = [labelling.Prediction("good", 0.75, "fine")]
    for ending, expected in (
        ("csv", '\r\n,,True,1.5,"[""a"", {""b"": ""\u00e9""}]",half \ufffd,x,fine,good,0.75\r\n'),
        (
            "jsonl",
            '{"a": null, "b": null, "c": true, "d": 1.5, "e": ["a", {"b": "\u00e9"}], "f": "half \ufffd", '
            '"g": "x", "text": "fine", "predicted_label": "good", "probability": 0.75}\n',
        ),
    ):
        out = tmp_path / f"out.{ending}"
        rows = texts.read_table(tmp_path / "mine.jsonl", None, False, out)
        texts.write_table(tmp_path / "mine.jsonl", rows, answers, out)
        assert out.read_bytes().decode().endswith(expected)


def test_a_labelled_table_appears_whole_or_not_at_all(runs, capsys, tmp_path, monkeypatch):
    table = tmp_path / "mine.csv"
    table.write_text("text\n" + "good\n" * 10)
    monkeypatch.setattr(labelling, "PORTION", 4)
    whole, stage = labelling._label, []

    def interrupted(adapted: object, portion: list[str]) -> object:
        stage.append(len(portion))
        if len(stage) == 3:
            raise KeyboardInterrupt
        return whole(adapted, portion)

    monkeypatch.setattr(labelling, "_label", interrupted)
    flags = ["--adapter", str(runs / "lora"), "--dataset", str(table), "--output"]
    assert cli.main(["predict", *flags, str(tmp_path / "new" / "out.csv")]) == 130
    assert stage == [4, 4, 2] and list(tmp_path.iterdir()) == [table]
    monkeypatch.setattr(labelling, "_label", whole)
    rows = texts.read_table(table, None, False, tmp_path / "out.csv")
    answers = predict(load_adapted(runs / "lora"), rows.texts)
    table.write_text("text\ngood\n")
    with pytest.raises(UserError, match="has changed while it was labelled"):
        texts.write_table(table, rows, answers, tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == [table]


def test_predict_from_python_refuses_and_warns_too(runs, monkeypatch):
    monkeypatch.setattr(labelling, "PORTION", 2)
    adapted = load_adapted(runs / "lora")
    with pytest.raises(UserError, match="text 2 of 3 is blank"):
        predict(adapted, ["fine", "\u3000", ""])
    with pytest.warns(UserWarning, match="2 of 3 texts were cut at 128 tokens"):
        predict(adapted, ["long " * 200, "fine", "long " * 129])  # in two portions
    assert predict(adapted, []) == []
    adapted.model.score.weight.data[1] = float("inf")
    with pytest.raises(UserError, match="no label for 'fine': the logits are not finite"):
        predict(adapted, ["fine"])


@pytest.mark.filterwarnings("ignore:.*does not say on which base")
def test_label_names_where_the_files_carry_none(runs, capsys, tmp_path):
    """The same figures and labels as with the names in the files, which PEFT's own do not have."""
    adapter = copy_of(runs / "lora", tmp_path / "adapter")
    save_file(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors")
    (adapter / "results.json").unlink()
    names = ["--label-names", "negative", "positive"]
    out = printed(capsys, "predict", "--adapter", adapter, *names, "--", *TEXTS)
    assert out == printed(capsys, "predict", "--adapter", runs / "lora", *TEXTS)
    assert (
        printed(capsys, "predict", "--adapter", runs / "lora", *names, "--", *TEXTS) == out
    )  # those in the files
    assert printed(capsys, "predict", "--adapter", adapter, TEXTS[0]).startswith("LABEL_")
    flags = ["--dataset", "bundled", "--output-dir", tmp_path / "out"]
    printed(capsys, "evaluate", "--adapter", adapter, *names, *flags)
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    trained = json.loads((runs / "lora" / "results.json").read_text())
    assert values["data"]["label_names"] == ["negative", "positive"]
    assert values["accuracy"] == trained["accuracy"] and values["f1_of"] == trained["f1_of"]


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_base_for_a_whole_model_is_told_to_be_of_no_use(base, runs, merged, capsys, tmp_path):
    """`inspect` has a use for it: what the model was before it learned."""

    def warned(folder: Path, base: str, *way: object) -> list[str]:
        capsys.readouterr()
        assert cli.main(list(map(str, [*way, "--adapter", folder, "--model", base]))) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "--model" in line]

    ways = [["predict", "a film"], ["explain", "a film"], ["merge", "--out", tmp_path / "merged"]]
    ways += [["evaluate", "--dataset", "bundled", "--output-dir", tmp_path / "evaluated"]]
    for way, folder in zip(ways, [runs / "full", merged[0] / "lora"] * 2, strict=True):
        (told,) = warned(folder, "another", *way)
        assert told.startswith(f"warning: --model 'another' is of no use with {folder}, and left out")
    assert not warned(runs / "lora", str(base), "predict", "a film")


def test_evaluate_tells_what_was_trained_on(base, capsys, tmp_path, monkeypatch):
    """A whole run on a file, its subset drawn, and the file evaluated; then as it is no longer the same."""
    monkeypatch.chdir(tmp_path)
    rows = [f"film {i},{('bad', 'good')[i % 2]}\n" for i in range(60)]
    Path("d.csv").write_text("text,label\n" + "".join(rows))
    flags = ["--method", "head", "--limit-train", "20", "--max-steps", "1", "--output-dir", "run"]
    assert cli.main(["--model", base, "--dataset", "d.csv", "--device", "cpu", *flags]) == 0
    evaluation = ["evaluate", "--adapter", "run", "--dataset", "d.csv"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(evaluation) == 0
    assert "warning: 20 of 60 sentences were trained on" in capsys.readouterr().err
    Path("d.csv").write_text("text,label\n" + "".join(rows[1:]))
    assert cli.main(evaluation) == 0  # nothing is known about this one


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_checkpoint_is_plain(runs, merged, read_by_transformers, method):
    """Read by transformers alone, in a process that can import neither this package nor PEFT."""
    out = merged[1][method]
    assert "flipped predictions 0" in out and "non-finite values 0" in out
    adapted = load_adapted(runs / method)
    names = {name.replace(".base_layer", "") for name, _ in adapted.model.named_parameters()}
    saved = load_file(merged[0] / method / "model.safetensors")
    assert saved.keys() == {name for name in names if not is_added(name)}
    expected = [(p.label, p.probability) for p in predict(adapted, ["a fine film", "a mess"])]
    for (label, probability), (expected_label, expected_probability) in zip(
        read_by_transformers[method], expected, strict=True
    ):
        assert label == expected_label
        assert probability == pytest.approx(expected_probability, abs=1e-5)


def test_merged_logits_equal_the_adapters(runs, merged):
    folder = merged[0] / "lora"
    adapted = load_adapted(runs / "lora")
    assert any(layer.any() for name, layer in adapted.model.named_parameters() if name.endswith("lora_B"))
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == adapted.tokenizer.get_vocab()
    assert plain.config.id2label == {0: "negative", 1: "positive"}
    examples = tokenize(tokenizer, ["a fine film", "a mess of a film , start to end"], [0, 0], 64)
    torch.testing.assert_close(
        predict_logits(plain, examples), predict_logits(adapted.model, examples), rtol=0, atol=1e-5
    )


def test_merge_refuses_to_leave_a_broken_checkpoint(runs, capsys, tmp_path, monkeypatch):
    whole = commands.checkpoint.save

    def damaged(adapted: object, folder: Path) -> None:
        whole(adapted, folder)
        weights = load_file(folder / "model.safetensors")
        weights["transformer.h.0.attn.c_attn.weight"] *= 1.5
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(commands.checkpoint, "save", damaged)
    line = fails(capsys, "merge", "--adapter", str(runs / "lora"), "--out", str(tmp_path / "out"))
    assert "the merged model is not the adapted one: max |delta logit|" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
@pytest.mark.parametrize(
    ("command", "message"),
    [("merge", "the merged model is not the adapted one"), ("verify", "read by PEFT, gives other logits")],
)
def test_the_other_side_is_transformers_own_forward_pass(
    runs, capsys, tmp_path, monkeypatch, command, message
):
    """A mistake in this project's forward pass, which would be on both sides otherwise, is noticed."""
    ours = evaluate.classify

    def mistaken(model: torch.nn.Module, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return ours(model, ids, (lengths - 1).clamp(min=1))  # reads the last token but one

    monkeypatch.setattr(evaluate, "classify", mistaken)
    out = ["--out", str(tmp_path / "out")] if command == "merge" else []
    assert message in fails(capsys, command, "--adapter", str(runs / "lora"), *out)
    assert not list(tmp_path.iterdir())


def test_merge_writes_into_no_folder_that_holds_anything(runs, capsys, tmp_path):
    (tmp_path / "mine").write_text("")
    line = fails(capsys, "merge", "--adapter", str(runs / "lora"), "--out", str(tmp_path))
    assert "is not an empty folder" in line and [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_compare_sees_flips_and_what_is_not_finite():
    expected = torch.tensor([[1.0, 2.0], [30.0, 1.0]])
    same = compare(expected + 0.001, expected)
    assert same.largest == pytest.approx(0.001, abs=1e-5) and same.flipped == same.not_finite == 0
    assert same.within(1e-3) and not same.within(1e-5)
    other = compare(torch.tensor([[3.0, 2.0], [30.0, float("inf")]]), expected)
    assert (other.largest, other.flipped, other.not_finite) == (2.0, 2, 1)
    assert not other.within(1e9)
    assert not compare(torch.full_like(expected, float("nan")), expected).within(1e9)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
@pytest.mark.parametrize("method", ["lora", "prelayer", "dora"])
def test_verify_compares_with_peft_both_ways(runs, method, capsys):
    out = printed(capsys, "verify", "--adapter", runs / method)
    assert "ours, read by PEFT" in out and "PEFT's, read here" in out and "21 sentences" in out


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_verify_notices_another_reading(runs, capsys, monkeypatch):
    import peft

    right = peft.PeftModel.from_pretrained

    def wrong(*arguments: object) -> object:
        model = right(*arguments)
        model.base_model.model.score.modules_to_save["default"].weight.data *= 1.01
        return model

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", wrong)
    line = fails(capsys, "verify", "--adapter", str(runs / "lora"))
    assert "ours, read by PEFT, gives other logits" in line


def test_verify_without_peft_or_without_an_adapter(runs, capsys, monkeypatch):
    assert "not in the format that PEFT reads" in fails(capsys, "verify", "--adapter", str(runs / "full"))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install peft" in fails(capsys, "verify", "--adapter", str(runs / "lora"))


def copy_of(run: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_bad_folders_end_in_one_line(runs, capsys, tmp_path):
    def refused(folder: Path, *flags: str) -> str:
        return fails(capsys, "predict", "--adapter", str(folder), *flags, "text")

    assert "no such folder" in refused(tmp_path / "nothing")
    assert "holds no adapter" in refused(tmp_path)
    assert "--adapter" in fails(capsys, "predict", "text")
    adapter = copy_of(runs / "lora", tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "not a whole safetensors file" in refused(adapter)
    tensors = load_file(runs / "lora" / "adapter_model.safetensors")
    save_file(tensors, weights, {"base_weights": "0" * 64})
    assert "trained on a base with other weights" in refused(adapter)
    save_file(tensors, weights, {"labels": '["a", "b", "c"]'})
    assert "3 label names, but score.weight is (2, 16)" in refused(adapter)
    save_file(tensors, weights, {"labels": "["})
    assert "label names are damaged" in refused(adapter)
    assert "nowhere" in refused(runs / "lora", "--model", "./nowhere")
    assert "--model is empty; name one" in refused(runs / "lora", "--model", "")
    head = copy_of(runs / "head", tmp_path / "head")
    for change, message in (
        ({"score.weight": torch.ones(2, 5)}, "score.weight is (2, 5), expected (2, 256)"),
        ({"score.weight": torch.ones(2, 256), "more": torch.ones(1)}, "unexpected tensor more"),
        ({"more": torch.ones(1)}, "score.weight, is missing"),
    ):
        save_file(change, head / "trained.safetensors", {"base": "bundled"})
        assert message in refused(head)
    full = copy_of(runs / "full", tmp_path / "full")
    weights = load_file(full / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, full / "model.safetensors", {"format": "pt"})
    assert "has no classifier head" in refused(full)
    (full / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "cannot be read" in refused(full)


def test_a_file_of_texts_that_is_missing_or_not_utf8(runs, capsys, tmp_path):
    flags = ["predict", "--adapter", str(runs / "lora"), "--file"]
    assert "no such file" in fails(capsys, *flags, str(tmp_path / "nothing"))
    (tmp_path / "latin").write_bytes(b"fine\ncaf\xe9\n")
    assert "latin, line 2: not UTF-8" in fails(capsys, *flags, str(tmp_path / "latin"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_three_labels_from_a_csv_to_peft(base, capsys, tmp_path):
    """A file of one's own with three string labels: trains, predicts by name, merges, loads in PEFT."""
    moods = {"calm": "the sea is still and quiet", "angry": "he shouts and breaks it", "glad": "she laughs"}
    rows = [f'"{text} , {i}",{mood}' for i in range(20) for mood, text in moods.items()]
    (tmp_path / "moods.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    run = tmp_path / "run"
    flags = ["--epochs", "10", "--lr", "2e-2", "--output-dir", str(run)]
    assert cli.main([*BUNDLED, "--model", base, "--dataset", str(tmp_path / "moods.csv"), *flags]) == 0
    record = json.loads((run / "results.json").read_text())
    assert (record["accuracy"], record["f1_of"]) == (100, "mean of all classes")
    out = printed(capsys, "predict", "--adapter", run, *moods.values())
    assert [line.split("\t")[0] for line in out.splitlines()] == list(moods)
    printed(capsys, "verify", "--adapter", run)
    printed(capsys, "merge", "--adapter", run, "--out", tmp_path / "merged")
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").config
    assert config.id2label == {0: "angry", 1: "calm", 2: "glad"}
    merged = printed(capsys, "predict", "--adapter", tmp_path / "merged", *moods.values())
    assert [line.split("\t")[0] for line in merged.splitlines()] == list(moods)


def test_blank_lines_alone_get_no_label(runs, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n \n")))
    out = printed(capsys, "predict", "--adapter", runs / "head", "--drop-blank")
    assert [line.strip() for line in out.splitlines()] == ["", ""]
    monkeypatch.setattr("sys.stdin", None)
    assert "standard input is closed" in fails(capsys, "predict", "--adapter", str(runs / "head"))


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": 5},
        {"text_column": 5},
        {"limit_train": "3"},
        {"seed": None},
        {"max_length": "3"},
        {"max_length": 0},
        {"max_length": 4096},  # more than the model has positions
    ],
)
def test_a_record_of_somebody_elses_is_no_trouble(runs, capsys, tmp_path, changes):
    adapter = copy_of(runs / "head", tmp_path / "adapter")
    record = json.loads((adapter / "results.json").read_text())
    record["config"].update(changes)
    (adapter / "results.json").write_text(json.dumps(record))
    rows = tmp_path / "d.csv"
    rows.write_text("text,label\ngood,1\nbad,0\n")
    printed(capsys, "evaluate", "--adapter", adapter, "--dataset", rows, "--output-dir", tmp_path / "out")

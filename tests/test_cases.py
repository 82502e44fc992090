"""Inputs in the shapes that people reported in public (`../shared/cases`), a row a case: what each gives."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from lora_from_scratch.cli import main as cli
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.data.files import read_rows
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.errors import UserError

TWO = ["0", "1"]
SCORES = "scores or ids, not classes"


@pytest.fixture(scope="session")
def cases(shared) -> Path:
    if not (shared / "cases").is_dir():
        pytest.skip(f"no cases at {shared}")
    return shared / "cases"


@pytest.mark.parametrize(
    ("name", "labels", "warning"),
    [
        ("line-separators/nel.csv", TWO, None),
        ("line-separators/nel.tsv", TWO, None),
        ("line-separators/quoted_nel.csv", TWO, None),
        ("line-separators/formfeed.csv", TWO, None),
        ("lone-surrogate/tweets.jsonl", TWO, "line 5: half of a surrogate pair"),
        ("integer-labels/one_two.csv", ["1", "2"], None),
        ("integer-labels/zero_four.csv", ["0", "4"], None),
        ("integer-labels/minus_one.csv", ["-1", "1"], None),
        ("integer-labels/stars.csv", ["1", "2", "3", "4", "5"], None),
        ("spaced-header/spaces.csv", ["negative", "positive"], None),
        (
            "nan-and-case/case.csv",
            ["NEGATIVE", "Negative", "POSITIVE", "Positive", "negative", "positive"],
            "differ by case or spaces alone",
        ),
        ("endings/Reviews.CSV", TWO, None),
        ("endings/reviews.json", TWO, None),
        ("endings/reviews.ndjson", TWO, None),
        ("endings/reviews.jsonl.gz", TWO, None),
        ("semicolons/semicolon.csv", TWO, None),
        ("semicolons/semicolon_commas.csv", TWO, None),
        ("named-labels/named.csv", ["negative", "positive"], None),
        ("evaluate-max-length/dev.csv", TWO, None),
    ],
)
@pytest.mark.filterwarnings("default")
def test_files_that_are_read(cases, name, labels, warning, recwarn):
    dataset = load_dataset(str(cases / name))
    assert (len(dataset.train) + len(dataset.validation), dataset.label_names) == (12, labels)
    texts = {*dataset.train.sentences, *dataset.validation.sentences}
    assert {"the plot goes nowhere", "a small film with a big heart"} <= texts and len(texts) == 12
    told = [str(one.message) for one in recwarn]
    assert any(warning in one for one in told) if warning else not told


@pytest.mark.parametrize("name", ["val_folder", "label_text_folder"])
def test_folders_that_are_read(cases, name):
    dataset = load_dataset(str(cases / "folders" / name))
    assert (len(dataset.train), len(dataset.validation), dataset.label_names) == (8, 2, TWO)
    assert dataset.validation.sentences[0] == "nobody in it seems awake"
    tested = load_dataset(str(cases / "folders" / name), Selection(validation_split="test"))
    assert tested.validation.sentences[0] == "a long walk to no point"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lists-and-objects/multilabel.jsonl", "line 1: the label is a list"),
        ("lists-and-objects/nested.jsonl", "line 1: the text is an object"),
        ("lists-and-objects/tokens.jsonl", "line 1: the text is a list"),
        ("scores-as-labels/scores.csv", f"12 labels in 12 rows, such as '0.05': {SCORES}"),
        ("nan-and-case/nan_label.jsonl", "line 8: the label is nan"),
        ("nan-and-case/nan_text.jsonl", "line 8: the text is nan"),
        ("blank-text/blank.csv", "1 of 12 texts is blank (line 7); leave them out with --drop-blank"),
        ("no-header/headerless.tsv", "the first line is 'the plot goes nowhere', '0'; if that is a row"),
    ],
)
def test_files_that_are_refused(cases, name, sentence):
    with pytest.raises(UserError) as caught:
        load_dataset(str(cases / name))
    assert sentence in str(caught.value)


def test_what_the_refusals_say_works(cases, tmp_path):
    with pytest.warns(UserWarning, match="1 of 12 texts is blank"):
        assert len(read_rows(cases / "blank-text" / "blank.csv", Selection(drop_blank=True))) == 11
    headerless = (cases / "no-header" / "headerless.tsv").read_text()
    (tmp_path / "d.tsv").write_text("text\tlabel\n" + headerless)
    assert len(read_rows(tmp_path / "d.tsv", Selection())) == 12


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("adapter-plain/adapter", None),
        ("adapter-null-modules-to-save/adapter", None),
        ("adapter-one-output/adapter", "regression"),
        ("adapter-resized-embeddings/adapter", "resized"),
        ("adapter-glob-not-regex/adapter", "no regular expression"),
        ("adapter-overflowing/adapter", "not finite"),
        ("adapter-in-checkpoint-folder/run", "checkpoint-500"),
        ("adapter-of-distilbert/adapter", "distilbert"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not say on which base")
def test_adapters(cases, capsys, name, sentence):
    folder = str(cases / name)
    status = cli.main(["predict", "--model", "bundled", "--adapter", folder, "a fine film"])
    captured = capsys.readouterr()
    if sentence is None:
        label, probability, text = captured.out.strip().split("\t")
        assert (status, label[:6], text) == (0, "LABEL_", "a fine film") and 0.5 <= float(probability) <= 1
    else:
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert (status, captured.out, len(errors)) == (2, "", 1) and sentence in errors[0]


@pytest.mark.parametrize("length", ["-1", "0"])
def test_evaluate_with_a_length_below_one(cases, capsys, length):
    arguments = ["--dataset", str(cases / "evaluate-max-length" / "dev.csv"), "--max-length", length]
    adapter = str(cases / "adapter-plain" / "adapter")
    assert cli.main(["evaluate", "--model", "bundled", "--adapter", adapter, *arguments]) == 2
    assert f"--max-length must be at least 1, not {length}" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*does not say on which base")
def test_evaluate_of_peft_files_on_named_labels(cases, capsys, tmp_path):
    arguments = ["--dataset", str(cases / "named-labels" / "named.csv"), "--output-dir", str(tmp_path / "e")]
    arguments += ["--adapter", str(cases / "adapter-plain" / "adapter"), "--model", "bundled"]
    assert cli.main(["evaluate", *arguments]) == 2
    assert "--label-names" in capsys.readouterr().err
    assert cli.main(["evaluate", *arguments, "--label-names", "negative", "positive"]) == 0
    assert "positive" in capsys.readouterr().out


def test_from_python(cases, capsys):
    """The two scripts that use the package: a tied head, and torch's own encoder."""
    with pytest.raises(UserError, match="are one tensor"):
        runpy.run_path(str(cases / "tied-weights" / "tied_head.py"))
    runpy.run_path(str(cases / "torch-encoder" / "encoder_layer.py"))
    assert capsys.readouterr().out.count("(2, 5, 16)") == 4

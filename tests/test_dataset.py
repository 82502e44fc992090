"""Labelled sentences from files and folders: every layout, and every mistake with its line."""

from __future__ import annotations

import json

import datasets
import pytest

from lora_from_scratch import UserError
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.errors import NotFound

ROWS = [(f"sentence number {i} , it 's fine ", i % 2) for i in range(20)]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def tsv(rows, header="sentence\tlabel"):
    return header + "\n" + "".join(f"{text}\t{label}\n" for text, label in rows)


def test_a_folder_of_glue_files(tmp_path):
    write(tmp_path / "train.tsv", tsv(ROWS))
    write(tmp_path / "dev.tsv", tsv([('a "quoted" one', 1), ("plain ", 0)]))
    dataset = load_dataset(str(tmp_path))
    assert dataset.train.sentences[1] == "sentence number 1 , it 's fine"  # the trailing space is gone
    assert dataset.train.labels == [i % 2 for i in range(20)]
    assert dataset.validation.sentences == ['a "quoted" one', "plain"]
    assert dataset.label_names == ["0", "1"]
    assert dataset.validation_name == "dev.tsv"


def test_the_three_formats_say_the_same(tmp_path):
    rows = [("plain", "good"), ('with "quotes", commas', "bad"), ("café — ünïcode", "so so")]
    quoted = ['plain,good\r\n"with ""quotes"", commas",bad\r\ncafé — ünïcode,so so\r\n']
    lines = [json.dumps({"sentence": text, "label": label}) for text, label in rows]
    contents = {
        "train.tsv": tsv(rows),
        "train.csv": "sentence,label\r\n" + quoted[0],
        "train.jsonl": "\n".join(lines) + "\n\n",
    }
    loaded = []
    for name, text in contents.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder / name, "\ufeff" + text)  # a byte-order mark, as spreadsheets write it
        write(folder / "validation.csv", "sentence,label\nplain,bad\n")
        loaded.append(load_dataset(str(folder)))
    for dataset in loaded:
        assert dataset.train.sentences == [text for text, _ in rows]
        assert dataset.label_names == ["bad", "good", "so so"]  # sorted
        assert dataset.train.labels == [1, 0, 2]
        assert dataset.validation.labels == [0]
    assert len({dataset.fingerprint() for dataset in loaded}) == 1


def test_a_csv_field_may_hold_a_line_break(tmp_path):
    path = write(tmp_path / "d.csv", 'text,label\n"two\nlines",0\none,1\n')
    dataset = load_dataset(path)
    assert sorted(dataset.train.sentences + dataset.validation.sentences) == ["one", "two\nlines"]
    write(tmp_path / "d.csv", 'text,label\n\n"two\nlines",0\n"one\nmore",\n')
    with pytest.raises(UserError, match=r"d\.csv, line 5: the label is empty"):  # where the row begins
        load_dataset(path)


def test_a_single_file_holds_a_tenth_out_always_the_same(tmp_path):
    path = write(tmp_path / "mine.tsv", tsv([(f"text {i}", i % 2) for i in range(50)]))
    first, again = load_dataset(path), load_dataset(path)
    assert (len(first.train), len(first.validation)) == (45, 5)
    assert not set(first.train.sentences) & set(first.validation.sentences)
    assert first == again
    assert first.validation_name == "5 rows held out of mine.tsv"
    assert first.validation.sentences != [f"text {i}" for i in range(5)]


def test_columns_by_other_names(tmp_path):
    rows = "".join(f"{i},text {i},{i % 3}\n" for i in range(9))
    path = write(tmp_path / "d.csv", "id,review,stars\n" + rows)
    dataset = load_dataset(path, Selection("review", "stars"))
    assert dataset.label_names == ["0", "1", "2"]
    with pytest.raises(UserError, match=r"d\.csv: no column sentence or text; name one of id, review, stars"):
        load_dataset(path)
    with pytest.raises(UserError, match=r"no column 'verdict'.*--label-column"):
        load_dataset(path, Selection("review", "verdict"))


def test_the_fingerprint_sees_every_change(tmp_path):
    def fingerprint(rows, dev=(("x", 0),)):
        write(tmp_path / "train.tsv", tsv(rows))
        write(tmp_path / "dev.tsv", tsv(dev))
        return load_dataset(str(tmp_path)).fingerprint()

    base = [("a", 0), ("b", 1)]
    variants = [base, base[::-1], [("a", 1), ("b", 0)], [("a", 0), ("c", 1)], [*base, ("c", 1)]]
    prints = [fingerprint(rows) for rows in variants] + [fingerprint(base, [("y", 0)])]
    assert len(set(prints)) == len(prints)
    assert fingerprint(base) == prints[0] and len(prints[0]) == 64


def test_integer_labels_are_ids_for_string_names_too(tmp_path):
    write(tmp_path / "train.tsv", tsv([("a", "bad"), ("b", "good")]))
    write(tmp_path / "dev.tsv", tsv([("c", 1), ("d", "bad")]))
    assert load_dataset(str(tmp_path)).validation.labels == [1, 0]


@pytest.mark.parametrize("name", ["nowhere.csv", "./nowhere", "/nowhere/x.tsv", "a/b/c/d"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(NotFound, match="no such file or folder"):
        load_dataset(name)


def test_an_unknown_hub_id_out_of_reach_of_the_hub():
    with pytest.raises(NotFound, match="is neither here nor cached, and the hub is out of reach"):
        load_dataset("no-such-dataset-anywhere")


@pytest.mark.parametrize(("good", "bad"), [(40, 20), (97, 3), (15, 5), (60, 1)])
def test_the_tenth_is_one_of_each_class(tmp_path, good, bad):
    """And a class of a single row is trained on."""
    rows = [(f"text {i}", "good" if i < good else "bad") for i in range(good + bad)]
    dataset = load_dataset(write(tmp_path / "d.tsv", tsv(rows)))
    held_out = [dataset.validation.labels.count(label) for label in (0, 1)]
    assert sum(held_out) == round(0.1 * (good + bad))
    assert abs(held_out[0] - (bad > 1) * bad / 10) < 1
    assert dataset.train.labels.count(0) == bad - held_out[0] > 0


def test_one_row_alone_is_refused(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    path = str(tmp_path / "d.parquet")
    datasets.Dataset.from_dict({"text": ["x"], "label": [0]}, features=features).to_parquet(path)
    with pytest.raises(UserError, match="a single row cannot be trained on and measured; add others"):
        load_dataset(path)


def test_a_class_of_one_row_is_never_held_out(tmp_path):
    rows = [("fine", label) for label in ["a"] * 4 + ["m0", "m1", "m2"] + ["z"] * 4]
    dataset = load_dataset(write(tmp_path / "d.tsv", tsv(rows)))
    assert dataset.label_names[dataset.validation.labels[0]] in ("a", "z") and len(dataset.validation) == 1

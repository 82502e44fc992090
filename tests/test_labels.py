"""From labels as a source has them to ids and names."""

from __future__ import annotations

import pytest

from lora_from_scratch.data.labels import label_ids, label_names
from lora_from_scratch.data.rows import Rows
from lora_from_scratch.errors import UserError


def rows(*labels, names=None) -> Rows:
    return Rows(["text"] * len(labels), list(labels), range(1, len(labels) + 1), "d", "row", names)


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (("1", "2", "1"), ["1", "2"], [0, 1, 0]),
        ((1, -1), ["-1", "1"], [1, 0]),
        (("4", "0"), ["0", "4"], [1, 0]),
        (("10", "9", "2"), ["2", "9", "10"], [2, 1, 0]),  # as numbers, not as text
        ((5, 1, 3), ["1", "3", "5"], [2, 0, 1]),
        ((1.0, 0.0), ["0", "1"], [1, 0]),
        (("1.0", "0"), ["0", "1"], [1, 0]),
        (("1", 1, 1.0, 0), ["0", "1"], [1, 1, 1, 0]),
        (("3.5", "0.50", "0.5", "2") * 2, ["0.5", "2", "3.5"], [2, 0, 0, 1] * 2),
        (("neg", "pos", "Neu"), ["Neu", "neg", "pos"], [1, 2, 0]),
        (("007", "7"), ["007", "7"], [0, 1]),  # codes
        (("none", "good"), ["good", "none"], [1, 0]),  # a word where the others are words
        (("True", "False"), ["False", "True"], [1, 0]),
        (("٣", "3"), ["3", "٣"], [1, 0]),
        (("9" * 5000, "1"), ["1", "9" * 5000], [1, 0]),
        ((2**63, "0", 0), ["0", str(2**63)], [1, 0, 0]),  # longer than a float is exact
        ((2**63, "a", str(2**63)), [str(2**63), "a"], [0, 1, 0]),
        ((1e-07, 1, 1.0), ["1e-07", "1"], [0, 1, 1]),
        ((1e300, 0.0), ["0", str(int(1e300))], [1, 0]),
    ],
)
def test_ids_and_names(labels, names, ids):
    given = rows(*labels)
    assert label_names(given) == names
    assert label_ids(given, names) == ids


def test_names_of_the_source_stay_where_they_are_even_as_integers():
    given = rows(0, 1, 1, names=["1", "0"])
    assert label_names(given) == ["1", "0"]
    assert label_ids(given, ["1", "0"]) == [0, 1, 1]
    assert label_ids(rows(0, names=["a", "b"]), label_names(rows(0, 0, names=["a", "b"]))) == [0]


@pytest.mark.parametrize("label", [-1, 2, "a", 0.5])
def test_an_id_that_the_source_does_not_name(label):
    with pytest.raises(UserError, match=r"d, row 2: label '.*' is none of 'a', 'b'"):
        label_ids(rows(0, label, names=["a", "b"]), ["a", "b"])


def test_another_split_may_spell_numbers_otherwise():
    assert label_ids(rows("0.0", "1"), ["0", "1"]) == [0, 1]
    assert label_ids(rows(2.0, "1"), ["1", "2"]) == [1, 0]


@pytest.mark.parametrize(
    ("labels", "source_names", "known", "ids"),
    [
        ((1, "0", 1.0), None, ["bad", "good"], [1, 0, 1]),  # ids of words
        ((1, 0), None, ["LABEL_0", "LABEL_1"], [1, 0]),
        (("LABEL_1",), None, ["LABEL_0", "LABEL_1"], [1]),
        (("2", "1"), None, ["1", "2"], [1, 0]),  # names, not ids
        ((0, 1), ["good", "bad"], ["bad", "good"], [1, 0]),  # by name, not by id
        ((0, 1), ["neg", "pos"], ["LABEL_0", "LABEL_1"], [0, 1]),
        ((0, 1), ["neg", "pos"], ["0", "1"], [0, 1]),
    ],
)
def test_labels_for_a_model_that_knows_names(labels, source_names, known, ids):
    assert label_ids(rows(*labels, names=source_names), known) == ids


@pytest.mark.parametrize(
    ("labels", "source_names", "known"),
    [
        (("2",), None, ["bad", "good"]),
        ((0.5,), None, ["bad", "good"]),
        ((-1,), None, ["bad", "good"]),
        ((0,), None, ["1", "2"]),
        (("neg",), None, ["LABEL_0", "LABEL_1"]),
        ((0,), ["neg", "pos"], ["bad", "good"]),
        ((2,), ["a", "b", "c"], ["LABEL_0", "LABEL_1"]),
    ],
)
def test_labels_that_a_model_does_not_know(labels, source_names, known):
    with pytest.raises(UserError, match="is none of"):
        label_ids(rows(*labels, names=source_names), known)


def test_one_class_alone_is_evaluated_but_not_trained_on():
    assert label_ids(rows(1, 1), ["a", "b"]) == [1, 1]
    with pytest.raises(UserError, match="every label is '1'"):
        label_names(rows(1, 1))


def test_few_rows_of_many_classes_are_no_scores():
    assert label_names(rows(1, 2, 3, 4, 5)) == ["1", "2", "3", "4", "5"]
    with pytest.raises(UserError, match="scores or ids"):
        label_names(rows(0.5, 1.0, 1.5))


def test_the_only_name_of_an_id():
    with pytest.raises(UserError, match="every label is '0'; add rows of a second class"):
        label_names(rows(0, 0, names=["good"]))

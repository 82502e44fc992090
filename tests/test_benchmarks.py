"""The parts of the benchmarks that decide a figure."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from choose_learning_rate import hold_out_sentences, phrases

from lora_from_scratch.dataset import Split, load_dataset


def test_phrases_are_the_runs_of_words():
    assert phrases("a b c") == {"a", "b", "c", "a b", "b c", "a b c"}


def test_a_held_out_sentence_takes_its_phrases_with_it():
    long = [f"sentence {i} has more than eight words in it" for i in range(6)]
    rows = [*long, "has more than eight words", "sentence 3", "in it", "elsewhere", "words in it elsewhere"]
    train = Split(rows, list(range(len(rows))))
    rest, held_out = hold_out_sentences(train, 2)
    assert len(held_out) == 2 and set(held_out.sentences) < set(long)
    assert "has more than eight words" not in rest.sentences and "in it" not in rest.sentences
    assert {"elsewhere", "words in it elsewhere"} < set(rest.sentences)
    assert [rows[label] for label in rest.labels] == rest.sentences


def test_nothing_of_the_slice_is_left_in_sst2s_training_rows(shared):
    train = load_dataset(str(shared / "data" / "sst2")).train
    rest, held_out = hold_out_sentences(train, 200)
    kept = set(rest.sentences)
    assert not any(phrase in kept for sentence in held_out.sentences for phrase in phrases(sentence))
    assert len(rest) > 0.95 * len(train)
    assert sum(len(sentence.split()) for sentence in held_out.sentences) / 200 > 15

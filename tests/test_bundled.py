"""The bundle: the sentences are what they claim to be, the model is small, real, and made by its script."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import pretrain as tool
from pretrain import pretrain
from pretraining import Pretraining
from pretraining_model import Settings, learning_rate, make_optimizers, model_config
from pretraining_text import encode, read_documents, train_tokenizer, window_starts, windows

from lora_from_scratch.base.load import BUNDLED_MODEL, load_model, load_tokenizer
from lora_from_scratch.data.dataset import BUNDLED_DATASET, load_dataset
from lora_from_scratch.errors import UserError
from lora_from_scratch.train.checkpoints import found_in, newest
from lora_from_scratch.train.interrupts import Interrupted

TINY = Settings(
    vocab_size=400, n_positions=16, n_embd=32, n_layer=1, n_head=2, batch_size=8, steps=60, warmup_steps=5
)


@pytest.fixture(scope="module")
def reviews():
    return load_dataset("bundled")


def test_the_sentences_are_many_and_balanced(reviews):
    assert len(reviews.train) >= 1200 and len(reviews.validation) >= 300
    assert reviews.label_names == ["negative", "positive"]
    for split in (reviews.train, reviews.validation):
        assert sum(split.labels) * 2 == len(split)


def bag(sentence: str) -> set[tuple[str, int]]:
    """The words, each with the number of its occurrence: "a a b" is {(a, 1), (a, 2), (b, 1)}."""
    counts: Counter[str] = Counter()
    return {(word, counts.update([word]) or counts[word]) for word in sentence.split()}


def test_no_sentence_comes_twice_nor_nearly(reviews):
    """No two share six words in a row; none shares three fifths of its words with one of the other split."""
    sentences = reviews.train.sentences + reviews.validation.sentences
    assert len(set(sentences)) == len(sentences)
    seen: dict[tuple[str, ...], str] = {}
    for sentence in sentences:
        words = sentence.split()
        for run in {tuple(words[i : i + 6]) for i in range(len(words) - 5)}:
            assert seen.setdefault(run, sentence) == sentence
    train = [bag(sentence) for sentence in reviews.train.sentences]
    for sentence in reviews.validation.sentences:
        words = bag(sentence)
        for other in train:
            shared = len(words & other)
            assert shared / (len(words) + len(other) - shared) < 0.6, sentence


def test_the_sentences_are_in_sst2s_manner(reviews):
    for sentence in reviews.train.sentences + reviews.validation.sentences:
        assert sentence == sentence.lower() and sentence.isascii() and "  " not in sentence
        assert 3 <= len(sentence.split()) <= 35
        assert all(mark not in word or word in mark * 3 for word in sentence.split() for mark in ",.!?")


def test_a_bag_of_words_does_not_solve_them(reviews):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(token_pattern=r"\S+", binary=True)
    model = LogisticRegression(C=1.0, max_iter=1000)
    model.fit(words.fit_transform(reviews.train.sentences), reviews.train.labels)
    validation = words.transform(reviews.validation.sentences)
    assert model.score(validation, reviews.validation.labels) < 0.78
    negations = {"not", "n't", "no", "never", "without", "nothing", "nobody", "hardly", "neither"}
    turns = {"but", "yet", "although", "though", "despite", "however"}
    for kind in (negations, turns):
        labels = [
            label
            for sentence, label in zip(reviews.train.sentences, reviews.train.labels, strict=True)
            if kind & set(sentence.split())
        ]
        assert len(labels) > 300
        assert 0.4 < sum(labels) / len(labels) < 0.6  # the word itself gives nothing away


def test_the_model_is_small_and_loads_like_gpt2():
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.iterdir()) <= 12_000_000
    weights = load_file(BUNDLED_MODEL / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert AutoTokenizer.from_pretrained(BUNDLED_MODEL).is_fast
    record = json.loads((BUNDLED_MODEL / "pretraining.json").read_text())
    settings = Settings(**record["settings"])
    config = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL).config
    expected = model_config(settings, dropout=0.1)
    for name in (
        "vocab_size",
        "n_positions",
        "n_embd",
        "n_layer",
        "n_head",
        "activation_function",
        "attn_pdrop",
    ):
        assert getattr(config, name) == getattr(expected, name)


def test_the_model_has_learned_english_about_films(reviews):
    """Its next-token loss on sentences it has not seen is far below that of its own untrained shape."""
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    tokenizer = load_tokenizer("bundled")
    total = count = 0
    with torch.no_grad():
        for sentence in reviews.validation.sentences[:100]:
            ids = torch.tensor([tokenizer(sentence, add_special_tokens=False).input_ids])
            if ids.shape[1] > 1:
                total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
                count += ids.shape[1] - 1
    assert total / count < 0.65 * math.log(tokenizer.vocab_size)


def test_plain_and_treebank_spelling_read_the_same():
    tokenizer = load_tokenizer("bundled")
    plain = tokenizer("It isn't a \u201cgood\u201d (or cliché) film\u2026 they can't've stopped!").input_ids
    treebank = tokenizer(
        "it is n't a `` good '' -lrb- or cliche -rrb- film ... they ca n't 've stopped !"
    ).input_ids
    assert plain == treebank


def test_the_bundled_head_has_the_labels_names():
    tokenizer = load_tokenizer("bundled")
    model = load_model("bundled", ["negative", "positive"], tokenizer.pad_token_id)
    assert (model.config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 0, 0)
    assert BUNDLED_DATASET.is_dir()


def test_documents_come_from_plain_and_gzipped_lines(tmp_path):
    import gzip

    text = "One end.Next sentence (fine).\n\n  It cost 3.50 in the U.S. \nlast\n"
    (tmp_path / "a.txt").write_text(text)
    with gzip.open(tmp_path / "b.gz", "wt") as file:
        file.write(text)
    documents = ["One end. Next sentence (fine).", "It cost 3.50 in the U.S.", "last"]
    assert list(read_documents([tmp_path / "a.txt", tmp_path / "b.gz"])) == 2 * documents


def test_windows_begin_at_sentence_starts_and_lose_no_sentence():
    draw = numpy.random.default_rng(0)
    stream = draw.integers(1, 9, 2000).astype(numpy.uint16)  # 1 to 4 end a sentence
    for offset in (0, 7):
        starts = window_starts(stream, [1, 2, 3, 4], 16, offset)
        assert starts == sorted(set(starts)) and starts[0] >= offset
        assert all(start == 0 or stream[start - 1] in (1, 2, 3, 4) for start in starts)
        assert max(b - a for a, b in pairwise(starts)) <= 16  # no gap
    batch = windows(stream, starts[:3], 16)
    assert batch.shape == (3, 17) and batch[1].tolist() == stream[starts[1] : starts[1] + 17].tolist()


def test_a_sentence_longer_than_a_window_goes_on_in_the_next():
    assert window_starts(numpy.full(50, 5, dtype=numpy.uint16), [1], 16) == [0, 16, 32]


def test_the_learning_rate_rises_and_falls():
    settings = Settings(steps=100, warmup_steps=10, lr=1.0)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) <= 1 and rates[99] == pytest.approx(1 / 90)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_every_parameter_has_one_optimizer():
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(model_config(TINY, dropout=0.0))
    held = [
        p
        for optimizer in make_optimizers(model, TINY)
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}


@pytest.fixture
def text(tmp_path) -> Path:
    """Four words in their order, over and over: an epoch of 50 steps with the tiny settings."""
    words = ["red", "green", "blue", "gold"]
    lines = [" ".join(words[(i + j) % 4] for j in range(30)) + " ." for i in range(200)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    return tmp_path / "text.txt"


def test_the_script_learns_from_plain_text_and_leaves_a_whole_model(text, tmp_path):
    out = tmp_path / "out"
    pretrain([text], out, TINY)
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "pretraining.json", "tokenizer.json", "tokenizer_config.json"),
    }
    record = json.loads((out / "pretraining.json").read_text())
    assert record["texts"] == ["text.txt"] and record["documents"] == 200
    assert record["validation_loss_nats"] < 0.5 * math.log(record["settings"]["vocab_size"])
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([tokenizer("red green blue gold red green blue").input_ids])
    assert tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()).strip() == "gold"


def test_too_little_text_is_an_error():
    documents = ["a few words .", "and a few more ."]
    run = Pretraining(TINY, train_tokenizer(documents, 300), documents, "cpu")
    with pytest.raises(UserError, match="the text is too short"):
        next(run.starts())


def test_the_order_of_the_windows_is_the_one_that_the_bundle_was_made_with(text):
    """A plain loop over one generator: the documents' order, then each epoch's offset and its windows."""
    documents = list(read_documents([text]))
    tokenizer = train_tokenizer(documents, TINY.vocab_size)
    found = list(islice(Pretraining(TINY, tokenizer, documents, "cpu").starts(), 120))
    draw = numpy.random.default_rng(TINY.seed)
    order = draw.permutation(200)
    stream = encode(tokenizer, [documents[i] for i in order[:198]])
    ends = [tokenizer.token_to_id(end) for end in ("<|endoftext|>", "\u0120.")]
    expected: list[int] = []
    while len(expected) < 120 * 8:
        offset = int(draw.integers(16))
        expected += draw.permutation(window_starts(stream, ends, 16, offset)).tolist()
    assert [start for batch in found for start in batch] == expected[: 120 * 8]


@pytest.fixture
def runs(monkeypatch) -> list[Pretraining]:
    """Each pretraining whose training began, and ended one way or another."""
    begun: list[Pretraining] = []
    train = Pretraining.train
    monkeypatch.setattr(Pretraining, "train", lambda run, *rest: begun.append(run) or train(run, *rest))
    return begun


def signalled(monkeypatch: pytest.MonkeyPatch, signals: dict[int, signal.Signals]) -> None:
    """Send this process these signals, each before the step of its number ends."""
    step = Pretraining._step

    def stepped(run: Pretraining, *rest: object) -> None:
        step(run, *rest)
        if number := signals.pop(len(run.log), None):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Pretraining, "_step", stepped)


def test_a_pretraining_that_was_interrupted_ends_as_if_it_had_not_been(text, tmp_path, monkeypatch, runs):
    """Twice within an epoch, in the next one and at the very last step."""
    settings = replace(TINY, validate_every=10)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain([text], whole, settings)
    signals = {7: signal.SIGTERM, 9: signal.SIGINT, 53: signal.SIGTERM, 60: signal.SIGTERM}
    left = dict(signals)
    signalled(monkeypatch, left)
    for leg, (steps, number) in enumerate(signals.items()):
        with pytest.raises(Interrupted) as interrupt:
            pretrain([text], parts, settings, checkpoint_every=20, resume=leg > 0)
        assert interrupt.value.signal == number
        assert newest(parts / "checkpoints")[1].steps == steps
    assert [path.name[5:14] for path in found_in(parts / "checkpoints")] == ["000000060", "000000053"]
    pretrain([text], parts, settings, resume=True)
    expected, *_, last = runs
    for name, column in expected.log.tensors().items():
        assert torch.equal(last.log.tensors()[name], column), name
    ours, theirs = last.snapshot().tensors, expected.snapshot().tensors
    assert ours.keys() == theirs.keys() and any(name.startswith("momentum_buffer.") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}
    for path in whole.iterdir():
        there, here = path.read_bytes(), (parts / path.name).read_bytes()
        if path.name == "pretraining.json":
            there, here = ({**json.loads(one), "hours": None} for one in (there, here))
        assert there == here, path.name


def test_a_pretrainings_time_is_that_of_all_its_stretches(text, tmp_path, monkeypatch, runs):
    """Neither what checkpoints took nor the time in between is counted."""
    signalled(monkeypatch, {3: signal.SIGTERM})
    with pytest.raises(Interrupted):
        pretrain([text], tmp_path / "out", TINY, checkpoint_every=1)
    facts = newest(tmp_path / "out" / "checkpoints")[1].facts
    assert 0 < facts["checkpoint_seconds"] < runs[0].checkpoint_seconds
    monkeypatch.setattr("time.time", lambda: 1e6 + facts["seconds"])  # the clock stands still from here
    pretrain([text], tmp_path / "out", TINY, resume=True)
    hours = json.loads((tmp_path / "out" / "pretraining.json").read_text())["hours"]
    assert hours == pytest.approx(facts["seconds"] / 3600)


def test_the_script_says_how_to_go_on_and_with_what_it_does_not(text, tmp_path, monkeypatch, capsys):
    def tiny(**changes: object) -> Settings:
        return replace(TINY, **changes)

    tiny.steps = 12
    monkeypatch.setattr(tool, "Settings", tiny)
    signalled(monkeypatch, {5: signal.SIGTERM})
    out = tmp_path / "out"

    def told(*flags: str, text: Path = text) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pretrain.py", str(text), "--out", str(out), *flags])
        status = tool.main()
        lines = capsys.readouterr().err.splitlines()
        return status, next((line for line in lines if line.startswith(("error: ", "interrupted"))), "")

    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("gold", "silver"))
    nothing = f"error: --resume: there is no checkpoint in {out}/checkpoints; leave the flag out to begin"
    assert told("--resume") == (2, nothing)
    assert told("--checkpoint-every", "0") == (2, "error: --checkpoint-every must be at least 1, not 0")
    assert not out.exists()
    assert told() == (143, "interrupted; go on with the same command and --resume")
    held = f"error: {out} holds an interrupted pretraining: add --resume to go on with it, or delete its "
    assert told() == (2, held + "checkpoints to begin anew")
    assert told("--resume", "--steps", "13") == (2, "error: --resume: steps was 12, now 13: ask for the same")
    changed = "error: --resume: the text is not what the pretraining began with: name that"
    assert told("--resume", text=other) == (2, changed)
    assert told("--resume") == (0, "")
    assert (out / "pretraining.json").exists() and not (out / "checkpoints").exists()

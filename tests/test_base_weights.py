"""What a run holds of its base, and what it reads again: less memory, and the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import METHODS, RELATIVES, ready, trained, write_base, write_sentences
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig
from lora_from_scratch.base import load
from lora_from_scratch.runs.execute import evaluate_prepared, train_prepared
from lora_from_scratch.runs.prepare import Prepared, prepare
from lora_from_scratch.runs.sources import Sources, find_sources
from lora_from_scratch.train.precision import resolve_precision

PRECISIONS = sorted({"fp32", resolve_precision("auto", torch.device("cpu"))})
WTE = "transformer.wte.weight"


def with_all_rows(prepared: Prepared) -> Prepared:
    """The same run, whose frozen embeddings stay in memory."""

    def weights(names: list[str], mapped: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(()) if mapped else prepared.base_weights(names)

    return replace(prepared, base_weights=weights)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> dict[str, object]:
    """Nothing here changes the files."""
    folder = tmp_path_factory.mktemp("asked")
    base, dataset = write_base(folder / "base"), write_sentences(folder / "reviews.csv")
    return {"model": str(base), "dataset": str(dataset), "device": "cpu", "epochs": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def read_anew(asked) -> Sources:
    """Of which every run loads its base from the files."""
    return find_sources(RunConfig(**asked))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", [*METHODS, *RELATIVES, "head"])
def test_training_on_the_rows_that_occur_is_the_same_bit_for_bit(method, precision, asked, read_anew):
    """Of a base that is kept for other runs, and of one that is read for this one."""
    changes = {"method": method, "precision": precision, "eval_every": 3}
    expected = trained(with_all_rows(ready(**changes)))
    assert trained(ready(**changes)) == expected
    assert trained(prepare(RunConfig(**{**asked, **changes}), read_anew)) == expected


def test_a_base_that_is_kept_serves_another_run_as_it_was():
    first = trained(ready(precision="fp32"))
    assert trained(ready(precision="fp32")) == first
    assert trained(ready(method="full")) == trained(ready(method="full"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_while_it_trains_frozen_embeddings_are_the_rows_alone(precision, asked, monkeypatch):
    prepared, seen = prepare(RunConfig(**asked, precision=precision)), []
    whole = prepared.model.transformer.wte
    occurring = len(prepared.train_examples.token_ids.unique())
    forward = "lora_from_scratch.runs.execute.fast_classify"

    def look(model: GPT2ForSequenceClassification, *batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(model.transformer.wte.weight))
        return classify(model, *batch)

    from lora_from_scratch.fast.gpt2 import classify

    monkeypatch.setattr(forward, look)
    train_prepared(prepared)
    assert set(seen) == {occurring} and occurring < len(whole.weight)
    saved = load_file(f"{asked['model']}/model.safetensors")[WTE]
    assert prepared.model.transformer.wte is whole and torch.equal(whole.weight, saved)
    assert whole.weight.dtype == torch.float32


def test_rounded_weights_are_read_again_one_by_one(asked, monkeypatch):
    """A second base beside the first would be as large as it."""
    prepared = prepare(RunConfig(**asked, precision="bf16", rank=2))
    train_prepared(prepared)
    named = {name.replace(".base_layer.", "."): p for name, p in prepared.model.named_parameters()}
    assert named["transformer.h.1.mlp.c_fc.weight"].dtype == torch.bfloat16
    monkeypatch.setattr(load, "load_model", None)
    monkeypatch.setattr(load, "load_headless", None)
    evaluate_prepared(prepared)
    for name, tensor in load_file(f"{asked['model']}/model.safetensors").items():
        assert torch.equal(named[name], tensor)


def test_random_weights_are_drawn_again_and_take_no_memory_of_a_file():
    config = RunConfig(model="bundled", dataset="bundled", random_init=True, device="cpu")
    base = find_sources(config).base
    model, names = base(3), [WTE, "transformer.h.0.mlp.c_fc.bias"]
    again = dict(base.weights(3, names))
    assert list(again) == names and all(torch.equal(again[n], model.get_parameter(n)) for n in names)
    assert list(base.weights(3, names, mapped=True)) == []


def test_what_is_kept_lends_a_weight_and_gives_a_copy(asked):
    base = find_sources(RunConfig(**asked), keep=True).base
    (_, lent), (_, copied) = *base.weights(0, [WTE], mapped=True), *base.weights(0, [WTE])
    own = base.model.get_parameter(WTE)
    assert lent.data_ptr() == own.data_ptr() != copied.data_ptr() and torch.equal(copied, own)

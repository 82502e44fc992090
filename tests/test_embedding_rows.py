"""Training only the rows that occur equals training them all, for embeddings that learn."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from conftest import tiny_config
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, adapt
from lora_from_scratch.fast.embedding_rows import occurring_rows
from lora_from_scratch.train.training import Course, train


@pytest.mark.parametrize("method", ["prelayer", "full"])
def test_the_same_weights_as_with_every_row(method, tiny_examples):
    torch.manual_seed(0)
    # As in GPT-2, the padding token is the last one, and does not occur.
    config = tiny_config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, pad_token_id=49)
    model = adapt(GPT2ForSequenceClassification(config), RunConfig(method=method)).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reference = copy.deepcopy(model)
    options = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.3, "precision": torch.float32}
    train(reference, tiny_examples, Course(**options, generator=torch.Generator().manual_seed(0)))

    whole = model.transformer.wte
    with occurring_rows(model, tiny_examples) as occurring:
        assert len(model.transformer.wte.weight) == 11 and len(model.transformer.wpe.weight) == 12
        training = train(
            model, occurring.examples, Course(**options, generator=torch.Generator().manual_seed(0))
        )
        occurring.decay = training.decay
    assert model.transformer.wte is whole
    assert training.decay["wte"] == training.decay["wpe"]
    assert 0 < training.decay["wte"] < 1 - 0.01
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-10, atol=1e-12)
    unused = before["transformer.wte.weight"][20]
    torch.testing.assert_close(model.transformer.wte.weight[20], unused * training.decay["wte"])


@pytest.mark.parametrize("method", ["prelayer", "full"])
def test_in_between_all_rows_are_there_as_training_every_row_has_them(method, tiny_examples):
    """Decayed so far, the trained ones in their places; then training goes on with the few."""
    torch.manual_seed(0)
    config = tiny_config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model = adapt(GPT2ForSequenceClassification(config), RunConfig(method=method)).double()
    reference = copy.deepcopy(model)
    options = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.3, "precision": torch.float32}
    options["eval_every"] = 4

    def embeddings(model: GPT2ForSequenceClassification, seen: list) -> None:
        seen.append([getattr(model.transformer, name).weight.detach().clone() for name in ("wte", "wpe")])

    expected, seen = [], []

    def look(decay: dict[str, float]) -> dict[str, float]:
        small = model.transformer.wte
        with occurring.all_rows(decay):
            embeddings(model, seen)
        assert model.transformer.wte is small and len(small.weight) == 11
        return {}

    def reference_look(decay: dict[str, float]) -> dict[str, float]:
        embeddings(reference, expected)
        return {}

    draw = torch.Generator().manual_seed(0)
    train(reference, tiny_examples, Course(**options, generator=draw, validate=reference_look))
    with occurring_rows(model, tiny_examples) as occurring:
        draw = torch.Generator().manual_seed(0)
        training = train(model, occurring.examples, Course(**options, generator=draw, validate=look))
        occurring.decay = training.decay
    assert len(seen) == len(expected) == 5
    torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["lora", "head"])
def test_frozen_embeddings_stay_as_they_are(method, tiny_gpt2, tiny_examples):
    adapt(tiny_gpt2, RunConfig(method=method))
    wte = tiny_gpt2.transformer.wte
    with occurring_rows(tiny_gpt2, tiny_examples) as occurring:
        assert tiny_gpt2.transformer.wte is wte and occurring.examples is tiny_examples
        occurring.decay = {"wte": 0.5}
    assert tiny_gpt2.transformer.wte is wte and not (wte.weight == 0).all()


def test_after_an_error_the_embeddings_are_whole_again(tiny_gpt2, tiny_examples):
    adapt(tiny_gpt2, RunConfig(method="prelayer"))
    wte, before = tiny_gpt2.transformer.wte, tiny_gpt2.transformer.wte.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), occurring_rows(tiny_gpt2, tiny_examples):
        raise KeyboardInterrupt
    assert tiny_gpt2.transformer.wte is wte and torch.equal(wte.weight, before)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_rows_left_out_decay_as_their_own_parameter_group_does(tiny_examples, decay):
    """A method may give its embeddings a weight decay or a rate of their own."""
    torch.manual_seed(0)
    config = tiny_config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model = adapt(GPT2ForSequenceClassification(config), RunConfig(method="prelayer")).double()
    reference = copy.deepcopy(model)
    options = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.1, "precision": torch.float32}

    def groups(model: GPT2ForSequenceClassification) -> list[dict[str, object]]:
        wte, wpe = model.transformer.wte.weight, model.transformer.wpe.weight
        return [
            {"params": [model.score.weight], "weight_decay": 0.1},
            {"params": [wte], "weight_decay": decay, "lr": 3e-2},
            {"params": [wpe], "weight_decay": 0.2},
        ]

    draw = torch.Generator().manual_seed(0)
    train(reference, tiny_examples, Course(**options, generator=draw, groups=groups(reference)))
    with occurring_rows(model, tiny_examples) as occurring:
        draw = torch.Generator().manual_seed(0)
        training = train(model, occurring.examples, Course(**options, generator=draw, groups=groups(model)))
        occurring.decay = training.decay
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_frozen_embeddings_that_are_stored_the_rows_alone_are_there(tiny_gpt2, tiny_examples, dtype):
    """In between and at the end they are what `stored` gave, which nobody has written to."""
    adapt(tiny_gpt2, RunConfig(method="lora"))
    names = ("transformer.wte.weight", "transformer.wpe.weight")
    before = {name: tiny_gpt2.get_parameter(name).detach().clone() for name in names}
    given = {name: tensor.clone() for name, tensor in before.items()}
    asked = []

    def stored(names: list[str], mapped: bool) -> Iterator[tuple[str, torch.Tensor]]:
        asked.append((tuple(names), mapped))
        return ((name, given[name]) for name in names)

    gpt2, ids = tiny_gpt2.transformer, tiny_examples.token_ids
    wte = gpt2.wte
    with occurring_rows(tiny_gpt2, tiny_examples, stored) as occurring:
        small = gpt2.wte.to(dtype)
        assert len(small.weight) == 11 and len(gpt2.wpe.weight) == 12 and not small.weight.requires_grad
        assert torch.equal(small(occurring.examples.token_ids), before[names[0]].to(dtype)[ids])
        assert occurring.rows == {}
        assert occurring.spared_bytes == (50 + 32) * 16 * 4 - 11 * 16 * dtype.itemsize - 12 * 16 * 4
        with occurring.all_rows({}):
            assert torch.equal(gpt2.wte(ids), before[names[0]].to(dtype)[ids])
        assert gpt2.wte is small
        occurring.decay = {"wte": 0.5}
    assert asked == [(names, True)] and gpt2.wte is wte
    for name in names:
        parameter = tiny_gpt2.get_parameter(name)
        assert parameter.data_ptr() == given[name].data_ptr() and torch.equal(parameter, before[name])
        assert not parameter.requires_grad

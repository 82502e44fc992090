"""The written-out forward pass against transformers' own: logits, gradients, and every shortcut."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import randomize_lora, tiny_config
from torch.nn.functional import cross_entropy
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, adapt, inject_lora
from lora_from_scratch.base.fingerprint import is_added
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.fast.gpt2 import classify
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.methods import METHODS

LENGTHS = torch.tensor([1, 12, 7, 12, 3])
LABELS = torch.tensor([0, 1, 1, 0, 1])


def padded(pad: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 50, (len(LENGTHS), 12), generator=draw)
    return ids.masked_fill(torch.arange(12) >= LENGTHS[:, None], pad)


def plain_logits(model: GPT2ForSequenceClassification) -> torch.Tensor:
    ids = padded()
    return model(input_ids=ids, attention_mask=(ids != 0).long()).logits


both_forwards = pytest.mark.parametrize("classify", [fast_classify, plain_classify])


@both_forwards
@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "gelu"])
@pytest.mark.parametrize("adapted", [False, True])
def test_logits_and_gradients_are_those_of_transformers(tiny_gpt2, activation, adapted, classify):
    model = GPT2ForSequenceClassification(tiny_config(activation_function=activation)).eval()
    model.load_state_dict(tiny_gpt2.state_dict())
    if adapted:
        inject_lora(model, ["c_attn", "c_proj", "c_fc"], rank=3, alpha=8)
        randomize_lora(model)
    model.requires_grad_(True)
    reference = copy.deepcopy(model)
    logits, expected = classify(model, padded(), LENGTHS), plain_logits(reference)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    cross_entropy(logits, LABELS).backward()
    cross_entropy(expected, LABELS).backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5, msg=name)


@both_forwards
@pytest.mark.parametrize(
    "changes", [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}, {"n_inner": 24}]
)
def test_the_configurations_own_ways(changes, classify):
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(**changes, initializer_range=0.3)).eval()
    torch.testing.assert_close(classify(model, padded(), LENGTHS), plain_logits(model), rtol=0, atol=1e-5)


def test_attention_with_dropout_is_attention(tiny_gpt2, monkeypatch):
    """The path that training takes, with a dropout that drops nothing, gives the logits of the other."""
    monkeypatch.setattr("lora_from_scratch.fast.gpt2.dropout", lambda x, *_: x)
    monkeypatch.setattr("lora_from_scratch.fast.attention.scaled_mask", lambda x, _: torch.ones_like(x))
    expected = plain_logits(tiny_gpt2)
    tiny_gpt2.train()
    torch.testing.assert_close(classify(tiny_gpt2, padded(), LENGTHS), expected, rtol=0, atol=1e-5)


def test_every_dropout_of_the_configuration_is_there(monkeypatch):
    torch.manual_seed(0)
    config = tiny_config(embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3)
    model = GPT2ForSequenceClassification(config)
    seen = []
    monkeypatch.setattr(
        "lora_from_scratch.fast.gpt2.dropout",
        lambda x, p, training: seen.append((p, training, tuple(x.shape))) or x,
    )
    monkeypatch.setattr(
        "lora_from_scratch.fast.attention.scaled_mask",
        lambda x, p: seen.append((p, True, tuple(x.shape))) or torch.ones_like(x),
    )
    classify(model.train(), padded(), LENGTHS)
    hidden, scores, read, read_scores = (5, 12, 16), (12, 10, 12), (5, 16), (12, 10, 1)  # scores by keys
    assert seen == [
        (0.1, True, hidden),
        *((0.2, True, scores), (0.3, True, hidden), (0.3, True, hidden)),
        *((0.2, True, read_scores), (0.3, True, read), (0.3, True, read)),
    ]
    seen.clear()
    classify(model.eval(), padded(), LENGTHS)
    assert not any(training for _, training, _ in seen)


@both_forwards
@pytest.mark.parametrize("pad", [0, 7, 49])
def test_what_stands_behind_the_end_is_never_read(tiny_gpt2, pad, classify):
    assert torch.equal(classify(tiny_gpt2, padded(pad), LENGTHS), classify(tiny_gpt2, padded(), LENGTHS))


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_base_in_bf16_gives_what_autocast_gives(tiny_gpt2, method):
    from lora_from_scratch.fast.packed_weights import keep_frozen_in_bf16

    adapt(tiny_gpt2, RunConfig(method=method))
    randomize_lora(tiny_gpt2)
    lowered = keep_frozen_in_bf16(copy.deepcopy(tiny_gpt2))
    learning = {name.rpartition(".")[0] for name, p in tiny_gpt2.named_parameters() if p.requires_grad}
    for (name, parameter), before in zip(lowered.named_parameters(), tiny_gpt2.parameters(), strict=True):
        whole = name == "score.weight" or is_added(name)
        whole |= ".ln_" in name and name.rpartition(".")[0] in learning  # of which a part learns
        lower = not before.requires_grad and not whole
        assert parameter.dtype == (torch.bfloat16 if lower else torch.float32)
        assert parameter.requires_grad == before.requires_grad
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits, expected = (classify(model, padded(), LENGTHS) for model in (lowered, tiny_gpt2))
    exact = classify(tiny_gpt2, padded(), LENGTHS)
    assert logits.dtype == torch.float32
    rounding = (expected - exact).abs().max()
    assert (logits - exact).abs().max() < 4 * rounding + 0.02


def test_the_plain_forward_drops_where_transformers_does(monkeypatch):
    torch.manual_seed(0)
    config = tiny_config(embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3)
    model = GPT2ForSequenceClassification(config)
    seen = []

    def spy(x: torch.Tensor, p: float, training: bool = True) -> torch.Tensor:
        seen.append((p if training else 0.0, tuple(x.shape)))
        return x

    monkeypatch.setattr("lora_from_scratch.core.gpt2.dropout", spy)
    plain_classify(model.train(), padded(), LENGTHS)
    hidden, scores = (5, 12, 16), (5, 2, 12, 12)
    assert seen == [(0.1, hidden), *2 * [(0.2, scores), (0.3, hidden), (0.3, hidden)]]
    seen.clear()
    plain_classify(model.eval(), padded(), LENGTHS)
    assert not any(p for p, _ in seen)

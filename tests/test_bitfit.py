"""BitFit: every bias and the head, step for step by torch's AdamW; merging has nothing to fold."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config
from plain_loop import ours_trained, theirs_trained
from test_against_peft import base_model, logits
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, adapt
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.packed_weights import keep_frozen_in_bf16, packed_layers
from lora_from_scratch.methods import METHODS

IDS = torch.randint(1, 50, (5, 12), generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([1, 12, 7, 12, 3])


def bitfit() -> GPT2ForSequenceClassification:
    """In float64, every tensor that learns moved off its start."""
    model = adapt(base_model().double(), RunConfig(method="bitfit"))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def test_the_biases_of_gpt2_small_by_layer():
    """Of queries, keys and values; of attention's output; of the MLP's two; of LayerNorms, the last too."""
    with torch.device("meta"):
        model = adapt(GPT2ForSequenceClassification(GPT2Config(num_labels=2)), RunConfig(method="bitfit"))
    learning = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    biases = {name: size for name, size in learning.items() if name != "score.weight"}
    of_a_block = {name.partition("h.0.")[2]: size for name, size in biases.items() if "h.0." in name}
    assert of_a_block == {
        "ln_1.bias": 768,
        "attn.c_attn.bias": 3 * 768,
        "attn.c_proj.bias": 768,
        "ln_2.bias": 768,
        "mlp.c_fc.bias": 4 * 768,
        "mlp.c_proj.bias": 768,
    }
    assert sum(biases.values()) == 12 * sum(of_a_block.values()) + 768 == 102_144
    assert all(p.ndim == 1 for name, p in model.named_parameters() if name in biases)


def test_a_mask_called_bias_is_not_counted():
    """Earlier versions of transformers keep the causal mask as a buffer of that name."""
    model = GPT2ForSequenceClassification(tiny_config())
    model.transformer.h[0].attn.register_buffer("bias", torch.ones(1, 1, 32, 32, dtype=torch.bool))
    learns = METHODS["bitfit"].learns(model)
    assert len(learns) == 1 + 2 * 6 + 1 and all(isinstance(one, nn.Parameter) for one in learns[1:])


def test_fifty_steps_are_those_of_transformers_and_torch(tiny_examples: TokenizedExamples):
    """In float64. No weight decay on biases, some on the head."""
    ours, theirs = bitfit(), bitfit()
    start = ours_trained(ours, tiny_examples)
    biases = [p for name, p in theirs.named_parameters() if name.rpartition(".")[2] == "bias"]
    theirs_trained(theirs, [theirs.score.weight], biases, tiny_examples)

    width = ours.config.n_embd
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(name)
        if name.endswith("c_attn.bias"):  # the keys' part moves no logit: its gradient is rounding alone
            parameter, expected = (torch.cat([b[:width], b[2 * width :]]) for b in (parameter, expected))
        torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-12, msg=name)
        same = torch.equal(ours.get_parameter(name), start[name])
        assert same != (name.endswith(".bias") or name == "score.weight"), name


def test_merging_has_nothing_to_fold():
    ours = bitfit()
    expected = logits(ours)
    merged = METHODS["bitfit"].merge(ours)
    assert merged is ours and torch.equal(logits(merged), expected)
    assert (expected - logits(base_model().double())).abs().max() > 0.05


def test_the_fast_pass_is_the_plain_one_in_fp32_and_near_it_in_bf16():
    ours, labels = bitfit().float(), torch.tensor([0, 1, 1, 0, 1])
    exact = plain_classify(ours, IDS, LENGTHS)
    with packed_layers(ours, torch.float32):
        torch.testing.assert_close(fast_classify(ours, IDS, LENGTHS), exact, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        plain = plain_classify(ours, IDS, LENGTHS)
        keep_frozen_in_bf16(ours)
        with packed_layers(ours, torch.bfloat16):
            lowered = fast_classify(ours, IDS, LENGTHS)
            cross_entropy(lowered, labels).backward()
    assert (lowered - exact).abs().max() < 4 * (plain - exact).abs().max() + 0.02
    assert all(p.grad is not None and p.dtype == torch.float32 for p in ours.parameters() if p.requires_grad)


@pytest.mark.parametrize("learns", ["weight", "bias"])
def test_a_layernorm_of_which_a_part_learns_is_not_split_between_two_types(learns):
    """Its kernel on a CPU takes no bf16 weight beside an fp32 bias, nor the other way round."""
    model = base_model().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".ln_" in name and name.endswith(learns))
    keep_frozen_in_bf16(model)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {n for n, _ in model.named_parameters() if ".ln_" in n or n == "score.weight"}
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(fast_classify(model, IDS, LENGTHS), torch.tensor([0, 1, 1, 0, 1])).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

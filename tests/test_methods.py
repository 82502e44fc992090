"""What each method lets learn: by count on GPT-2's real shape, by name, and by what moves in training."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config
from transformers import GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, UserError, adapt
from lora_from_scratch.config import METHODS
from lora_from_scratch.measure import count_parameters
from lora_from_scratch.methods import default_lr
from lora_from_scratch.train import train


def gpt2_small() -> GPT2ForSequenceClassification:
    """GPT-2 small with two labels, without memory behind its parameters."""
    with torch.device("meta"):
        return GPT2ForSequenceClassification(GPT2Config(num_labels=2))


@pytest.mark.parametrize(
    ("options", "adapter", "head", "total"),
    [
        ({"method": "none"}, 0, 0, 124_441_344),
        ({"method": "head"}, 0, 1_536, 124_441_344),
        ({"method": "full"}, 124_439_808, 1_536, 124_441_344),
        ({"method": "lora", "rank": 1}, 36_864, 1_536, 124_478_208),
        ({"method": "lora", "rank": 4}, 147_456, 1_536, 124_588_800),
        ({"method": "lora", "rank": 64}, 2_359_296, 1_536, 126_800_640),
        # mlp.c_proj: 12 * 4 * (3072 + 768)
        ({"method": "lora", "target_modules": ("mlp.c_proj",)}, 184_320, 1_536, 124_625_664),
        ({"method": "prelayer"}, 39_383_808, 1_536, 124_441_344),
    ],
)
def test_counts_on_gpt2_small(options, adapter, head, total):
    count = count_parameters(adapt(gpt2_small(), RunConfig(**options)))
    assert (count.adapter, count.head, count.total) == (adapter, head, total)
    assert count.trainable == adapter + head
    assert count.share == (adapter + head) / total


LEARNS = {
    "none": lambda name: False,
    "head": lambda name: name == "score.weight",
    "full": lambda name: True,
    "lora": lambda name: name == "score.weight" or name.endswith(("c_attn.lora_A", "c_attn.lora_B")),
    "prelayer": lambda name: name in ("score.weight", "transformer.wte.weight", "transformer.wpe.weight"),
}


@pytest.mark.parametrize("method", METHODS)
def test_exactly_the_expected_tensors_move(method, tiny_gpt2, tiny_examples):
    model = adapt(tiny_gpt2, RunConfig(method=method, rank=2))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if LEARNS[method](n)
    }
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if method != "none":
        options = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.01, "precision": torch.float32}
        train(model, tiny_examples, **options, generator=torch.Generator().manual_seed(0))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if LEARNS[method](name)}


def test_a_method_starts_from_a_clean_slate(tiny_gpt2):
    """Whatever learned before, the next method decides anew."""
    for method in ("full", "head", "prelayer", "none"):
        adapt(tiny_gpt2, RunConfig(method=method))
        learning = {n for n, p in tiny_gpt2.named_parameters() if p.requires_grad}
        assert learning == {n for n, _ in tiny_gpt2.named_parameters() if LEARNS[method](n)}


def test_lora_refuses_to_wrap_the_head_that_it_trains_whole(tiny_gpt2):
    with pytest.raises(UserError, match="score is the classifier head"):
        adapt(tiny_gpt2, RunConfig(target_modules=("attn.c_attn", "score")))


def test_default_learning_rates_depend_on_method_and_width():
    assert default_lr("full", 768) < default_lr("lora", 768)
    assert default_lr("full", 256) != default_lr("full", 768)
    assert default_lr("none", 768) is None
    assert tiny_config().n_embd < 512

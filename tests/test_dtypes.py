"""Which tensor has which dtype: docs/precision.md's table, and the reasons that it gives."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from conftest import tiny_config
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, adapt
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.core.loop import Batch, TrainState, train
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.switch import fast_training
from lora_from_scratch.lens import dtypes
from lora_from_scratch.lens.dtypes import MOMENTS, Lines, dtypes_of_a_step
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import make_scaler

KINDS = [(precision, plain) for precision in ("fp32", "bf16") for plain in (True, False)]
EACH = pytest.mark.parametrize(("precision", "plain"), KINDS)
SCALER = ("step", "GradScaler")


def with_lora() -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    return adapt(GPT2ForSequenceClassification(tiny_config(initializer_range=0.2)), RunConfig(rank=2))


@cache
def lines(precision: str, plain: bool) -> Lines:
    return dtypes_of_a_step(with_lora(), precision, plain)


@EACH
def test_every_kind_of_training_has_the_same_lines(precision, plain):
    found = lines(precision, plain)
    assert list(found) == list(lines("fp32", True))
    assert [moment for moment, _ in found] == sorted([m for m, _ in found], key=MOMENTS.index)
    assert set(dtypes.FORWARD.values()) <= {what for moment, what in found if moment == "forward"}


@EACH
def test_what_learns_its_gradients_and_moments_are_fp32(precision, plain):
    found = lines(precision, plain)
    for line in (
        ("kept", "A and B"),
        ("kept", "head"),
        ("backward", "dL/dA and dL/dB"),
        ("backward", "dL/d(head)"),
        ("step", "AdamW's two moments"),
        ("step", "A, B and the head, moved"),
    ):
        assert found[line] == "fp32", line


@EACH
def test_the_head_reads_fp32_and_so_are_logits_and_loss(precision, plain):
    found = lines(precision, plain)
    assert {found["forward", "what the head reads"], found["forward", "logits"]} == {"fp32"}
    assert found["loss", "cross entropy"] == "fp32"


@pytest.mark.parametrize("plain", [True, False])
def test_in_fp32_everything_is_and_in_bf16_all_that_blocks_multiply_is_not(plain):
    whole, half = lines("fp32", plain), lines("bf16", plain)
    assert {dtype for line, dtype in whole.items() if line != SCALER} == {"fp32"}
    for what in ("W0 x + b", "A x", "s B A x", "h, their sum", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        assert half["forward", what] == "bf16", what
    assert half["backward", "dL/dh"] == "bf16"
    assert {dtype for (moment, _), dtype in half.items() if moment == "merge"} == {"fp32"}


def test_fast_keeps_what_is_frozen_in_bf16_and_with_it_the_residual_stream():
    fast, plain = lines("bf16", False), lines("bf16", True)
    for line in (
        ("kept", "W0"),
        ("kept", "frozen biases and LayerNorm"),
        ("kept", "frozen embeddings"),
        ("forward", "wte(tokens)"),
        ("forward", "x, the residual stream"),
    ):
        assert (fast[line], plain[line]) == ("bf16", "fp32"), line


def test_a_scaler_works_in_fp16_alone_whose_smallest_number_is_larger():
    """bf16 has the exponent of fp32, so a gradient that fp32 holds does not vanish in it."""
    assert {lines(*kind)[SCALER] for kind in KINDS} == {"off"}
    assert make_scaler(torch.float16, torch.device("cpu")).is_enabled()
    small = torch.tensor(1e-10)
    assert small.bfloat16() > 0 and small.half() == 0
    assert torch.finfo(torch.bfloat16).smallest_normal == torch.finfo(torch.float32).smallest_normal


def test_a_step_of_adamw_that_fp32_keeps_is_lost_in_bf16():
    """At LoRA's rate, 5e-4, on a weight of 1: bf16's next number below 1 is 1 - 2^-8."""
    for dtype, moves in ((torch.float32, True), (torch.bfloat16, False)):
        weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
        optimizer = make_optimizer([{"params": [weight], "weight_decay": 0.0}], lr=5e-4)
        weight.sum().backward()
        optimizer.step()
        assert (weight.item() < 1) == moves


@EACH
def test_watching_a_step_changes_nothing(precision, plain, monkeypatch):
    """The same step without a look at it, and the same weights, bit for bit."""
    watched, alone = with_lora(), with_lora()
    monkeypatch.setattr(type(watched.transformer.h[1].attn.c_attn), "merge", lambda layer: layer.base_layer)
    torch.manual_seed(1)
    dtypes_of_a_step(watched, precision, plain)

    torch.manual_seed(1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    batch = Batch(torch.tensor([[1, 0], [2, 3]]), torch.tensor([1, 2]), torch.tensor([0, 1]))
    examples = TokenizedExamples(torch.tensor([1, 2, 3]), batch.lengths, batch.labels, 0)
    before = {name: p.detach().clone() for name, p in alone.named_parameters()}

    def step(forward) -> None:
        optimizer = make_optimizer(decay_matrices(alone.parameters(), 0.01), lr=1e-3)
        schedule, scaler = make_schedule(optimizer, 1), make_scaler(dtype, torch.device("cpu"))
        list(train(TrainState(alone, optimizer, schedule, scaler, dtype, forward), [[batch]]))

    if plain:
        step(plain_classify)
    else:
        with fast_training(alone, examples, dtype):
            step(fast_classify)
    learning = [name for name, p in alone.named_parameters() if p.requires_grad]
    found = dict(watched.named_parameters())
    for name in learning:
        assert torch.equal(found[name], alone.get_parameter(name)), name
        assert "lora_A" in name or not torch.equal(found[name], before[name]), name


def test_lines_of_one_name_have_one_dtype():
    """A table with one cell for two tensors would else hide one."""
    model = copy.deepcopy(with_lora())
    model.transformer.wpe.bfloat16()
    with pytest.raises(ValueError):
        dtypes_of_a_step(model, "fp32", True)


def test_two_logits_that_differ_can_be_one_number_in_bf16():
    logits = torch.tensor([5.0, 5.01])
    assert logits[0] != logits[1] and logits.bfloat16()[0] == logits.bfloat16()[1]
    assert torch.finfo(torch.bfloat16).eps * 4 == 1 / 32

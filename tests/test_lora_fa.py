"""LoRA-FA: LoRA with A frozen, step for step by torch's AdamW; what it keeps in memory; its files."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from conftest import randomize_lora
from plain_loop import ours_trained, theirs_trained
from test_accounting import on_meta
from test_against_peft import TARGET_SETS, base_model, in_peft, in_peft_terms, logits
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, adapt, load_adapter, merge_lora, save_adapter
from lora_from_scratch.compare.accounting import account_model
from lora_from_scratch.core.surgery import lora_layers, place
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.fast.packed_weights import keep_frozen_in_bf16
from lora_from_scratch.lens.truncate import truncate, truncated

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def lora_fa(targets: tuple[str, ...] = ("attn.c_attn",)) -> GPT2ForSequenceClassification:
    """In float64, B off zero; alpha is not r."""
    asked = RunConfig(method="lora-fa", rank=3, alpha=8, dropout=0.0, target_modules=targets)
    model = adapt(base_model().double(), asked, torch.Generator().manual_seed(0))
    randomize_lora(model)
    return model


def test_fifty_steps_are_those_of_pefts_lora_with_a_frozen(tiny_examples: TokenizedExamples):
    ours, theirs = lora_fa(LINEAR), in_peft(base_model(), LINEAR, rank=3).double()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad or name.endswith("lora_A"):
                theirs.get_parameter(in_peft_terms(name)).copy_(parameter)
    for name, parameter in theirs.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    start = ours_trained(ours, tiny_examples)
    theirs_trained(theirs, [p for p in theirs.parameters() if p.requires_grad], [], tiny_examples)

    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            expected = theirs.get_parameter(in_peft_terms(name))
            torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-12, msg=name)
            assert not torch.allclose(parameter, start[name], atol=1e-2), name
        else:
            assert torch.equal(parameter, start[name]), name


def test_it_starts_where_lora_does():
    """The same draws: one seed gives both methods the same A."""
    lora = adapt(base_model().double(), RunConfig(rank=3, alpha=8), torch.Generator().manual_seed(0))
    ours = lora_fa().state_dict()
    names = [name for name in ours if name.endswith("lora_A")]
    assert len(names) == 2 and all(torch.equal(ours[n], lora.get_parameter(n)) for n in names)


@pytest.mark.parametrize("targets", TARGET_SETS)
def test_its_file_is_loras_and_what_comes_back_learns_as_before(tmp_path, targets):
    ours, base = lora_fa(targets), base_model().double()
    expected = logits(ours)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=1e-9)
    back = load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(back), expected) and (expected - logits(base)).abs().max() > 0.01
    learning = [{n for n, p in model.named_parameters() if p.requires_grad} for model in (back, ours)]
    assert learning[0] == learning[1] and not any(name.endswith("lora_A") for name in learning[0])
    merge_lora(back).save_pretrained(tmp_path / "merged")
    plain = GPT2ForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ranks", [(3, 3), (3, 1)])
def test_a_truncated_one_learns_as_before_too(tmp_path, ranks):
    """A layer that is small enough already stays as it is, and must not alone say that A is frozen."""
    ours, base = lora_fa(), base_model().double()
    for (name, layer), rank in zip(list(lora_layers(ours)), ranks, strict=True):
        if rank < layer.rank:
            place(ours, name, truncated(layer, rank))
    learning = {name for name, p in ours.named_parameters() if p.requires_grad}
    truncate(ours, 2)
    assert {layer.rank for _, layer in lora_layers(ours)} == {2, min(2, *ranks)}
    save_adapter(ours, tmp_path)
    back = load_adapter(base, tmp_path)
    for model in (ours, back):
        assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    torch.testing.assert_close(logits(back), logits(ours), rtol=0, atol=1e-12)


def test_in_bf16_the_frozen_a_is_not_rounded():
    """No file has it in bf16, and no base could give it back."""
    ours = lora_fa().float()
    before = {name: p.clone() for name, p in ours.named_parameters() if ".lora_" in name}
    keep_frozen_in_bf16(ours)
    assert ours.transformer.h[0].attn.c_attn.base_layer.weight.dtype == torch.bfloat16
    after = dict(ours.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("targets", [("attn.c_attn",), LINEAR])
def test_a_layer_keeps_a_x_and_not_x(targets):
    """What autograd saves in a block of GPT-2 small's width: less than LoRA's by the layers' inputs."""
    B, T, C = 16, 24, 768
    by_method = {}
    for method in ("lora", "lora-fa"):
        two, one = (
            account_model(on_meta(blocks, method, target_modules=targets), B, T)["activations"]
            for blocks in (2, 1)
        )
        by_method[method] = two - one
    inputs = 1 if targets == ("attn.c_attn",) else 1 + 1 + 1 + 4  # in units of B T C
    assert by_method["lora"] - by_method["lora-fa"] == 4 * inputs * B * T * C

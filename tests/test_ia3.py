"""(IA)^3 against PEFT's, where that is held to the paper's three vectors; and merged, in transformers."""

from __future__ import annotations

import peft
import pytest
import torch
from plain_loop import ours_trained, theirs_trained
from test_against_peft import base_model, logits
from test_packed_weights import assert_the_same_over_packed
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import RunConfig, UserError, adapt
from lora_from_scratch.base.fingerprint import weights_fingerprint
from lora_from_scratch.base.precisions import quantise, rounded
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.fast.packed_weights import keep_frozen_in_bf16
from lora_from_scratch.methods import METHODS
from lora_from_scratch.methods.ia3_linear import IA3Linear, ScaledInner, ScaledKeysAndValues

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
IDS = torch.randint(1, 50, (5, 12), generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([1, 12, 7, 12, 3])


def ia3() -> GPT2ForSequenceClassification:
    """In float64, every tensor that learns moved off its start."""
    model = adapt(base_model().double(), RunConfig(method="ia3"))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def in_peft(ours: nn.Module) -> peft.PeftModel:
    """PEFT's, of the same numbers: q's part of its vector over c_attn is 1, and gets no gradient."""
    config = peft.IA3Config(
        task_type="SEQ_CLS",
        target_modules=["c_attn", "mlp.c_proj"],
        feedforward_modules=["mlp.c_proj"],
        fan_in_fan_out=True,
    )
    theirs = peft.get_peft_model(base_model().double(), config).double()
    width = ours.config.n_embd

    def without_q(gradient: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(gradient[:width]), gradient[width:]])

    with torch.no_grad():
        for name, vector in by_peft(ours, theirs).items():
            vector.copy_(named_as_peft(ours)[name])
        theirs.base_model.model.score.modules_to_save["default"].weight.copy_(ours.score.weight)
    for name, vector in by_peft(ours, theirs).items():
        if "c_attn" in name:
            vector.register_hook(without_q)
    return theirs


def named_as_peft(ours: nn.Module) -> dict[str, torch.Tensor]:
    """Our vectors by layer, in the shapes that PEFT has."""
    layers = [(name, one) for name, one in ours.named_modules() if isinstance(one, IA3Linear)]
    return {
        name: one.ia3_ff[None] if isinstance(one, ScaledInner) else one.factors[:, None]
        for name, one in layers
    }


def by_peft(ours: nn.Module, theirs: peft.PeftModel) -> dict[str, nn.Parameter]:
    return {
        name: theirs.get_submodule(f"base_model.model.{name}").ia3_l["default"]
        for name in named_as_peft(ours)
    }


def test_fifty_steps_are_pefts(tiny_examples: TokenizedExamples):
    """Float64, without decay of the vectors, which are one-dimensional here and two-dimensional there."""
    ours = ia3()
    theirs = in_peft(ours)
    start = {name: vector.detach().clone() for name, vector in named_as_peft(ours).items()}
    ours_trained(ours, tiny_examples)
    score, vectors = theirs.base_model.model.score.modules_to_save["default"].weight, by_peft(ours, theirs)
    theirs_trained(theirs, [score], [*vectors.values()], tiny_examples)

    width = ours.config.n_embd
    for name, vector in named_as_peft(ours).items():
        torch.testing.assert_close(vector, vectors[name], rtol=1e-9, atol=1e-12, msg=name)
        learnt = vector.squeeze()[width if "c_attn" in name else 0 :]
        assert not torch.allclose(learnt, start[name].squeeze()[-len(learnt) :], atol=1e-2)
    torch.testing.assert_close(ours.score.weight, score, rtol=1e-9, atol=1e-12)


def test_every_vector_multiplies_what_the_paper_says(tiny_gpt2):
    """Section 3.3, written out for one block; and each vector alone moves the logits."""
    torch.manual_seed(0)
    model = adapt(tiny_gpt2.double(), RunConfig(method="ia3"))
    start = logits(model)
    block, x = model.transformer.h[0], torch.randn(2, 5, 16, dtype=torch.float64)
    for vector in (block.attn.c_attn.ia3_k, block.attn.c_attn.ia3_v, block.mlp.c_proj.ia3_ff):
        kept = vector.detach().clone()
        nn.init.normal_(vector)
        assert (logits(model) - start).abs().max() > 1e-3
        vector.data.copy_(kept)
    assert torch.equal(logits(model), start)
    c_attn, c_proj = block.attn.c_attn, block.mlp.c_proj
    for vector in (c_attn.ia3_k, c_attn.ia3_v, c_proj.ia3_ff):
        nn.init.normal_(vector)
    q, k, v = c_attn.base_layer(x).split(16, dim=-1)
    torch.testing.assert_close(c_attn(x), torch.cat([q, c_attn.ia3_k * k, c_attn.ia3_v * v], dim=-1))
    inner = torch.randn(2, 5, 64, dtype=torch.float64)
    torch.testing.assert_close(c_proj(inner), c_proj.base_layer(c_proj.ia3_ff * inner))


def test_merged_it_is_a_plain_checkpoint_that_computes_the_same_in_transformers(tmp_path):
    ours = ia3()
    expected, base = logits(ours), base_model().double()
    merged = METHODS["ia3"].merge(ours)
    assert (expected - logits(base)).abs().max() > 0.05
    assert merged.state_dict().keys() == base.state_dict().keys()
    merged.save_pretrained(tmp_path)
    plain = GPT2ForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-12, atol=1e-12)
    moved = {
        name.partition("h.0.")[2]
        for name, tensor in plain.state_dict().items()
        if not torch.equal(tensor, base.get_parameter(name)) and "h.0." in name
    }
    assert moved == {"attn.c_attn.weight", "attn.c_attn.bias", "mlp.c_proj.weight"}
    weights = [model.transformer.h[0].attn.c_attn.weight for model in (plain, base)]
    assert torch.equal(*(weight[:, :16] for weight in weights))  # q is as it was


@pytest.mark.parametrize("kind", [ScaledKeysAndValues, ScaledInner])
@pytest.mark.parametrize("width", [6, 9])  # with 6 the second layer is square
def test_a_linear_layer_merges_as_a_conv1d_does(kind, width):
    torch.manual_seed(0)
    conv1d, linear, x, found = Conv1D(width, 6), nn.Linear(6, width), torch.randn(4, 6), []
    nn.init.normal_(conv1d.weight)
    conv1d.bias.data = linear.bias.detach().clone()
    linear.weight.data = conv1d.weight.detach().T.clone()
    for base in (conv1d, linear):
        layer, draw = kind(base), torch.Generator().manual_seed(1)
        for vector in layer.parameters(recurse=False):
            nn.init.normal_(vector, generator=draw)
        found.append(layer(x))
        torch.testing.assert_close(layer.merge()(x), found[-1], rtol=1e-5, atol=1e-6)
        assert layer.merge() is base
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_the_fast_pass_is_the_plain_one_forward_and_backward():
    assert_the_same_over_packed(ia3().float(), plain_classify, (IDS, LENGTHS), rtol=1e-4)


def test_in_bf16_a_factor_near_1_still_counts():
    """bf16 has no number between 1 and 1 + 1/128: the factors stay in fp32, and their product is rounded."""
    ours = adapt(base_model(), RunConfig(method="ia3"))
    keep_frozen_in_bf16(ours)
    layer = ours.transformer.h[0].attn.c_attn
    x = torch.randn(64, 16).bfloat16()
    with torch.no_grad():
        before = layer(x)
        layer.ia3_v.fill_(1.003)
        after = layer(x)
    assert before.dtype == after.dtype == torch.bfloat16
    assert torch.equal(after[:, :32], before[:, :32])
    assert torch.tensor(1.003).bfloat16() == 1 and (after[:, 32:] != before[:, 32:]).float().mean() > 0.3


def test_what_was_added_is_no_part_of_the_base():
    base = base_model()
    digest = weights_fingerprint(base, ["score.weight"])
    assert weights_fingerprint(ia3().float(), ["score.weight"]) == digest


def test_peft_scales_queries_too():
    """Of GPT-2 small 64,512 parameters, against the paper's 55,296: another meaning of the same name."""
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(GPT2Config(num_labels=2))
        theirs = peft.get_peft_model(model, peft.IA3Config(fan_in_fan_out=True))
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert count == 64_512 == 55_296 + 12 * 768


def test_on_a_quantised_base_it_computes_as_on_the_rounded_one():
    kept, dense = (METHODS["ia3"].adapt(make(base_model(), "nf4"), None) for make in (quantise, rounded))
    for model in (kept, dense):
        draw = torch.Generator().manual_seed(1)
        for name, vector in model.named_parameters():
            if ".ia3_" in name:
                nn.init.normal_(vector, mean=1.0, std=0.3, generator=draw)
    expected = logits(dense.eval())
    torch.testing.assert_close(logits(kept.eval()), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(METHODS["ia3"].merge(dense)), expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="this base is quantised"):
        METHODS["ia3"].merge(kept)

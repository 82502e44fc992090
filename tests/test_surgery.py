"""Injecting, merging and merging for a while, on a GPT-2 and on an arbitrary module."""

from __future__ import annotations

import pytest
import torch
from conftest import randomize_lora
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import LoRALinear, UserError, inject_lora, merge_lora, merged
from lora_from_scratch.core.surgery import inject_each, lora_layers

INPUT_IDS = torch.arange(1, 25).view(3, 8)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("targets", "endings"),
    [
        (["attn.c_attn"], ["attn.c_attn"]),
        (["c_proj"], ["attn.c_proj", "mlp.c_proj"]),
        (["mlp.c_fc", "attn.c_proj"], ["attn.c_proj", "mlp.c_fc"]),
        (["transformer.h.1.attn.c_attn"], None),
    ],
)
def test_targets_are_dotted_suffixes(tiny_gpt2, targets, endings):
    inject_lora(tiny_gpt2, targets, rank=2, alpha=4)
    names = [name for name, _ in lora_layers(tiny_gpt2)]
    if endings is None:
        assert names == targets
    else:
        assert names == [f"transformer.h.{i}.{ending}" for i in range(2) for ending in endings]


def test_injection_leaves_the_logits_bit_for_bit(tiny_gpt2):
    before = logits(tiny_gpt2)
    inject_lora(tiny_gpt2, ["c_attn", "c_proj", "c_fc", "score"], rank=2, alpha=8)
    assert torch.equal(logits(tiny_gpt2), before)


def test_injection_composes_and_does_not_copy(tiny_gpt2):
    base = tiny_gpt2.transformer.h[0].attn.c_attn
    inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=4)
    layer = tiny_gpt2.transformer.h[0].attn.c_attn
    assert isinstance(layer, LoRALinear) and layer.base_layer is base
    assert (layer.rank, layer.alpha, layer.scaling) == (2, 4, 2)


def test_adapter_init_depends_on_its_generator_alone(tiny_gpt2):
    def draw(global_seed: int, seed: int) -> list[torch.Tensor]:
        torch.manual_seed(global_seed)
        inject_lora(tiny_gpt2, ["c_attn"], 2, 4, generator=torch.Generator().manual_seed(seed))
        As = [layer.lora_A for _, layer in lora_layers(tiny_gpt2)]
        merge_lora(tiny_gpt2)
        return As

    first, again, other = draw(0, 1), draw(9, 1), draw(0, 2)
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])


def test_merging_gives_the_same_logits_from_plain_modules(tiny_gpt2):
    original = {name: type(module) for name, module in tiny_gpt2.named_modules()}
    keys, untouched = list(tiny_gpt2.state_dict()), logits(tiny_gpt2)
    inject_lora(tiny_gpt2, ["c_attn", "c_proj"], rank=3, alpha=6)
    randomize_lora(tiny_gpt2)
    adapted = logits(tiny_gpt2)
    assert (adapted - untouched).abs().max() > 0.1
    assert merge_lora(tiny_gpt2) is tiny_gpt2
    torch.testing.assert_close(logits(tiny_gpt2), adapted, rtol=1e-5, atol=1e-5)
    assert {name: type(module) for name, module in tiny_gpt2.named_modules()} == original
    assert list(tiny_gpt2.state_dict()) == keys


def test_merging_in_bf16_is_within_its_rounding(tiny_gpt2):
    inject_lora(tiny_gpt2.to(torch.bfloat16), ["c_attn"], rank=3, alpha=6)
    randomize_lora(tiny_gpt2)
    reference = {
        name: layer.base_layer.weight.double() + layer.delta_weight().double()
        for name, layer in lora_layers(tiny_gpt2)
    }
    merge_lora(tiny_gpt2)
    for name, exact in reference.items():
        weight = tiny_gpt2.get_submodule(name).weight
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight.double(), exact, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_restores_every_bit(tiny_gpt2, dtype):
    inject_lora(tiny_gpt2.to(dtype), ["c_attn", "c_proj"], rank=3, alpha=6)
    randomize_lora(tiny_gpt2)
    before, layers = bits(tiny_gpt2), dict(lora_layers(tiny_gpt2))
    weight = tiny_gpt2.transformer.h[0].attn.c_attn.base_layer.weight
    with merged(tiny_gpt2) as model:
        assert model is tiny_gpt2 and not list(lora_layers(model))
        assert isinstance(model.transformer.h[0].attn.c_attn, Conv1D)
        assert not torch.equal(weight, before["transformer.h.0.attn.c_attn.base_layer.weight"])
    after = bits(tiny_gpt2)
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert dict(lora_layers(tiny_gpt2)) == layers
    # Subtracting would not have done: this is why the weights are kept aside.
    layer = layers["transformer.h.0.attn.c_attn"]
    subtracted = (weight.float() + layer.delta_weight()).to(dtype).float() - layer.delta_weight()
    assert not torch.equal(subtracted.to(dtype), weight)


def test_merged_restores_after_an_error(tiny_gpt2):
    inject_lora(tiny_gpt2, ["c_attn"], rank=3, alpha=6)
    randomize_lora(tiny_gpt2)
    before = bits(tiny_gpt2)
    with pytest.raises(RuntimeError, match="in the block"), merged(tiny_gpt2):
        raise RuntimeError("in the block")
    after = bits(tiny_gpt2)
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_nn_linear_models_work_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3)))
    x = torch.randn(5, 4)
    inject_lora(model, ["0"], rank=2, alpha=2)
    assert [name for name, _ in lora_layers(model)] == ["0", "2.0"]
    randomize_lora(model)
    adapted = model(x)
    merge_lora(model)
    assert type(model[0]) is nn.Linear and type(model[2][0]) is nn.Linear
    torch.testing.assert_close(model(x), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["attn.q_proj"],
            r"'attn.q_proj' matches nothing; this model has attn.c_attn, attn.c_proj, mlp.c_fc",
        ),
        (["attn.c_attn", "nope"], "'nope' matches nothing"),
        (["ttn.c_attn"], "'ttn.c_attn' matches nothing"),
        ([""], "'' matches nothing"),  # the model itself has an empty name
        (["c_attn", "ln_1"], "ln_1 is of type LayerNorm: LoRA wraps nn.Linear and Conv1D layers"),
        ([], "no target modules were named"),
    ],
)
def test_a_bad_target_is_named_and_changes_nothing(tiny_gpt2, targets, message):
    keys = list(tiny_gpt2.state_dict())
    with pytest.raises(UserError, match=message):
        inject_lora(tiny_gpt2, targets, rank=2, alpha=4)
    assert list(tiny_gpt2.state_dict()) == keys


def test_a_bad_rank_changes_nothing(tiny_gpt2):
    learning = [p.requires_grad for p in tiny_gpt2.parameters()]
    with pytest.raises(UserError, match="rank"):
        inject_lora(tiny_gpt2, ["c_attn"], rank=0, alpha=4)
    assert not list(lora_layers(tiny_gpt2))
    assert [p.requires_grad for p in tiny_gpt2.parameters()] == learning


def test_everything_else_is_frozen_but_what_is_named(tiny_gpt2):
    inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=4)
    learns = {name for name, p in tiny_gpt2.named_parameters() if p.requires_grad}
    assert learns == {f"transformer.h.{i}.attn.c_attn.lora_{m}" for i in range(2) for m in "AB"}
    merge_lora(tiny_gpt2).requires_grad_(True)
    inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=4, modules_to_save=["score", "ln_f"])
    assert {name for name, p in tiny_gpt2.named_parameters() if p.requires_grad} - learns == {
        *("score.weight", "transformer.ln_f.weight", "transformer.ln_f.bias")
    }
    merge_lora(tiny_gpt2)
    with pytest.raises(UserError, match="'nope' matches nothing"):
        inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=4, modules_to_save=["nope"])
    with pytest.raises(UserError, match="score is named as a target of LoRA and as learning whole"):
        inject_lora(tiny_gpt2, ["score"], rank=2, alpha=4, modules_to_save=["score"])
    with pytest.raises(UserError, match=r"c_attn is named as a target of LoRA and as learning whole"):
        inject_lora(tiny_gpt2, ["c_attn"], rank=2, alpha=4, modules_to_save=["h.1"])
    assert not list(lora_layers(tiny_gpt2))


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_takes_over_the_mode_of_the_one_it_replaces(tiny_gpt2, training):
    inject_lora(tiny_gpt2.train(training), ["attn.c_attn"], rank=2, alpha=4, dropout=0.5)
    assert all(module.training == training for module in tiny_gpt2.modules())


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_is_set_while_merged_is_that_of_the_lora_layers_afterwards(tiny_gpt2, training):
    """Else dropout before A would go on in a model that is in eval mode."""
    inject_lora(tiny_gpt2.train(not training), ["attn.c_attn"], rank=2, alpha=4, dropout=0.5)
    with merged(tiny_gpt2):
        tiny_gpt2.train(training)
    assert all(module.training == training for module in tiny_gpt2.modules())
    for _, layer in lora_layers(tiny_gpt2):
        layer.base_layer.train(not training)  # where it was not in the model, it was not told of a change
    with merged(tiny_gpt2):
        pass
    assert all(module.training == training for module in tiny_gpt2.modules())


def tied() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def shared_memory() -> nn.Module:
    """Two parameters, one memory: nothing but the address gives it away."""
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = nn.Parameter(model["a"].weight.data)
    return model


def one_module_twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.ModuleDict({"a": layer, "b": layer})


@pytest.mark.parametrize(
    ("make", "target", "names"),
    [
        (tied, "lm_head", "transformer.wte.weight and lm_head.weight"),
        (shared_memory, "b", "a.weight and b.weight"),
        (one_module_twice, "a", "a.weight and b.weight"),
        (one_module_twice, "b", "b.weight"),
    ],
)
def test_weights_that_two_share_are_refused(make, target, names):
    """Merged, an update of the one would move the other: a tied lm_head moves the embeddings."""
    model = make()
    learning = [p.requires_grad for p in model.parameters()]
    if (make, target) == (one_module_twice, "b"):  # the model knows it as a
        with pytest.raises(UserError, match="'b' matches nothing"):
            inject_lora(model, [target], rank=2, alpha=4)
    else:
        with pytest.raises(UserError, match=f"target {target}: {names} are one tensor"):
            inject_lora(model, [target], rank=2, alpha=4)
    assert not list(lora_layers(model)) and [p.requires_grad for p in model.parameters()] == learning


def test_a_classifier_has_no_lm_head_to_name_and_an_embedding_is_no_target(tiny_gpt2):
    with pytest.raises(UserError, match=r"'lm_head' matches nothing; this model has .*score"):
        inject_lora(tiny_gpt2, ["lm_head"], rank=2, alpha=4)
    with pytest.raises(UserError, match=r"wte is of type Embedding: LoRA wraps nn\.Linear and Conv1D"):
        inject_lora(tiny_gpt2, ["wte"], rank=2, alpha=4)


def test_layers_beside_a_tied_one_can_be_adapted():
    model = tied()
    ids = torch.arange(1, 9)[None]
    inject_lora(model, ["attn.c_attn"], rank=2, alpha=4)
    randomize_lora(model)
    with torch.no_grad():
        before = model(ids).logits
        torch.testing.assert_close(merge_lora(model)(ids).logits, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [["linear1", "linear2"], ["self_attn.out_proj"], ["linear1", "out_proj"]])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_transformer_computes_with_the_update(targets, grad, training):
    """In each mode, on its fast path too, which reads weights and calls no layer; then merged."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).train(training)
    x = torch.randn(2, 5, 16)
    inject_lora(layer, targets, rank=2, alpha=4)
    bare = layer(x).detach()
    randomize_lora(layer)
    with torch.set_grad_enabled(grad):
        adapted = layer(x)
    if grad:
        adapted.sum().backward()
        assert all(p.grad is not None for name, p in layer.named_parameters() if ".lora_B" in name)
    assert (adapted - bare).abs().max() > 0.01
    torch.testing.assert_close(merge_lora(layer)(x), adapted, rtol=1e-5, atol=1e-5)


def test_dropout_that_would_not_happen_is_refused():
    attention = nn.MultiheadAttention(16, 2)
    with pytest.raises(UserError, match=r"out_proj: nn\.MultiheadAttention reads its weight"):
        inject_lora(attention, ["out_proj"], rank=2, alpha=4, dropout=0.1)


def test_an_error_in_the_middle_leaves_no_half_injected_model(tiny_gpt2, monkeypatch):
    draw, drawn = nn.init.kaiming_uniform_, []

    def runs_out(*arguments: object, **options: object) -> torch.Tensor:
        drawn.append(arguments)
        if len(drawn) == 2:
            raise MemoryError
        return draw(*arguments, **options)

    monkeypatch.setattr(nn.init, "kaiming_uniform_", runs_out)
    with pytest.raises(MemoryError):
        inject_lora(tiny_gpt2, ["c_attn"], rank=2, alpha=4)
    assert all(p.requires_grad for p in tiny_gpt2.parameters())
    assert not any(isinstance(module, LoRALinear) for module in tiny_gpt2.modules())


def test_a_second_injection_is_refused(tiny_gpt2):
    inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=4)
    with pytest.raises(UserError, match="already holds LoRA layers"):
        inject_lora(tiny_gpt2, ["mlp.c_fc"], rank=2, alpha=4)


def test_each_layer_may_have_an_update_of_its_own(tiny_gpt2):
    names = [f"transformer.h.{i}.attn.c_attn" for i in (1, 0)]
    updates = [{"rank": 3, "alpha": 6, "dropout": 0.5}, {"rank": 2, "alpha": 5, "rank_stabilized": True}]
    inject_each(tiny_gpt2, dict(zip(names, updates, strict=True)), ["transformer.ln_f"])
    layers = dict(lora_layers(tiny_gpt2))
    assert [(layers[n].rank, layers[n].alpha, layers[n].lora_dropout.p) for n in names] == [
        (3, 6, 0.5),
        (2, 5, 0),
    ]
    assert [layers[n].rank_stabilized for n in names] == [False, True]
    learning = {n for n, p in tiny_gpt2.named_parameters() if p.requires_grad and ".lora_" not in n}
    assert learning == {"transformer.ln_f.weight", "transformer.ln_f.bias"}


def test_a_rank_above_the_width_warns_once(tiny_gpt2):
    with pytest.warns(
        UserWarning, match="rank 17 is above 16, the width of transformer.h.0.attn.c_attn"
    ) as seen:
        inject_lora(tiny_gpt2, ["c_attn", "c_proj"], rank=17, alpha=1)
    assert len(seen) == 1
    inject_lora(merge_lora(tiny_gpt2), ["c_attn", "c_proj"], rank=16, alpha=1)


def test_a_rank_that_is_refused_leaves_the_model_as_it_was(tiny_gpt2):
    before = [(name, p.requires_grad) for name, p in tiny_gpt2.named_parameters()]
    with pytest.raises(UserError, match="rank 1000000 is above"):
        inject_lora(tiny_gpt2, ["c_attn"], rank=10**6, alpha=1)
    assert [(name, p.requires_grad) for name, p in tiny_gpt2.named_parameters()] == before

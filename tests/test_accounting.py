"""Memory by arithmetic: against what real passes keep, allocate and record, and against a formula."""

from __future__ import annotations

import weakref

import pytest
import torch
from conftest import tiny_config
from small_runs import ready
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from torch.profiler import profile
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, adapt
from lora_from_scratch.base.quantised import kept_weights
from lora_from_scratch.compare import accounting
from lora_from_scratch.compare.accounting import account, account_model
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.runs.execute import train_prepared
from lora_from_scratch.train.precision import resolve_precision

LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def on_meta(blocks: int, method: str, **own: object) -> GPT2ForSequenceClassification:
    """GPT-2 small's width in so many blocks, without memory."""
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(tiny_config(n_layer=blocks, n_embd=768, n_head=12))
    return adapt(model, RunConfig(method=method, **own))


@pytest.mark.parametrize("precision", sorted({"fp32", resolve_precision("auto", torch.device("cpu"))}))
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    "method", ["head", "lora", "full", "prelayer", "pissa", "dora", "lora-fa", "bitfit", "ia3"]
)
def test_it_is_what_a_real_training_keeps_to_the_byte(method, plain, precision):
    """One step on one batch; parts by the record of the training, activations by what autograd saves."""
    prepared = ready(method=method, plain=plain, precision=precision, max_steps=1, batch_size=14)
    before, draws = [p.clone() for p in prepared.model.parameters()], torch.get_rng_state()
    accounted = account(prepared)
    assert all(map(torch.equal, before, prepared.model.parameters()))
    assert torch.equal(draws, torch.get_rng_state())
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if all(storage.data_ptr() != t.untyped_storage().data_ptr() for t in kept_weights(prepared.model)):
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        training = train_prepared(prepared)
    activations = sum(storage.nbytes() for storage in kept.values())
    assert accounted == {**training.memory.parts, "activations": activations}


@pytest.mark.parametrize("method", ["full", "prelayer"])
def test_it_does_not_matter_who_else_knows_of_a_tensor(method, monkeypatch):
    """As PyTorch itself does, of the first tensors without memory in a process."""
    own, known = accounting._without_memory, []

    def without_memory(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
        made = own(model, mode)
        known.extend(weakref.ref(parameter) for parameter in made.parameters())
        return made

    prepared = ready(method=method)
    expected = account(prepared)
    monkeypatch.setattr(accounting, "_without_memory", without_memory)
    assert account(prepared) == expected and known


def test_where_nothing_is_trained_there_are_weights_alone():
    prepared = ready(method="none")
    weights = 4 * sum(p.numel() for p in prepared.model.parameters())
    assert account(prepared) == {"weights": weights, "gradients": 0, "moments": 0, "activations": 0}


@pytest.mark.parametrize("forward", [plain_classify, fast_classify])
@pytest.mark.parametrize("method", ["lora", "full", "prelayer"])
def test_it_is_what_the_allocator_gives_out_in_a_forward_pass_and_does_not_get_back(method, forward):
    """By PyTorch's profiler. The batch and the loss make the difference."""
    torch.manual_seed(0)
    model = adapt(GPT2ForSequenceClassification(tiny_config(n_embd=64)), RunConfig(method=method)).train()
    input_ids, lengths = torch.zeros(8, 32, dtype=torch.long), torch.full((8,), 32)
    with profile(profile_memory=True) as measured:
        loss = cross_entropy(forward(model, input_ids, lengths), lengths % 2)
    given = sum(event.self_cpu_memory_usage for event in measured.events())
    assert loss.isfinite()
    assert account_model(model, 8, 32, forward=forward)["activations"] == pytest.approx(given, rel=0.005)


@pytest.mark.parametrize("as_on_a_gpu", [False, True])
@pytest.mark.parametrize(
    ("method", "own", "numbers", "masks"),
    [
        # In units of B T C: what LayerNorm, attention and GELU keep, and the inputs of the layers that learn.
        ("prelayer", {}, 2 + 3 + 16, 2),
        ("full", {}, 2 + 3 + 16 + (1 + 1 + 1 + 4), 2),
        ("lora", {}, 2 + 3 + 16 + 1, 2 + 1),
        ("lora", {"target_modules": LINEAR}, 2 + 3 + 16 + (1 + 1 + 1 + 4), 2 + (1 + 1 + 1 + 4)),
        ("lora-fa", {}, 2 + 3 + 16, 2 + 1),
        ("lora-fa", {"target_modules": LINEAR}, 2 + 3 + 16, 2 + (1 + 1 + 1 + 4)),
        ("head", {}, 0, 0),
    ],
)
def test_a_block_of_the_core_keeps_what_the_formula_on_the_page_says(
    method, own, numbers, masks, as_on_a_gpu
):
    B, T, C, H, r = 16, 24, 768, 12, 4
    two, one = (
        account_model(on_meta(blocks, method, **own), B, T, as_on_a_gpu=as_on_a_gpu)["activations"]
        for blocks in (2, 1)
    )
    expected = 0
    if numbers:
        wrapped = len(own.get("target_modules", ("attn.c_attn",))) if method.startswith("lora") else 0
        floats = numbers * B * T * C + 2 * B * H * T * T + 4 * B * T + wrapped * B * T * r
        of_masks = masks * B * T * C + B * H * T * T
        expected = 4 * floats + (1 if as_on_a_gpu else 4) * of_masks + T * T  # which keys lie in the future
    assert two - one == expected


def test_the_whole_core_keeps_the_blocks_of_the_page_less_what_lies_below_the_first_a():
    """LoRA on `c_attn`, masks as on a GPU. Below the first A nothing is differentiated."""
    B, T, C, H, r = 16, 128, 768, 12, 4
    whole = account_model(on_meta(12, "lora"), B, T, as_on_a_gpu=True)["activations"]
    N, weights = B * T, B * H * T * T
    block = 4 * (22 * N * C + 2 * weights + 4 * N + N * r) + 3 * N * C + weights + T * T
    below = 4 * (N * C + 2 * N) + N * C  # ln_1's input, its means and deviations; the mask before A
    above = 4 * (N * C + 2 * N) + 4 * B * C  # ln_f's, and what the head reads
    of_the_loss = 4 * 2 * B + 3 * 8 * B + 4  # log-probabilities; rows, places and labels; the weight of all
    assert whole == 12 * block - below + above + of_the_loss
    assert f"{12 * block / 2**30:.3f} {whole / 2**30:.3f}" == "1.917 1.916"


def test_what_pissa_takes_off_w0_is_among_the_weights():
    """A0 and B0 of each block's c_attn, as large as A and B: r (in + out) numbers that do not learn."""
    lora, pissa = (account(ready(method=method, dropout=0)) for method in ("lora", "pissa"))
    assert pissa["weights"] == lora["weights"] + 4 * 2 * 4 * (16 + 48)
    assert (pissa["gradients"], pissa["moments"]) == (lora["gradients"], lora["moments"])


def test_what_has_no_memory_is_accounted_without_any():
    model = on_meta(12, "full")
    full = account_model(model, 16, 128)
    assert (
        full["weights"]
        == full["gradients"]
        == full["moments"] // 2
        == 4 * sum(p.numel() for p in model.parameters())
    )
    assert all(parameter.is_meta for parameter in model.parameters())

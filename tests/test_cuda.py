"""What only a GPU can show. Skipped without one; elsewhere everything runs on the CPU."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import METHODS, ready, trained, with_all_checkpoints, write_base
from torch.nn.functional import cross_entropy

from lora_from_scratch import RunConfig, run
from lora_from_scratch.compare.accounting import account
from lora_from_scratch.core import loop
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.data.batches import pad_batch
from lora_from_scratch.errors import UserError
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.runs.execute import evaluate_prepared, train_prepared
from lora_from_scratch.runs.prepare import prepare
from lora_from_scratch.train.checkpoints import Checkpoints, read
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.measure import PhaseClock
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import make_scaler, resolve_precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base", attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)


def small(method: str, **changes: object) -> RunConfig:
    asked = {"model": "bundled", "dataset": "bundled", "limit_train": 128, "max_steps": 16, "device": "cuda"}
    return RunConfig(method=method, **{**asked, **changes})


def test_auto_is_the_gpu_in_bf16_where_it_multiplies_that():
    assert resolve_device("auto").type == "cuda"
    expected = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    assert resolve_precision("auto", CUDA) == expected


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_stays_near_fp32(base, method, precision):
    """The losses of 32 steps without dropout; what learns stays fp32, and the last accuracy is fp32's."""
    own = {"dropout": 0.0} if method == "lora" else {}
    asked = small(method, model=str(base), max_steps=32, precision="fp32", lr=1e-3, **own)
    whole, rounded = run(asked), run(replace(asked, precision=precision))
    losses = [[row["loss"] for row in result.training.metrics] for result in (whole, rounded)]
    assert torch.tensor(losses[0]).std() > 0.05
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=0, atol=0.01)
    assert {p.dtype for p in rounded.prepared.model.parameters()} == {torch.float32}
    assert rounded.training.skipped_steps <= 2
    scores = [torch.tensor(result.evaluation.probabilities) for result in (whole, rounded)]
    torch.testing.assert_close(*scores, rtol=0, atol=0.01)


def test_fp16_scales_the_loss_and_a_step_that_overflows_is_left_out():
    """By hand: the scale halves with each step that is left out, and such a step moves nothing."""
    prepared = prepare(small("lora", precision="fp16"))
    model, learning = prepared.model, [p for p in prepared.model.parameters() if p.requires_grad]
    optimizer = make_optimizer(decay_matrices(model.parameters(), 0.01), 1e-3)
    state = loop.TrainState(
        model,
        optimizer,
        make_schedule(optimizer, 4),
        make_scaler(torch.float16, CUDA),
        torch.float16,
        fast_classify,
    )
    state.scaler._init_scale = 2.0**40  # no gradient of fp16 survives it
    before = [p.detach().clone() for p in learning]
    batch = pad_batch(prepared.train_examples, torch.arange(16), CUDA)
    step = next(loop.train(state, [[batch]]))
    assert not step.gradient_norm.isfinite() and step.loss.isfinite()
    assert state.scaler.get_scale() == 2.0**39 and state.decays == [1.0] * len(state.decays)
    assert all(torch.equal(p, q) for p, q in zip(learning, before, strict=True))
    state.scaler.update(2.0**10)
    step = next(loop.train(state, [[batch]]))
    assert step.gradient_norm.isfinite() and state.scaler.get_scale() == 2.0**10
    assert not all(torch.equal(p, q) for p, q in zip(learning, before, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_bit_for_bit(tmp_path, method, precision):
    changes = {"method": method, "precision": precision, "device": "cuda", "deterministic": True}
    whole, paths = with_all_checkpoints(tmp_path, **changes)
    for path in paths[::3]:
        again = trained(ready(**changes), Checkpoints(tmp_path / "on", {}, 10**6, read(path)[1]))
        assert again == whole, path.name


def test_the_clock_waits_for_the_gpu_and_phases_make_up_the_total():
    training = train_prepared(prepare(small("lora")))
    assert set(training.phases) == {"data", "forward", "backward", "optimizer"}
    assert all(seconds > 0 for seconds in training.phases.values())
    assert 0.5 * training.seconds < sum(training.phases.values()) <= 1.02 * training.seconds
    clock, x = PhaseClock(CUDA), torch.randn(4096, 4096, device=CUDA)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    clock.start()
    first.record()
    for _ in range(50):
        x @ x
    last.record()
    clock.lap("forward")
    clock.stop()
    on_the_gpu = first.elapsed_time(last) / 1000
    assert on_the_gpu <= clock.seconds and on_the_gpu <= 1.1 * clock.phases["forward"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_peak_of_memory_is_what_the_account_says(method, plain, precision):
    """Weights, gradients, moments and activations, and little that comes and goes."""
    asked = small(method, precision=precision, plain=plain, batch_size=64)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    prepared = prepare(replace(asked, max_steps=None, epochs=2))
    account_ = account(prepared)
    memory = train_prepared(prepared).memory
    expected, measured = sum(account_.values()), memory.peak_bytes - before
    print(f"{method} {precision} plain={plain}: {measured / 1e6:.1f} MB, account {expected / 1e6:.1f} MB")
    assert memory.kind == "cuda" and memory.allocated_bytes <= memory.peak_bytes
    assert 0.8 * expected < measured < 1.5 * expected + 20e6


def test_what_was_trained_on_the_gpu_says_the_same_on_the_cpu():
    result = run(small("lora", lr=1e-3))
    prepared = replace(result.prepared, config=replace(result.prepared.config, device="cpu"))
    prepared.model.cpu()
    again = evaluate_prepared(prepared)
    ours, theirs = (torch.tensor(e.probabilities) for e in (result.evaluation, again))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_out_of_memory_names_the_batch():
    prepared = prepare(small("lora", batch_size=128, precision="fp32"))
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
    try:
        with pytest.raises(UserError, match=r"out of memory at a batch of \d+ sentences x \d+ tokens"):
            train_prepared(prepared)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("forward", [plain_classify, fast_classify], ids=["plain", "fast"])
def test_torch_compile_changes_neither_logits_nor_gradients(base, forward):
    prepared = prepare(small("lora", model=str(base), precision="fp32"))
    model = prepared.model.eval()
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator(CUDA).manual_seed(0))
    batch, found = pad_batch(prepared.train_examples, torch.arange(16), CUDA), []
    for compute in (forward, torch.compile(forward, fullgraph=True)):
        logits = compute(model, batch.input_ids, batch.lengths)
        found.append([logits, *torch.autograd.grad(cross_entropy(logits, batch.labels), learning)])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5)

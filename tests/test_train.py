"""The loop against a plain reference loop; repeatable, able to learn, honest in its figures."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import DEVICES, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2ForSequenceClassification, get_scheduler

from lora_from_scratch import RunConfig, UserError, adapt
from lora_from_scratch.core import loop
from lora_from_scratch.data.batches import TokenizedExamples, bucketed_batches, pad_batch
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.train.evaluate import predict_logits
from lora_from_scratch.train.log import Training
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import make_scaler
from lora_from_scratch.train.training import Course, train


def run(model: torch.nn.Module, examples: TokenizedExamples, seed: int = 0, **options: object) -> Training:
    defaults = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.1, "precision": torch.float32}
    draw = torch.Generator().manual_seed(seed)
    return train(model, examples, Course(**{**defaults, **options}, generator=draw))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_loop_equals_a_plain_one_step_for_step(method, tiny_examples):
    """torch.optim.AdamW and transformers' schedule, one sentence list at a time, in float64."""
    torch.manual_seed(0)
    config = tiny_config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    own = {"rank": 2, "dropout": 0.0} if method == "lora" else {}
    model = adapt(GPT2ForSequenceClassification(config), RunConfig(method=method, **own)).double()
    with torch.no_grad():
        model.score.weight.mul_(100)  # gradients large enough to be clipped
    reference = copy.deepcopy(model)
    training = run(model, tiny_examples, epochs=3)

    trainable = {name: p for name, p in reference.named_parameters() if p.requires_grad}
    decayed = [p for name, p in trainable.items() if not name.endswith("bias") and ".ln_" not in name]
    kept = [p for name, p in trainable.items() if name.endswith("bias") or ".ln_" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2, foreach=False)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=18)
    draw = torch.Generator().manual_seed(0)
    sentences = tiny_examples.token_ids.split(tiny_examples.lengths.tolist())
    losses, clipped = [], 0
    reference.train()
    for _ in range(3):
        for indices in bucketed_batches(tiny_examples.lengths, 8, draw):
            logits = torch.cat([reference(input_ids=sentences[i][None]).logits for i in indices])
            loss = torch.nn.functional.cross_entropy(logits, tiny_examples.labels[indices])
            loss.backward()
            clipped += torch.nn.utils.clip_grad_norm_(trainable.values(), 1.0).item() > 1
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert clipped > 3
    assert [row["loss"] for row in training.metrics] == pytest.approx(losses, rel=1e-9)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_one_seed_one_result(tiny_gpt2, tiny_examples):
    def trained(order: int, dropout: int) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(tiny_gpt2)
        torch.manual_seed(dropout)
        run(model, tiny_examples, seed=order, lr=1e-3)
        return weights(model)

    def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    first = trained(0, 0)
    assert equal(first, trained(0, 0))
    assert not equal(first, trained(1, 0))
    assert not equal(first, trained(0, 1))


def learn_by_heart(model: torch.nn.Module, examples: TokenizedExamples, precision: torch.dtype) -> None:
    """LoRA on a frozen base and the head, from chance to certainty on a handful of sentences."""
    adapt(model, RunConfig(method="lora", rank=4))
    torch.manual_seed(0)
    training = run(model, examples, epochs=80, lr=1e-2, precision=precision)
    assert training.metrics[0]["loss"] > 0.5
    assert training.metrics[-1]["loss"] < 0.01
    assert predict_logits(model, examples).argmax(1).tolist() == examples.labels.tolist()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_overfits_eight_sentences(precision):
    """On a base of random weights, small enough for a CPU that has to emulate 16 bits."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(n_embd=64, initializer_range=0.1))
    lengths = torch.tensor([3, 3, 5, 5, 2, 2, 7, 7])
    token_ids = torch.randint(1, 50, (int(lengths.sum()),))
    learn_by_heart(
        model, TokenizedExamples(token_ids, lengths, torch.tensor([1, 0] * 4), truncated=0), precision
    )


def test_the_learning_rate_falls_to_zero_over_the_steps_that_are_run(tiny_gpt2, tiny_examples):
    for max_steps, steps in ((None, 12), (100, 12), (9, 9), (1, 1)):
        training = run(copy.deepcopy(tiny_gpt2), tiny_examples, max_steps=max_steps)
        assert training.steps == len(training.metrics) == steps
        assert [row["step"] for row in training.metrics] == list(range(1, steps + 1))
        expected = [1e-2 * (1 - step / steps) for step in range(steps)]
        assert [row["lr"] for row in training.metrics] == pytest.approx(expected)


def test_the_figures_add_up(tiny_gpt2, tiny_examples):
    training = run(tiny_gpt2, tiny_examples, epochs=2, batch_size=10)
    draw = torch.Generator().manual_seed(0)
    batches = [b for _ in range(2) for b in bucketed_batches(tiny_examples.lengths, 10, draw)]
    padded = sum(len(batch) * int(tiny_examples.lengths[batch].max()) for batch in batches)
    assert training.sentences == 96 == sum(row["sentences"] for row in training.metrics)
    assert training.tokens == 2 * int(tiny_examples.lengths.sum())
    assert training.padding_efficiency == training.tokens / padded
    assert set(training.phases) == {"data", "forward", "backward", "optimizer"}
    assert 0 < sum(training.phases.values()) <= training.seconds


def test_a_step_whose_fp16_gradients_overflow_is_left_out(tiny_gpt2, tiny_examples):
    with torch.no_grad():
        tiny_gpt2.score.weight.mul_(1000)  # times the scaler's first scale, 2^16, past fp16's 65,504
    before = weights(tiny_gpt2)
    first = run(tiny_gpt2, tiny_examples, max_steps=1, precision=torch.float16)
    assert first.metrics[0]["gradient_norm"] is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tiny_gpt2).items())
    assert first.skipped_steps == 1
    training = run(tiny_gpt2, tiny_examples, epochs=8, precision=torch.float16)
    rows = training.metrics
    assert rows[0]["gradient_norm"] is None and rows[-1]["gradient_norm"] is not None
    assert 1 <= training.skipped_steps < 48
    assert rows[-1]["lr"] == pytest.approx(1e-2 / 48)  # so the rate ends at 0 whatever was left out


def test_a_run_that_diverges_says_so(tiny_gpt2, tiny_examples):
    with pytest.raises(UserError, match=r"loss is nan after \d+ steps: --lr 1e\+30 is too high"):
        run(tiny_gpt2, tiny_examples, epochs=20, lr=1e30)


def test_trained_weights_and_head_stay_fp32(tiny_gpt2, tiny_examples):
    adapt(tiny_gpt2, RunConfig(rank=2))
    run(tiny_gpt2, tiny_examples, precision=torch.bfloat16)
    assert {p.dtype for p in tiny_gpt2.parameters() if p.requires_grad} == {torch.float32}
    assert tiny_gpt2.training


def test_decay_is_counted_on_the_steps_that_are_taken(tiny_gpt2, tiny_examples):
    """What decay alone makes of a weight: the product over fp16's steps that did not overflow."""
    with torch.no_grad():
        tiny_gpt2.score.weight.mul_(1000)
    training = run(tiny_gpt2, tiny_examples, epochs=8, precision=torch.float16, weight_decay=0.5)
    taken = [row for row in training.metrics if row["gradient_norm"] is not None]
    assert 0 < len(taken) < len(training.metrics)
    expected = 1.0
    for row in taken:
        expected *= 1 - row["lr"] * 0.5
    assert {type(decay) for decay in training.decay.values()} == {float}
    assert training.decay == pytest.approx({"wte": expected, "wpe": expected}, rel=1e-12)


class Looks(TorchDispatchMode):
    """Counts the numbers that Python reads out of tensors: for each of them a GPU has to be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.parametrize("overflow", [False, True])
def test_nothing_is_waited_for_within_a_step(tiny_gpt2, tiny_examples, device, precision, overflow):
    """Whether fp16 left it out is known afterwards all the same, to whoever looks."""
    model, device = tiny_gpt2.to(device), torch.device(device)
    with torch.no_grad():
        model.score.weight.mul_(1000 if overflow else 1e-3)
    optimizer = make_optimizer(decay_matrices(model.parameters(), 0.5), 1e-2)
    scaler = make_scaler(precision, device)
    state = loop.TrainState(model, optimizer, make_schedule(optimizer, 9), scaler, precision)
    steps = loop.train(state, [[pad_batch(tiny_examples, torch.arange(8), device)]] * 2)
    next(steps)  # makes what there is to make
    state.decays = [1.0] * len(state.decays)
    with Looks() as looks:
        next(steps)
    assert looks.count == 0
    taken = not overflow or precision == torch.float32
    assert state.decays == [1 - 1e-2 * 8 / 9 * 0.5 if taken else 1.0, 1.0]


def test_memory_is_read_while_the_optimizer_is_alive(tiny_gpt2, tiny_examples):
    adapt(tiny_gpt2, RunConfig(rank=2))
    learning = sum(p.numel() for p in tiny_gpt2.parameters() if p.requires_grad)
    parts = run(tiny_gpt2, tiny_examples).memory.parts
    assert parts == {"gradients": 4 * learning, "moments": 8 * learning}

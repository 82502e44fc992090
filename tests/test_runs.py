"""Whole runs in this process: repeatable, draws kept apart, every open choice filled in."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import write_base

from lora_from_scratch import RunConfig, UserError, run
from lora_from_scratch.base.load import BUNDLED_MODEL
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.methods import METHODS
from lora_from_scratch.runs.execute import execute, train_prepared, warn_of_rate
from lora_from_scratch.runs.prepare import Prepared, decided_length, default_epochs, prepare
from lora_from_scratch.runs.random_draws import generator_for
from lora_from_scratch.runs.sources import Sources, find_sources
from lora_from_scratch.runs.trained_on import seen_in, warn_if_in_both
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.precision import resolve_precision

QUICK = RunConfig(
    model="bundled", dataset="bundled", device="cpu", precision="fp32", limit_train=64, max_steps=3, rank=2
)


@cache
def sources() -> Sources:
    return find_sources(QUICK, keep=True)


def ready(**changes: object) -> Prepared:
    return prepare(replace(QUICK, **changes), sources())


def trained(config: RunConfig) -> dict[str, torch.Tensor]:
    prepared = prepare(config)
    train_prepared(prepared)
    return prepared.model.state_dict()


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}


def test_one_seed_gives_the_same_weights_and_another_gives_others():
    first = trained(QUICK)
    torch.rand(7)  # whatever the program drew before a run does not matter
    assert not differing(first, trained(QUICK))
    other = differing(first, trained(replace(QUICK, seed=1)))
    assert "score.weight" in other and "transformer.h.0.attn.c_attn.lora_A" in other


def test_what_one_draw_needs_leaves_the_others_alone(tmp_path):
    """Another rank, other targets, another method: the same head, the same subset, the same order."""
    config = replace(QUICK, model=str(write_base(tmp_path / "tiny", n_positions=128)), limit_train=640)
    read = find_sources(config, keep=True)
    runs = [
        prepare(replace(config, **changes), read)  # 40 batches: few orders of fewer would look alike
        for changes in ({}, {"rank": 7}, {"target_modules": ("mlp.c_fc", "c_proj")}, {"method": "full"})
    ]
    for other in runs[1:]:
        assert torch.equal(other.model.score.weight, runs[0].model.score.weight)
        assert torch.equal(other.train_examples.token_ids, runs[0].train_examples.token_ids)
    orders = [[row["tokens"] for row in train_prepared(prepared).metrics] for prepared in runs]
    assert orders == orders[:1] * len(runs)


def test_generators_of_one_seed_are_independent_and_stable():
    draws = {p: torch.rand(4, generator=generator_for(0, p)) for p in ("head", "adapter", "order", "subset")}
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4
    assert torch.equal(draws["head"], torch.rand(4, generator=generator_for(0, "head")))
    assert not torch.equal(draws["head"], torch.rand(4, generator=generator_for(1, "head")))


def test_head_and_adapter_draw_from_generators_of_their_own():
    model = ready().model
    std = model.config.initializer_range
    head = torch.empty_like(model.score.weight).normal_(std=std, generator=generator_for(0, "head"))
    assert torch.equal(model.score.weight, head)
    first = next(layer for _, layer in lora_layers(model)).lora_A
    A = torch.nn.init.kaiming_uniform_(
        torch.empty_like(first), a=5**0.5, generator=generator_for(0, "adapter")
    )
    assert torch.equal(first, A)


def test_the_result_says_what_was_run():
    result = run(replace(QUICK, method="lora")).as_dict()
    assert (result["model"], result["dataset"]) == ("mini-gpt2 (bundled)", "mini-reviews (bundled)")
    config = result["config"]
    assert (config["model"], config["dataset"], config["device"]) == ("bundled", "bundled", "cpu")
    assert config["lr"] > 0 and config["epochs"] > 2 and config["precision"] == "fp32"
    assert result["steps"] == 3 and result["data"]["train_sentences"] == 64
    assert result["trainable_parameters"] == result["adapter_parameters"] + result["head_parameters"]
    assert result["adapter_parameters"] == 4 * 2 * (256 + 768) and result["head_parameters"] == 512
    assert result["sentences_per_second"] == pytest.approx(48 / result["train_seconds"])
    assert result["environment"]["torch"] == torch.__version__
    assert len(result["data"]["fingerprint"]) == 64


def test_no_fine_tuning_trains_nothing():
    prepared = ready(method="none")
    result = execute(prepared)
    saved = load_file(BUNDLED_MODEL / "model.safetensors")
    for name, tensor in prepared.model.state_dict().items():
        assert name == "score.weight" or torch.equal(tensor, saved[name].float())
    assert result.training is None
    values = result.as_dict()
    assert values["trainable_parameters"] == 0 and values["train_seconds"] == 0
    assert values["sentences_per_second"] is values["padding_efficiency"] is None
    assert 30 < values["accuracy"] < 70


def test_a_subset_is_drawn_and_not_the_first_rows():
    whole = ready(limit_train=None)
    assert len(whole.train_examples) == len(whole.dataset.train)
    few = ready()
    assert len(few.train_examples) == 64
    assert few.train_examples.labels.tolist() != whole.train_examples.labels[:64].tolist()
    other = ready(seed=1)
    assert few.train_examples.token_ids.tolist() != other.train_examples.token_ids.tolist()
    too_many = ready(limit_train=10**9)
    assert torch.equal(too_many.train_examples.token_ids, whole.train_examples.token_ids)


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(UserError, match=r"--max-length 500: this model has \d+ positions"):
        ready(max_length=500)


def test_the_default_length_is_the_models_where_it_is_shorter(tiny_gpt2):
    assert decided_length(None, tiny_gpt2.config) == decided_length(32, tiny_gpt2.config) == 32
    tiny_gpt2.config.n_positions = 1024
    assert decided_length(None, tiny_gpt2.config) == 128 and decided_length(1024, tiny_gpt2.config) == 1024
    assert ready().config.max_length == 128 and QUICK.max_length is None


def test_what_is_read_of_a_dataset_is_asked_in_one_place():
    asked = RunConfig(
        text_column="a", label_column="b", train_split="c", validation_split="d", drop_blank=True
    )
    assert asked.selection == Selection("a", "b", "c", "d", drop_blank=True)
    assert RunConfig().selection == Selection()


OTHER, DEFAULT = "at --lr 0.1 (the default here is 0.0005)", "at --lr 0.0005 (the default)"
FELL = [0.7] * 20 + [0.6] * 10


@pytest.mark.parametrize(
    ("losses", "predictions", "lr", "said"),
    [
        ([1] * 10 + [1.2] * 20, [0, 1], 0.1, f"the loss rose from 1.00 to 1.20 {OTHER}; try a lower one"),
        ([0.5] * 29 + [9], [1, 1], 5e-4, f"the loss rose from 0.50 to 3.33 {DEFAULT}; try a lower one"),
        (
            [0.5] * 20 + [0.51] * 10,
            [0, 1],
            0.1,
            f"the loss did not fall from 0.50 {OTHER}; try more --epochs or a higher one",
        ),
        (FELL, [1, 1], 0.1, f"every prediction is 'good' {OTHER}; try that"),
        (FELL, [0, 0], 5e-4, f"every prediction is 'bad' {DEFAULT}; try more --epochs or another one"),
        (FELL, [0, 1], 0.1, None),
        ([0.5] * 15 + [0.9] * 4, [1, 1], 0.1, None),  # too few steps to say
    ],
)
def test_a_learning_rate_of_no_use_is_told_in_one_line(losses, predictions, lr, said):
    config = RunConfig(lr=lr)
    model = SimpleNamespace(config=SimpleNamespace(n_embd=256))
    prepared = SimpleNamespace(
        config=config, model=model, dataset=SimpleNamespace(label_names=["bad", "good"])
    )
    training = SimpleNamespace(steps=len(losses), metrics=[{"loss": loss} for loss in losses])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_rate(prepared, training, SimpleNamespace(predictions=predictions))
    assert [str(one.message) for one in told] == ([said] if said else [])


def test_few_sentences_in_both_splits_are_not_told():
    """One in a hundred is chance, and SST-2 and the bundle have none: what is told is told for a reason."""
    sentences = [str(i) for i in range(200)]
    assert seen_in(["0", "1", "x"], sentences) == 0
    assert seen_in(["0", "1", "2", "x"], sentences) == 3
    assert seen_in([], sentences) == seen_in(["x"], sentences) == 0
    with pytest.warns(UserWarning, match="^3 of 200 validation sentences are also trained on"):
        warn_if_in_both(["0", "1", "2"], sentences)


def test_sst2_has_no_sentence_in_both_splits(shared):
    dataset = load_dataset(str(shared / "data" / "sst2"))
    assert not set(dataset.train.sentences) & set(dataset.validation.sentences)


def test_devices_and_precisions():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("warp-drive", "cuda:99", "meta"):
        with pytest.raises(UserError, match=f"--device {name}: PyTorch cannot use it here"):
            resolve_device(name)
    with pytest.warns(UserWarning, match="fp16 is slow on a CPU"):
        assert resolve_precision("fp16", torch.device("cpu")) == "fp16"
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "magic"},
            f"--method must be one of {', '.join(METHODS)}, not 'magic'",
        ),
        ({"precision": "int3"}, "--precision must be one of auto, fp32, bf16, fp16"),
        ({"rank": 0}, "--rank must be at least 1, not 0"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"batch_size": -4}, "--batch-size must be at least 1, not -4"),
        ({"max_steps": 0}, "--max-steps must be at least 1"),
        ({"eval_every": 0}, "--eval-every must be at least 1, not 0"),
        ({"limit_train": 0}, "--limit-train must be at least 1"),
        ({"max_length": 0}, "--max-length must be at least 1"),
        ({"lr": 0.0}, "--lr must be a positive number"),
        ({"lr": float("nan")}, "--lr must be a positive number"),
        ({"alpha": -1.0}, "--alpha must be a positive number"),
        ({"dropout": 1.0}, "--dropout must lie in"),
        ({"weight_decay": -0.1}, "--weight-decay must not be negative"),
        ({"seed": -1}, "--seed must lie in 0"),
    ],
)
def test_values_out_of_range_are_refused_at_once(changes, message):
    with pytest.raises(UserError) as caught:
        RunConfig(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sentences", "epochs"), [(1, 32), (270, 32), (2980, 16), (5000, 10), (20_000, 2), (67_349, 2)]
)
def test_a_small_set_is_passed_over_more_often(sentences, epochs):
    assert default_epochs(sentences) == epochs

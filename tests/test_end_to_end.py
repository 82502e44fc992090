"""The whole of `run`, fast and plain, against a loop written here around transformers' own forward pass."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import DEVICES, tiny_config
from torch.nn.functional import cross_entropy, layer_norm, linear
from transformers import DynamicCache, GPT2ForSequenceClassification, GPT2Model, get_scheduler
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import RunConfig, load_adapter, run
from lora_from_scratch.base.load import BUNDLED_MODEL, load_tokenizer
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.data.batches import bucketed_batches
from lora_from_scratch.fast.dropout import Dropout
from lora_from_scratch.fast.packed_weights import Packed
from lora_from_scratch.runs import execute
from lora_from_scratch.runs.execute import evaluate_prepared, train_prepared
from lora_from_scratch.runs.folder import write_trained
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.runs.prepare import Prepared, prepare

pytestmark = pytest.mark.usefixtures("few_sentences")
SEED, EPOCHS, BATCH, DECAY = 3, 3, 7, 0.3


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A small GPT-2 without dropout, with the bundled tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_MODEL / name, folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 8192, "n_positions": 64, "initializer_range": 0.2}
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    GPT2Model(tiny_config(**sizes, **dropout)).save_pretrained(folder)
    return folder


def config(base: Path, method: str, **changes: object) -> RunConfig:
    own = {"rank": 3, "alpha": 6.0, "dropout": 0.0} if method == "lora" else {}
    common = {
        "model": str(base),
        "dataset": "bundled",
        "device": "cpu",
        "precision": "fp32",
        "max_length": 64,
        "limit_train": 38,  # the last of 6 batches holds 3
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "lr": 1e-2,
        "weight_decay": DECAY,
        "seed": SEED,
    }
    return RunConfig(**{"method": method, **own, **common, **changes})


def generator(purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"{SEED} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@cache
def plain_weights(base: Path, method: str) -> dict[str, torch.Tensor]:
    """What a run should come to, by transformers, torch and a dozen lines; under the model's own names.

    Once for both ways of running, on every device: nobody may change it.
    """
    prepared = prepare(config(base, method))  # for the sentences alone
    examples, tokenizer = prepared.train_examples, load_tokenizer(str(base))
    model = GPT2ForSequenceClassification.from_pretrained(
        base, num_labels=2, pad_token_id=tokenizer.pad_token_id
    )
    torch.nn.init.normal_(model.score.weight, std=0.2, generator=generator("head"))
    learns = {"full": "", "prelayer": ("transformer.wte.", "transformer.wpe.", "score.")}.get(
        method, "score."
    )
    weights = {name: p.requires_grad_(name.startswith(learns)) for name, p in model.named_parameters()}
    if method == "lora":
        draw = generator("adapter")
        for i, block in enumerate(model.transformer.h):
            name = f"transformer.h.{i}.attn.c_attn"
            weights[f"{name}.base_layer.weight"] = weights.pop(f"{name}.weight")
            weights[f"{name}.base_layer.bias"] = weights.pop(f"{name}.bias")
            A = torch.nn.init.kaiming_uniform_(torch.empty(3, 16), a=5**0.5, generator=draw).requires_grad_()
            B = torch.zeros(48, 3, requires_grad=True)
            weights[f"{name}.lora_A"], weights[f"{name}.lora_B"] = A, B
            block.attn.c_attn.register_forward_hook(
                lambda _, x, y, A=A, B=B: y + 6.0 / 3 * linear(linear(x[0], A), B)
            )
    if method == "prefix":
        tokens = torch.randint(8192, (1, 5), generator=generator("adapter"))
        states = model.eval().transformer(tokens, output_hidden_states=True).hidden_states
        for i, state in enumerate(states[:2]):  # what comes into each of the two blocks
            start = layer_norm(state[0].detach(), (16,))
            weights[f"transformer.h.{i}.prefix"] = start.clone().requires_grad_()
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    groups = [
        {"params": [w for w in trained.values() if w.ndim == 2], "weight_decay": DECAY},
        {"params": [w for w in trained.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2, foreach=False)
    draw = generator("order")
    batches = [b for _ in range(EPOCHS) for b in bucketed_batches(examples.lengths, BATCH, draw)]
    assert {len(batch) for batch in batches} == {7, 3}
    schedule = get_scheduler("linear", optimizer, 0, len(batches))
    sentences = examples.token_ids.split(examples.lengths.tolist())
    model.train()
    for batch in batches:
        logits = torch.cat(
            [model(sentences[i][None], **before(model, weights, len(sentences[i]))).logits for i in batch]
        )
        cross_entropy(logits, examples.labels[batch]).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {name: weight.detach() for name, weight in weights.items()}


def before(
    model: GPT2ForSequenceClassification, weights: dict[str, torch.Tensor], length: int
) -> dict[str, object]:
    """Keys and values of the prefixes, as the past of a sentence whose positions begin at 0."""
    cache = DynamicCache()
    for i, block in enumerate(model.transformer.h):
        if (prefix := weights.get(f"transformer.h.{i}.prefix")) is not None:
            _, *made = block.attn.c_attn(block.ln_1(prefix)[None]).split(16, dim=2)
            cache.update(*(part.view(1, 5, 2, 8).transpose(1, 2) for part in made), i)
    return {"past_key_values": cache, "position_ids": torch.arange(length)[None]} if len(cache.layers) else {}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("method", ["full", "prelayer", "lora", "prefix"])
def test_every_weight_is_the_one_of_a_plain_loop(base, method, plain, device):
    result = run(config(base, method, plain=plain, device=device))
    expected, start = dict(plain_weights(base, method)), prepare(config(base, method)).model.state_dict()
    ours = dict(result.prepared.model.cpu().named_parameters())
    # AdamW makes whole steps of a gradient near zero, rounding included, and a GPU sums in another order.
    atol = 1e-5 if device == "cpu" else 1e-4
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        if name.endswith(
            "c_attn.bias"
        ):  # softmax does not feel the keys' part: its gradient is rounding alone
            weight.data[16:32] = 0
            expected[name] = torch.cat([expected[name][:16], torch.zeros(16), expected[name][32:]])
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-4, atol=atol, msg=name)
        assert weight.requires_grad != torch.equal(weight, start[name]), name
    assert not result.prepared.model.training


def test_what_loading_drew_does_not_move_the_dropout(base):
    """The seed is set again before training: dropout depends on it alone."""
    trained = []
    for draws in (0, 7):
        prepared = prepare(config(base, "lora", dropout=0.5))
        torch.rand(draws)
        train_prepared(prepared)
        trained.append(prepared.model.transformer.h[0].attn.c_attn.lora_B.detach())
    assert torch.equal(*trained)


def spied(monkeypatch: pytest.MonkeyPatch, prepared: Prepared, name: str) -> list[torch.nn.Module]:
    """Train, and return what stood at a name of the model in the middle of it."""
    seen = []
    which = "plain_classify" if prepared.config.plain else "fast_classify"
    forward = getattr(execute, which)

    def spy(model: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        seen.append(model.get_submodule(name))
        return forward(model, *inputs)

    monkeypatch.setattr(execute, which, spy)
    train_prepared(prepared)
    return seen


@pytest.mark.parametrize(
    ("name", "fast", "plain"),
    [
        ("transformer.h.1.mlp.c_fc", Packed, Conv1D),
        ("transformer.h.1.attn.c_attn.lora_dropout", Dropout, torch.nn.Dropout),
    ],
)
def test_training_is_fast_and_with_plain_it_is_not(base, monkeypatch, name, fast, plain):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch without oneDNN")
    for is_plain, kind in ((False, fast), (True, plain)):
        prepared = prepare(config(base, "lora", dropout=0.1, max_steps=1, plain=is_plain))
        assert [type(module) for module in spied(monkeypatch, prepared, name)] == [kind]
        assert type(prepared.model.get_submodule(name)) is plain  # afterwards it is as it was


def test_under_bf16_the_frozen_base_is_kept_in_bf16_while_it_trains(base, monkeypatch):
    prepared = prepare(config(base, "lora", max_steps=1, precision="bf16"))
    (norm,) = spied(monkeypatch, prepared, "transformer.h.1.ln_1")
    assert norm.weight.dtype == torch.bfloat16
    assert prepared.model.transformer.h[1].attn.c_attn.lora_A.dtype == torch.float32


@pytest.mark.parametrize("method", ["lora", "head", "prelayer", "prefix", "full"])
def test_what_is_measured_is_what_the_files_hold(base, method, tmp_path):
    """Trained in bf16, measured in fp32 on the whole base: sentence by sentence what `predict` then says."""
    prepared = prepare(config(base, method, precision="bf16"))
    training = train_prepared(prepared)
    write_trained(prepared, training, tmp_path / "run")
    evaluation = evaluate_prepared(prepared)
    assert evaluation.precision == "fp32"
    assert {p.dtype for p in prepared.model.parameters()} == {torch.float32}
    from lora_from_scratch.formats.adapted import load_adapted

    sentences = prepared.dataset.validation.sentences
    again = predict(load_adapted(tmp_path / "run"), sentences)
    assert evaluation.probabilities == pytest.approx([p.probability for p in again], abs=1e-6)
    names = prepared.dataset.label_names
    assert [names[i] for i in evaluation.predictions] == [p.label for p in again]


def test_an_adapter_loaded_into_a_model_in_eval_mode_is_in_eval_mode(base, tmp_path):
    """from_pretrained gives eval mode; with dropout 0.5 left on, the logits would be random."""
    prepared = prepare(config(base, "lora", dropout=0.5))
    write_trained(prepared, train_prepared(prepared), tmp_path / "run")
    model = GPT2ForSequenceClassification.from_pretrained(base, num_labels=2)
    load_adapter(model, tmp_path / "run")
    assert not any(module.training for module in model.modules())
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    assert layers and all(layer.lora_dropout.p == 0.5 for layer in layers)


def test_other_seeds_see_the_sentences_in_other_orders(base):
    whole = config(base, "head", limit_train=None, max_steps=12, epochs=1)
    tokens = [[row["tokens"] for row in run(replace(whole, seed=s)).training.metrics] for s in (0, 1)]
    assert tokens[0] != tokens[1]

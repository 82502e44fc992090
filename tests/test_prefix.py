"""Prefixes against a naive reference, against transformers with keys and values as its past, and PEFT's."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, UserError, adapt
from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.fast.attention import causal_attention
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.formats import tensors
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.train.measure import count_parameters

P, LENGTHS = 3, torch.tensor([1, 12, 7, 12, 3])
LABELS = torch.tensor([0, 1, 1, 0, 1])
IDS = torch.randint(1, 50, (5, 12), generator=torch.Generator().manual_seed(3))
IDS = IDS.masked_fill(torch.arange(12) >= LENGTHS[:, None], 0)


def prefixed(model: GPT2ForSequenceClassification, **settings: object) -> GPT2ForSequenceClassification:
    """In float64, which shows what is wrong and not what is rounded."""
    settings = {"prefix_length": P, **settings}
    return adapt(model, RunConfig(method="prefix", **settings), torch.Generator().manual_seed(1)).double()


def reference(model: GPT2ForSequenceClassification, ids: torch.Tensor) -> torch.Tensor:
    """Logits `(num_labels,)` of one sentence, its tokens alone: head by head, query by query."""
    gpt2 = model.transformer
    x = gpt2.wte(ids) + gpt2.wpe(torch.arange(len(ids)))
    for block in gpt2.h:
        rows = torch.cat([block.prefix, x])
        q, k, v = block.attn.c_attn(block.ln_1(rows)).split(16, dim=1)
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            answers = []
            for i in range(P, len(rows)):
                scores = torch.stack([q[i, head] @ k[j, head] / 8**0.5 for j in range(i + 1)])
                weights = scores.exp() / scores.exp().sum()
                answers.append(sum(weights[j] * v[j, head] for j in range(i + 1)))
            heads.append(torch.stack(answers))
        x = x + block.attn.c_proj(torch.cat(heads, dim=1))
        x = x + block.mlp(block.ln_2(x))
    return model.score(gpt2.ln_f(x)[-1])


def as_past(model: GPT2ForSequenceClassification, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The keys and values of each block's prefix, `(rows, heads, P, width of a head)`."""
    made = (block.attn.c_attn(block.ln_1(block.prefix)).split(16, dim=1)[1:] for block in model.transformer.h)
    return [tuple(t.view(1, P, 2, 8).transpose(1, 2).expand(rows, -1, -1, -1) for t in pair) for pair in made]


def training(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module) -> torch.nn.Module:
    """In training mode, with a dropout that drops nothing: the way through the hand-written gradient."""
    monkeypatch.setattr("lora_from_scratch.fast.gpt2.dropout", lambda x, *_: x)
    monkeypatch.setattr("lora_from_scratch.core.gpt2.dropout", lambda x, *_: x)
    monkeypatch.setattr("lora_from_scratch.fast.attention.scaled_mask", lambda x, _: torch.ones_like(x))
    return model.train()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("classify", [fast_classify, plain_classify])
def test_logits_and_gradients_are_the_references(tiny_gpt2, monkeypatch, classify, train):
    model = prefixed(tiny_gpt2)
    same = copy.deepcopy(model)
    if train:
        training(monkeypatch, model)
    logits = classify(model, IDS, LENGTHS)
    expected = torch.stack([reference(same, ids[:n]) for ids, n in zip(IDS, LENGTHS, strict=True)])
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    cross_entropy(logits, LABELS).backward()
    cross_entropy(expected, LABELS).backward()
    for (name, ours), theirs in zip(model.named_parameters(), same.parameters(), strict=True):
        if name == "score.weight" or name.endswith(".prefix"):
            assert ours.grad.abs().sum() > 0, name
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-13, msg=name)
        else:
            assert ours.grad is None and not ours.requires_grad, name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("last", [None, torch.tensor([6, 0, 3])])
def test_the_hand_written_gradient_is_that_of_finite_differences(monkeypatch, dropout, last):
    """Of every weight, with the mask that dropout drew; without dropout, of PyTorch's kernel."""

    def draw(x: torch.Tensor, p: float) -> torch.Tensor:
        return ((torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) >= p) / (1 - p)).to(x.dtype)

    monkeypatch.setattr("lora_from_scratch.fast.attention.scaled_mask", draw)
    numbers = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 7, 24, generator=numbers, dtype=torch.float64, requires_grad=True)
    prefix = torch.randn(2, 24, generator=numbers, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda a, b: causal_attention(a, 2, 0.3, dropout, last, b), (qkv, prefix))


def test_the_logits_are_transformers_own_with_a_past(tiny_gpt2):
    """The same keys and values as its past, and positions from 0, in another program's attention."""
    base = copy.deepcopy(tiny_gpt2).double()
    model = prefixed(tiny_gpt2)
    options = {"attention_mask": torch.cat([torch.ones(5, P), IDS != 0], dim=1).long()}
    options["past_key_values"] = DynamicCache(as_past(model, 5))
    expected = base(input_ids=IDS, position_ids=torch.arange(12)[None], **options).logits
    for classify in (fast_classify, plain_classify):
        torch.testing.assert_close(classify(model, IDS, LENGTHS), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
def test_pefts_prefix_tuning_is_the_same_but_for_the_positions(tiny_gpt2):
    """PEFT, given our keys and values: at its own positions other logits, at ours the same."""
    peft = pytest.importorskip("peft")
    base = copy.deepcopy(tiny_gpt2).double()
    model = prefixed(tiny_gpt2)
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P, inference_mode=True)
    theirs = peft.get_peft_model(base, config).eval()
    (encoder,) = theirs.prompt_encoder.values()
    made = [torch.cat([k[0], v[0]]).transpose(0, 1).flatten(1) for k, v in as_past(model, 1)]
    encoder.embedding.weight.data = torch.cat(made, dim=1)  # (P, blocks * 2 * width)
    ours = sum(block.prefix.numel() for block in model.transformer.h)
    assert encoder.embedding.weight.numel() == 2 * ours == 2 * 2 * P * 16

    expected, positions = fast_classify(model, IDS, LENGTHS), torch.arange(12)[None].expand(5, -1)
    mask = (IDS != 0).long()
    at_theirs = theirs(input_ids=IDS, attention_mask=mask).logits
    at_ours = theirs(input_ids=IDS, attention_mask=mask, position_ids=positions - P).logits  # it adds P again
    torch.testing.assert_close(at_ours, expected, rtol=1e-12, atol=1e-12)
    assert (at_theirs - expected).abs().min() > 0.01
    moved = copy.deepcopy(model)
    moved.transformer.wpe.weight.data = model.transformer.wpe.weight.roll(-P, dims=0)
    torch.testing.assert_close(fast_classify(moved, IDS, LENGTHS), at_theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classify", [fast_classify, plain_classify])
def test_padding_and_company_change_nothing(tiny_gpt2, classify):
    model = prefixed(tiny_gpt2)
    together = classify(model, IDS, LENGTHS)
    assert torch.equal(classify(model, IDS.masked_fill(IDS == 0, 7), LENGTHS), together)
    for i, length in enumerate(LENGTHS):
        alone = classify(model, IDS[i : i + 1, :length], length[None])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)


def test_every_token_sees_every_prefix_and_no_later_token(tiny_gpt2):
    """What the first token's logits depend on: all P vectors of both blocks, and no other token."""
    model = prefixed(tiny_gpt2)
    first = torch.ones(5, dtype=torch.long)
    fast_classify(model, IDS, first).sum().backward()
    for block in model.transformer.h:
        assert (block.prefix.grad.abs().sum(dim=1) > 0).all()
    others = IDS.clone()
    others[:, 1:] = 9
    assert torch.equal(fast_classify(model, IDS, first), fast_classify(model, others, first))


def test_the_prefixes_are_drawn_from_the_generator_and_start_like_the_blocks_own_inputs(tiny_gpt2):
    """The plain loop of test_end_to_end.py holds their values to transformers' hidden states."""
    base, state = copy.deepcopy(tiny_gpt2), torch.get_rng_state()
    first, same = (prefixed(copy.deepcopy(base)) for _ in range(2))
    other = adapt(base, RunConfig(method="prefix", prefix_length=P), torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(first.transformer.h, same.transformer.h, other.transformer.h, strict=True):
        assert torch.equal(a.prefix, b.prefix) and not torch.equal(a.prefix.float(), c.prefix)
        assert a.prefix.shape == (P, 16) and c.prefix.dtype == torch.float32
        torch.testing.assert_close(
            a.prefix.std(dim=1, correction=0), torch.ones(P).double(), rtol=0.01, atol=0
        )
    assert not first.training and prefixed(copy.deepcopy(tiny_gpt2).train()).transformer.training


def test_with_a_frozen_head_the_prefixes_alone_learn(tiny_gpt2):
    model = prefixed(tiny_gpt2, freeze_head=True)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "transformer.h.0.prefix",
        "transformer.h.1.prefix",
    }


def test_what_cannot_be_asked_is_refused(tiny_gpt2):
    with pytest.raises(UserError, match="--prefix-length must be at least 1, not 0"):
        RunConfig(method="prefix", prefix_length=0)
    with pytest.raises(UserError, match="--prefix-length 33: this model has 32 positions; ask for fewer"):
        prefixed(tiny_gpt2, prefix_length=33)
    model = prefixed(tiny_gpt2)
    with pytest.raises(UserError, match="transformers' own forward pass knows no prefixes"):
        model(input_ids=IDS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """In `base` a tiny GPT-2, in `prefix` prefixes for it, their head frozen."""
    folder, tokenizer = tmp_path_factory.mktemp("prefix"), load_tokenizer("bundled")
    torch.manual_seed(0)
    GPT2ForSequenceClassification(tiny_config(vocab_size=8192)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = load_model(str(folder / "base"), ["bad", "good"], tokenizer.pad_token_id)
    settings = {"prefix_length": P, "freeze_head": True}
    adapt(model, RunConfig(method="prefix", **settings), torch.Generator().manual_seed(1))
    (folder / "prefix").mkdir()
    adapted = Adapted(model, tokenizer, str(folder / "base"), "prefix", settings)
    tensors.save(adapted, folder / "prefix")
    save_file(model.state_dict(), folder / "expected.safetensors")
    return folder


def test_saved_prefixes_come_back_with_the_head_that_was_drawn(saved, tmp_path):
    back = load_adapted(saved / "prefix")
    expected = load_file(saved / "expected.safetensors")
    assert back.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.model.state_dict().items())
    counted = count_parameters(back.model)
    assert (counted.adapter, counted.head) == (2 * P * 16, 0) and not back.model.training
    tensors.save(back, tmp_path)  # what was loaded is saved as what it is
    written = tmp_path / "trained.safetensors"
    assert written.read_bytes() == (saved / "prefix" / "trained.safetensors").read_bytes()
    with safe_open(written, framework="pt") as file:
        assert set(file.keys()) == {"transformer.h.0.prefix", "transformer.h.1.prefix", "score.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": '{"prefix_length": 4}'}, r"h.0.prefix is \(3, 16\), expected \(4, 16\)"),
        ({"settings": '{"prefix_length": 0}'}, "the settings of --method prefix are damaged"),
        ({"settings": '{"prefix_length": 1e9}'}, "the settings of --method prefix are damaged"),
        ({"settings": '{"prefix_length": 1000000000000}'}, "the settings of --method prefix are damaged"),
        ({"settings": '{"prefix_width": 3}'}, "the settings of --method prefix are damaged"),
        ({"settings": "[3]"}, "the settings of --method prefix are damaged"),
        ({"settings": "[" * 9999}, "the settings of --method prefix are damaged"),
        ({"settings": "{"}, "the settings of --method prefix are damaged"),
        ({"method": "suffix"}, "unexpected tensor transformer.h.0.prefix"),
        ({"method": None}, "unexpected tensor transformer.h.0.prefix"),
        ({"base_weights": "0"}, "trained on a base with other weights"),
        ({"transformer.h.1.prefix": None}, "transformer.h.1.prefix is missing"),
        ({"transformer.h.2.prefix": torch.ones(P, 16)}, "unexpected tensor transformer.h.2.prefix"),
        ({"transformer.h.0.prefix": torch.ones(P, 15)}, r"is \(3, 15\), expected \(3, 16\)"),
        ({"transformer.h.0.prefix": torch.full((P, 16), float("nan"))}, "a value that is not finite"),
        ({"score.weight": None}, "the classifier head, score.weight, is missing"),
    ],
)
def test_damaged_files_are_refused(saved, tmp_path, change, message):
    shutil.copytree(saved / "prefix", tmp_path / "prefix")
    path = tmp_path / "prefix" / "trained.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata, contents = dict(file.metadata()), load_file(path)
    for key in ("contents_sha256", "written_by"):  # as if without a seal
        del metadata[key]
    for key, value in change.items():
        place = metadata if key in (*metadata, "method") else contents
        place.pop(key, None)
        if value is not None:
            place[key] = value
    save_file(contents, path, metadata)
    with pytest.raises(UserError, match=message) as caught:
        load_adapted(tmp_path / "prefix")
    assert len(str(caught.value)) - len(str(path)) < 170


def test_a_base_that_is_too_short_for_the_prefixes_is_another_base(saved, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(vocab_size=8192, n_positions=P - 1)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    load_tokenizer("bundled").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was trained on a base with other weights; name its own with --mo"):
        load_adapted(saved / "prefix", str(tmp_path))


def test_the_seal_covers_the_settings(saved, tmp_path):
    shutil.copytree(saved / "prefix", tmp_path / "prefix")
    path = tmp_path / "prefix" / "trained.safetensors"
    data = path.read_bytes()
    assert data.count(b'freeze_head\\": true') == 1
    path.write_bytes(data.replace(b'freeze_head\\": true', b'freeze_head\\":false'))
    with pytest.raises(UserError, match="was changed by hand"):
        load_adapted(tmp_path / "prefix")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_pefts_prefix_files_are_refused_by_what_differs(tiny_gpt2, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P)
    peft.get_peft_model(tiny_gpt2, config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"
    with pytest.raises(UserError, match="learns keys and values, and moves the tokens behind them"):
        load_adapted(tmp_path)

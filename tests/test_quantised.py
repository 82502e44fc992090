"""A quantised frozen base: against dense algebra, what is published, and through the whole of a run."""

from __future__ import annotations

import copy
import json
import operator
import runpy
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from conftest import DEVICES, randomize_lora, tiny_config
from small_runs import ready, trained, with_all_checkpoints, write_base, write_sentences
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import RunConfig, adapt, inject_lora, load_adapter, merge_lora, merged, save_adapter
from lora_from_scratch.base import nf4
from lora_from_scratch.base.fingerprint import config_fingerprint, weights_fingerprint
from lora_from_scratch.base.int8 import Int8Linear
from lora_from_scratch.base.load import load_model
from lora_from_scratch.base.nf4 import POINTS, DoubleNF4Linear, NF4Linear
from lora_from_scratch.base.precisions import QUANTISED, base_precision, quantise, rounded
from lora_from_scratch.base.quantised import dequantised, kept_weights, quantised_layers
from lora_from_scratch.cli.main import main
from lora_from_scratch.compare.accounting import account
from lora_from_scratch.compare.plan import asked_for
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.errors import UserError
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.packed_weights import Packed, keep_frozen_in_bf16, packed_layers
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.formats.tensors import read_tensors, write_tensors
from lora_from_scratch.runs.execute import evaluate_prepared, train_prepared
from lora_from_scratch.runs.folder import write_trained
from lora_from_scratch.runs.prepare import Prepared, prepare
from lora_from_scratch.train.checkpoints import Checkpoints, read
from lora_from_scratch.train.evaluate import predict_logits
from lora_from_scratch.train.measure import count_parameters, tensor_bytes

KINDS = (Int8Linear, NF4Linear, DoubleNF4Linear)
IDS = torch.randint(1, 50, (5, 12), generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([1, 12, 7, 12, 3])


def linear(weight: torch.Tensor, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    layer.weight.data = weight
    return layer


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def made(kind: str) -> nn.Linear | Conv1D:
    torch.manual_seed(0)
    layer = Conv1D(36, 24) if kind == "conv1d" else nn.Linear(24, 36, bias=kind == "linear")
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.requires_grad_(False)


def relative(layer: type, weight: torch.Tensor) -> float:
    """The root mean square of the errors, as a share of the weights'."""
    error = layer(linear(weight)).dequantise() - weight
    return float(error.square().mean().sqrt() / weight.square().mean().sqrt())


# What is rounded, and how


def test_the_points_are_the_published_quantiles():
    """QLoRA, section 3 and appendix E: 7 below 0 and 8 above, in equal steps of probability."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    assert offset == pytest.approx(0.9677083, abs=1e-7)

    def quantiles(steps: int) -> list[float]:
        shares = (offset + (0.5 - offset) * i / steps for i in range(steps))
        return [NormalDist().inv_cdf(share) for share in shares]

    largest = NormalDist().inv_cdf(offset)
    expected = sorted([*(-q for q in quantiles(7)), 0.0, *quantiles(8)])
    torch.testing.assert_close(POINTS, torch.tensor(expected) / largest, rtol=0, atol=1e-6)


def test_the_16_points_by_hand():
    """Four times all of them in a block of 64, scaled by 3: two in a byte, the first in its upper half."""
    weight = (3.0 * POINTS).repeat(2, 4)
    layer = NF4Linear(linear(weight))
    assert layer.codes.tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF] * 8
    assert layer.scales.tolist() == [[3.0], [3.0]]
    assert torch.equal(layer.dequantise(), weight)


def test_a_code_is_that_of_the_nearest_point():
    weight = normal(3, 128)
    shares = weight.view(-1, 64) / weight.view(-1, 64).abs().amax(1, keepdim=True)
    nearest = (shares[:, :, None] - POINTS).abs().argmin(dim=2).flatten()
    codes = NF4Linear(linear(weight)).codes
    assert torch.equal(torch.stack([codes >> 4, codes & 15], dim=1).flatten(), nearest.to(torch.uint8))


def test_int8_by_hand():
    """One scale for each output; halves go to the even code, and the largest magnitude has the code 127."""
    layer = Int8Linear(linear(torch.tensor([[-2.54, 0.03, 0.05, 1.27], [0.0, 12.7, -12.7, 0.04]])))
    assert layer.codes.tolist() == [[-127, 2, 2, 64], [0, 127, -127, 0]]
    torch.testing.assert_close(layer.scales, torch.tensor([[0.02], [0.1]]))


@pytest.mark.parametrize(
    ("kind", "row", "error"),
    [
        (NF4Linear, 1024, 0.0920),
        (DoubleNF4Linear, 1024, 0.0920),
        (Int8Linear, 768, 0.0077),
        (Int8Linear, 2304, 0.0083),
        (Int8Linear, 3072, 0.0085),
    ],
)
def test_errors_on_normal_weights_are_those_expected(kind, row, error):
    assert relative(kind, normal(2**20 // row, row)) == pytest.approx(error, rel=0.015)


def test_the_mean_error_of_nf4_is_the_one_expected():
    weight = normal(1024, 1024)
    assert (NF4Linear(linear(weight)).dequantise() - weight).abs().mean().item() == pytest.approx(
        0.0728, rel=0.01
    )


def test_double_quantisation_decodes_by_scales_of_8_bits_less_their_mean():
    """Against the same in numbers by numbers: 300 blocks, the last group of scales not full."""
    weight = normal(300, 64) * torch.linspace(0.5, 2, 300)[:, None]
    exact, double = NF4Linear(linear(weight)), DoubleNF4Linear(linear(weight))
    assert torch.equal(exact.codes, double.codes)  # chosen by the exact scale
    scales = exact.scales.flatten()
    mean = scales.mean()
    expected = []
    for group in (scales - mean).split(256):
        step = group.abs().max() / 127
        expected += [float(mean + step * round(float(one / step))) for one in group]
    torch.testing.assert_close(double.block_scales().flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert not torch.equal(double.block_scales(), exact.scales)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 100), (70, 65), (2, 64)])
def test_sizes_that_do_not_divide(kind, shape):
    """Two scales may be of any size here, so an error is held against the largest weight."""
    weight = normal(*shape)
    error = (kind(linear(weight)).dequantise() - weight).abs().max()
    assert error <= 0.16 * weight.abs().max()  # half of the widest gap between two points


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_alone_and_among_others(kind):
    weight = normal(8, 128)
    weight[2:4] = 0
    weight[5, 64:] = 0
    weight[0] *= 100  # so that the scale 0 is far from both the mean and the largest
    back = kind(linear(weight)).dequantise()
    assert back.isfinite().all() and back.count_nonzero() > 500
    assert (back[2:4] == 0).all() and (back[5, 64:] == 0).all()
    assert torch.equal(kind(linear(torch.zeros(3, 70))).dequantise(), torch.zeros(3, 70))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_near_the_smallest_floats_stay_finite_and_keep_their_signs(kind):
    weight = normal(4, 64) * 1e-43
    back = kind(linear(weight)).dequantise()
    assert back.isfinite().all() and (back * weight.sign() >= 0).all() and back.abs().max() < 1e-42


@pytest.mark.parametrize("kind", KINDS)
def test_a_conv1d_is_quantised_as_the_linear_layer_that_it_is(kind):
    """Its weight is transposed first: numbers that share a scale belong to one output."""
    plain = Conv1D(36, 70)
    plain.weight.data = normal(70, 36)
    conv, same = kind(plain), kind(linear(plain.weight.detach().T.contiguous()))
    for name, buffer in same.named_buffers():
        assert torch.equal(conv.get_buffer(name), buffer)
    assert isinstance(conv.dense(), Conv1D) and torch.equal(conv.dense().weight, conv.dequantise().T)
    assert type(same.dense()) is nn.Linear and torch.equal(same.dense().weight, same.dequantise())


@pytest.mark.parametrize(
    ("name", "bits"),
    [("int8", 8 + 32 * (2304 + 768 + 3072 + 768) / (12 * 768**2)), ("nf4", 4.5), ("nf4-double", 4.127)],
)
def test_bits_a_weight_and_the_share_of_fp32s_bytes(name, bits):
    """A block of GPT-2 small. 0.27 and 0.15 are the largest shares allowed; the lookup table counts there."""
    torch.manual_seed(0)
    shape = {"n_embd": 768, "n_head": 12, "n_layer": 1}
    model = quantise(GPT2ForSequenceClassification(tiny_config(**shape)), name)
    layers = dict(quantised_layers(model))
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    assert weights == 12 * 768**2 and len(layers) == 4
    state = [t for layer in layers.values() for n, t in layer.state_dict().items() if n != "bias"]
    assert 8 * tensor_bytes(state) / weights == pytest.approx(bits, abs=1e-3)
    kept = sum(tensor_bytes(layer.buffers()) for layer in layers.values())
    assert kept / (4 * weights) < (0.27 if name == "int8" else 0.15)


# The layer


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["conv1d", "linear", "linear without bias"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 5, 24), (0, 24)])
def test_product_and_gradient_are_the_dense_layers(kind, layout, shape, device):
    layer = kind(made(layout)).to(device)
    x = torch.randn(shape, device=device).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    y, expected = layer(x), copy.deepcopy(layer.dense()).double()(x64)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_computes_in_its_precision_as_a_dense_layer_does(kind, dtype, device):
    layer = kind(made("linear")).to(device)
    dense = layer.dense()
    results = []
    for one in (layer, dense):
        x = normal(7, 24).to(device, dtype).requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            y = one(x)
        assert y.dtype == torch.bfloat16
        (y.float() ** 2).sum().backward()
        assert x.grad.dtype == dtype
        results.append((y, x.grad))
    torch.testing.assert_close(*results, rtol=2**-7, atol=2**-5)


def test_a_bf16_input_gives_a_bf16_output():
    x = normal(7, 24).bfloat16()
    layer = Int8Linear(made("linear"))
    expected = copy.deepcopy(layer.dense()).bfloat16()(x)
    torch.testing.assert_close(layer(x), expected, rtol=2**-7, atol=2**-7)


def test_the_bias_can_learn_and_the_weight_cannot():
    layer = NF4Linear(made("linear"))
    layer.bias.requires_grad_(True)
    layer(normal(3, 5, 24)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((36,), 15.0))
    assert not layer.weight.requires_grad and [n for n, _ in layer.named_parameters()] == ["bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_nothing_of_it(kind):
    layer, kept = kind(made("linear")), []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda _: None):
        layer(normal(7, 24).requires_grad_())
    assert kept == []


def assign(weight: torch.Tensor) -> None:
    weight[0] = 1.0


def assign_data(weight: torch.Tensor) -> None:
    weight.data = torch.zeros(36, 24)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "write",
    [
        assign,
        assign_data,
        lambda weight: weight.copy_(torch.zeros(36, 24)),
        lambda weight: weight.add_(1.0),
        lambda weight: weight.mul_(2.0),
        lambda weight: weight.zero_(),
        lambda weight: weight.data.zero_(),
        lambda weight: weight.detach().add_(1.0),
        lambda weight: weight.T[2:].fill_(0.0),
        lambda weight: weight.chunk(3)[1].zero_(),
        lambda weight: operator.iadd(weight, 1.0),
        lambda weight: torch.add(torch.zeros(36, 24), 1.0, out=weight),
        lambda weight: nn.init.kaiming_uniform_(weight),
    ],
)
def test_what_is_written_into_the_weight_is_refused_and_not_lost(write, mode):
    layer = NF4Linear(made("linear"))
    with mode(), pytest.raises(UserError, match=r"cannot be written to: dequantised\(model\)"):
        write(layer.weight)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_weight_is_read_as_any_other(mode):
    layer, other, x = NF4Linear(made("linear")), torch.zeros(36, 24), torch.ones(2, 24)
    expected = layer.dequantise()
    with mode():
        found = [layer.weight + 0, layer.weight.detach().clone(), other.copy_(layer.weight)]
        found += [
            torch.cat(layer.weight.chunk(3)),
            layer.weight.to(torch.float64),
            other.zero_().add_(layer.weight),
        ]
        found += [nn.functional.linear(x, layer.weight), torch.stack(list(layer.weight))]
    assert [type(one) for one in found] == [torch.Tensor] * 8
    assert torch.equal(found.pop(6), x @ expected.T)
    assert all(torch.equal(one, expected.to(one.dtype)) for one in found)


# In a model


def adapted(model: GPT2ForSequenceClassification, precision: str, method: str = "lora", **own: object):
    draw = torch.Generator().manual_seed(2)
    model = adapt(model, RunConfig(method=method, base_precision=precision, **own), draw)
    randomize_lora(model)
    return model


def test_only_the_matrices_of_the_blocks_are_quantised(tiny_gpt2):
    before = count_parameters(tiny_gpt2)
    model = quantise(tiny_gpt2, "nf4")
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert [n for n, _ in quantised_layers(model)] == [
        f"transformer.h.{i}.{p}" for i in (0, 1) for p in parts
    ]
    assert not [n for n, _ in model.named_parameters() if n.endswith(tuple(f"{p}.weight" for p in parts))]
    assert count_parameters(model).total == before.total and base_precision(model) == "nf4"
    with pytest.raises(UserError, match="was rounded to nf4 before"):
        quantise(model, "int8")
    with pytest.raises(UserError, match="is one of float, int8, nf4, nf4-double, not 'int4'"):
        quantise(model, "int4")


@pytest.mark.parametrize("forward", [plain_classify, fast_classify])
@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("method", ["lora", "prelayer", "prefix"])
def test_logits_and_gradients_are_those_of_the_rounded_dense_base(tiny_gpt2, method, precision, forward):
    own = {"target_modules": ("c_attn", "mlp.c_proj"), "rank": 2, "dropout": 0.0} if method == "lora" else {}
    found = []
    for form in (quantise, rounded):
        model = form(copy.deepcopy(tiny_gpt2), precision)
        model = adapted(model, "float", method, **own)
        logits = forward(model, IDS, LENGTHS)
        cross_entropy(logits, LENGTHS % 2).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        found.append([logits, *gradients.values()])
        assert gradients
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    whole = adapted(copy.deepcopy(tiny_gpt2), "float", method, **own)
    assert (forward(whole, IDS, LENGTHS) - found[0][0]).abs().max() > 1e-4  # it was rounded


@pytest.mark.parametrize("precision", QUANTISED)
def test_quantised_layers_are_not_packed_and_their_scales_not_rounded(tiny_gpt2, precision):
    model = adapted(tiny_gpt2, precision)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keep_frozen_in_bf16(model)
    with packed_layers(model, torch.bfloat16):
        assert len(list(quantised_layers(model))) == 8
        assert not any(isinstance(module, Packed) for module in model.modules())
        assert fast_classify(model, IDS, LENGTHS).isfinite().all()
    for name, layer in quantised_layers(model):
        for key, buffer in layer.named_buffers():
            if key != "pairs":
                assert torch.equal(buffer, before[f"{name}.{key}"]) and buffer.dtype != torch.bfloat16


def test_a_live_model_is_dequantised_before_it_is_merged(tiny_gpt2):
    model = adapted(tiny_gpt2, "nf4")
    expected = plain_classify(model, IDS, LENGTHS)
    with pytest.raises(UserError, match=r"dequantised\(model\)"):
        merge_lora(model)
    with pytest.raises(UserError, match=r"dequantised\(model\)"), merged(model):
        pass
    assert torch.equal(plain_classify(model, IDS, LENGTHS), expected)
    draws = torch.get_rng_state()
    merge_lora(dequantised(model))
    assert torch.equal(torch.get_rng_state(), draws)
    assert isinstance(model.transformer.h[0].attn.c_attn, Conv1D)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(plain_classify(model, IDS, LENGTHS), expected, rtol=1e-5, atol=1e-5)
    mask = (torch.arange(12) < LENGTHS[:, None]).long()
    ids = torch.where(mask.bool(), IDS, 0)
    theirs = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_base_has_one_digest_in_codes_and_dense_and_another_than_the_whole_one(tiny_gpt2, precision):
    forms = [form(copy.deepcopy(tiny_gpt2), precision) for form in (quantise, rounded)]
    forms.append(inject_lora(copy.deepcopy(forms[0]), ["c_attn"], 2, 4))
    digests = {weights_fingerprint(form) for form in forms}
    assert len(digests) == 1 and weights_fingerprint(tiny_gpt2) not in digests
    assert {config_fingerprint(form) for form in forms} == {config_fingerprint(tiny_gpt2)}


# In a run


@pytest.mark.parametrize(
    ("precision", "compute", "plain"),
    [("int8", "fp32", False), ("nf4", "bf16", True), ("nf4-double", "bf16", False)],
)
def test_lora_learns_on_it_and_it_stays_as_it_is(precision, compute, plain):
    prepared = ready(
        base_precision=precision, precision=compute, plain=plain, epochs=20, lr=1e-2, dropout=0.0
    )
    before = {n: t.clone() for n, t in prepared.model.state_dict().items() if "codes" in n or "scale" in n}
    training = train_prepared(prepared)
    losses = [row["loss"] for row in training.metrics]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    after = prepared.model.state_dict()
    assert len(before) >= 16 and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    held = tensor_bytes(kept_weights(prepared.model))
    if not plain:  # frozen embeddings by the rows that occur
        gpt2, size = prepared.model.transformer, 2 if compute == "bf16" else 4
        token_ids, lengths = prepared.train_examples.token_ids, prepared.train_examples.lengths
        rows = len(token_ids.unique()) + int(lengths.max())
        held += rows * gpt2.wte.embedding_dim * size - gpt2.wte.weight.nbytes - gpt2.wpe.weight.nbytes
    assert training.memory.parts["weights"] == held


@pytest.mark.parametrize(
    ("method", "precision", "plain"),
    [("lora", "int8", True), ("lora", "nf4-double", False), ("dora", "int8", True), ("dora", "nf4", False)],
)
def test_it_is_accounted_for_to_the_byte(method, precision, plain):
    """One step on one batch: what autograd really keeps of it is no weight, dense or rounded."""
    asked = {"method": method, "plain": plain, "max_steps": 1, "batch_size": 14}
    prepared = ready(base_precision=precision, **asked)
    accounted = account(prepared)
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
    whole = account(ready(**asked))
    assert accounted["activations"] == whole["activations"]
    assert accounted["weights"] < whole["weights"]


@pytest.mark.parametrize(("precision", "plain"), [("int8", True), ("nf4-double", False)])
def test_it_goes_on_from_a_checkpoint_bit_for_bit(precision, plain, tmp_path):
    asked = {"base_precision": precision, "plain": plain}
    whole, paths = with_all_checkpoints(tmp_path / "all", **asked)
    on = Checkpoints(tmp_path / "on", {}, 10**6, read(paths[2])[1])
    assert trained(ready(**asked), on) == whole


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("quantised")
    base, dataset = write_base(folder / "base"), write_sentences(folder / "reviews.csv")
    return {"model": str(base), "dataset": str(dataset), "device": "cpu", "precision": "fp32"}


def saved(folder: Path, asked: dict[str, str], **changes: object) -> Prepared:
    config = RunConfig(**{**asked, "epochs": 4, "batch_size": 4, "lr": 1e-2, **changes})
    prepared = prepare(config)
    training = train_prepared(prepared)
    write_trained(prepared, training, folder)  # before what was rounded to bf16 is put back, as a run does
    evaluate_prepared(prepared)
    return prepared


def logits(model: nn.Module, tokenizer: object) -> torch.Tensor:
    texts = ["so good", "dull", "so so so dull film"]
    return predict_logits(model, tokenize(tokenizer, texts, [0, 1, 0], 32))


@pytest.mark.parametrize("method", ["lora", "prelayer", "head", "prefix"])
@pytest.mark.parametrize(("precision", "compute"), [("int8", "fp32"), ("nf4-double", "bf16")])
def test_what_is_loaded_computes_on_the_same_rounded_base(asked, precision, method, compute, tmp_path):
    prepared = saved(tmp_path, asked, method=method, base_precision=precision, precision=compute)
    expected = logits(prepared.model, prepared.tokenizer)
    again = load_adapted(tmp_path)
    assert base_precision(again.model) == precision and not list(quantised_layers(again.model))
    torch.testing.assert_close(logits(again.model, again.tokenizer), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
@pytest.mark.filterwarnings("ignore:.*were trained on, so the figures flatter")
def test_the_commands_take_such_a_run_as_any_other(asked, tmp_path, capsys):
    """Trained, evaluated, verified against PEFT, merged into what transformers reads as its own."""
    run, out, asked = tmp_path / "run", tmp_path / "merged", {**asked, "base-precision": "nf4-double"}
    flags = [word for name, value in asked.items() for word in (f"--{name}", value)]
    assert main([*flags, "--epochs", "2", "--lr", "0.01", "--output-dir", str(run)]) == 0
    assert "rounded to nf4-double" in (run / "README.md").read_text()
    assert json.loads((run / "results.json").read_text())["config"]["base_precision"] == "nf4-double"
    evaluated = tmp_path / "evaluated"
    told = ["--adapter", str(run), "--dataset", asked["dataset"], "--device", "cpu"]
    assert main(["evaluate", *told, "--output-dir", str(evaluated)]) == 0
    record = json.loads((evaluated / "results.json").read_text())
    assert record["config"]["base_precision"] == "nf4-double"
    assert record["base"] == json.loads((run / "results.json").read_text())["base"]
    assert main(["verify", "--adapter", str(run)]) == 0
    assert main(["merge", "--adapter", str(run), "--out", str(out)]) == 0, capsys.readouterr().err
    plain = AutoModelForSequenceClassification.from_pretrained(out)
    adapted = load_adapted(run)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    expected = logits(adapted.model, adapted.tokenizer)
    torch.testing.assert_close(logits(plain, adapted.tokenizer), expected, rtol=1e-4, atol=1e-5)


def whole_base(prepared: Prepared) -> GPT2ForSequenceClassification:
    names = prepared.dataset.label_names
    return load_model(prepared.config.model, names, prepared.tokenizer.pad_token_id)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
def test_peft_reads_the_adapter_and_on_the_whole_base_computes_nearly_the_same(asked, tmp_path):
    peft = pytest.importorskip("peft")
    prepared = saved(tmp_path, asked, base_precision="int8")
    expected = logits(prepared.model, prepared.tokenizer)
    found = []
    for precision in ("int8", "float"):
        base = rounded(whole_base(prepared), precision)
        theirs = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval().base_model.model
        found.append((logits(theirs, prepared.tokenizer) - expected).abs().max() / expected.abs().max())
    assert found[0] < 1e-4 < found[1] < 0.1


@pytest.mark.parametrize("form", [rounded, quantise])
def test_an_adapter_asks_for_the_base_it_was_trained_on(asked, form, tmp_path):
    prepared = saved(tmp_path, asked, base_precision="nf4")
    whole = whole_base(prepared)
    told = r"trained on a base in nf4, not in float: rounded\(base, 'nf4'\)"
    with pytest.raises(UserError, match=told):
        load_adapter(whole, tmp_path)
    model = load_adapter(form(whole, "nf4"), tmp_path).eval()
    expected = logits(prepared.model, prepared.tokenizer)
    torch.testing.assert_close(logits(model, prepared.tokenizer), expected, rtol=1e-4, atol=1e-5)
    save_adapter(model, tmp_path / "again", prepared.config.model, prepared.tokenizer)  # rounded as it was
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_precision_of_another_version_is_refused(asked, tmp_path):
    saved(tmp_path, asked, method="head", base_precision="nf4")
    path = tmp_path / "trained.safetensors"
    tensors, metadata = read_tensors(path)
    write_tensors(tensors, path, {**metadata, "base_precision": "int3"})
    with pytest.raises(UserError, match="'int3' is no precision of a base that this version knows"):
        load_adapted(tmp_path)


def test_full_fine_tuning_is_refused_in_a_sentence_before_anything_is_loaded(tmp_path):
    told = "--base-precision nf4 is for frozen weights, and --method full trains all of them; leave it out"
    with pytest.raises(UserError, match=told):
        RunConfig(method="full", base_precision="nf4")
    with pytest.raises(UserError, match="--base-precision must be one of float, int8, nf4, nf4-double"):
        RunConfig(base_precision="int4")
    program = f"""
import sys
sys.modules["torch"] = None
from lora_from_scratch.cli.main import main
sys.exit(main(["--method", "full", "--base-precision", "nf4", "--output-dir", {str(tmp_path / "run")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {told}\n")
    assert not (tmp_path / "run").exists()


def test_in_a_comparison_it_is_no_flag_of_full():
    configs = asked_for(["full", "lora"], {"base_precision": ["float", "nf4"]}, {})
    found = [(config.method, config.base_precision) for config in configs]
    assert found == [("full", "float"), ("lora", "float"), ("lora", "nf4")]


@pytest.mark.usefixtures("float64_by_default")
def test_the_points_of_nf4_are_fp32_whatever_the_default_is():
    assert runpy.run_path(nf4.__file__)["POINTS"].dtype == torch.float32

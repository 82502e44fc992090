"""The lens: every number against dense algebra, the papers' own figures, or chance; what parts are worth."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import numpy
import pytest
import torch
from conftest import randomize_lora
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import UserError, inject_lora, merge_lora
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.formats.peft import load_adapter, save_adapter
from lora_from_scratch.lens.curves import energy_kept, measure
from lora_from_scratch.lens.measures import (
    amplification,
    closest,
    effective_rank,
    layer_record,
    numerical_rank,
    overlap,
    overlap_by_chance,
    parts,
    random_norm,
)
from lora_from_scratch.lens.opened import check_layers
from lora_from_scratch.lens.truncate import truncate, truncated
from lora_from_scratch.lens.updates import Update, svd_of_update, updates_of
from lora_from_scratch.report.lens_view import change, layer_rows
from lora_from_scratch.report.numbers import NOTHING
from lora_from_scratch.train.evaluate import evaluate

TARGETS = ["attn.c_attn", "mlp.c_proj"]  # a wide and a narrow one
TIGHT = {"rtol": 0, "atol": 1e-9}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, width: int, draw: torch.Generator) -> torch.Tensor:
    """Rows of a random frame, `(rows, width)`."""
    return torch.linalg.qr(torch.randn(width, rows, dtype=torch.float64, generator=draw))[0].T


def dense(update: Update) -> torch.Tensor:
    return update.U @ torch.diag(update.S) @ update.Vh


@pytest.fixture
def adapted(tiny_gpt2) -> nn.Module:
    """alpha is not r, every B is off zero, and A too has moved."""
    model = inject_lora(tiny_gpt2, TARGETS, rank=3, alpha=5.0, modules_to_save=["score"])
    randomize_lora(model, std=0.3)
    return model.double()


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize(("in_dim", "out_dim", "rank"), [(7, 11, 3), (11, 7, 3), (5, 5, 5), (4, 6, 9)])
def test_the_svd_of_an_update_is_that_of_the_dense_matrix(kind, in_dim, out_dim, rank):
    base = nn.Linear(in_dim, out_dim) if kind is nn.Linear else Conv1D(out_dim, in_dim)
    layer = LoRALinear(base.double(), rank, alpha=2.5 * rank)
    with torch.no_grad():
        layer.lora_B.copy_(drawn(out_dim, rank))
    expected = layer.delta_weight().detach()
    expected = (expected.T if kind is Conv1D else expected).numpy()
    U, S, Vh = svd_of_update(layer)
    torch.testing.assert_close((U * S @ Vh).numpy(), expected, **TIGHT)
    values = numpy.linalg.svd(expected, compute_uv=False)
    torch.testing.assert_close(S.numpy(), values[: len(S)], **TIGHT)
    assert len(S) == min(rank, in_dim, out_dim) and (values[len(S) :] < 1e-9).all()
    for frame in (U.T, Vh):
        torch.testing.assert_close(frame @ frame.T, torch.eye(len(S), dtype=torch.float64), **TIGHT)


def test_an_update_is_what_merging_adds(adapted, tiny_gpt2):
    before = {name: layer.base_layer.weight.detach().clone() for name, layer in lora_layers(adapted)}
    found = {update.name: update for update in updates_of(adapted)}
    assert list(found) == [name for name, _ in lora_layers(adapted)] and len(found) == 4
    merge_lora(adapted)
    for name, update in found.items():
        change = adapted.get_submodule(name).weight.detach() - before[name]  # Conv1D: (in, out)
        torch.testing.assert_close(dense(update), change.T, **TIGHT)
        torch.testing.assert_close(update.base, before[name].T, rtol=0, atol=0)
        assert update.norm == pytest.approx(change.norm().item(), abs=1e-9)
        assert f"transformer.{update.layer}" == name


def test_of_a_whole_model_every_matrix_of_the_blocks_is_taken_apart(tiny_gpt2):
    base, model = copy.deepcopy(tiny_gpt2), tiny_gpt2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    found = list(updates_of(model, base))
    assert len(found) == 2 * 4
    for update in found:
        change = (model.get_submodule(update.name).weight - base.get_submodule(update.name).weight).T
        torch.testing.assert_close(dense(update), change.detach().double(), rtol=0, atol=1e-7)
        values = numpy.linalg.svd(dense(update).numpy(), compute_uv=False)
        torch.testing.assert_close(update.S.numpy(), values, **TIGHT)
        assert numerical_rank(update) == min(update.base.shape)  # full fine-tuning's is full
    assert list(updates_of(base)) == []


def test_the_rank_of_a_merged_adapter_is_seen_through_the_rounding_of_its_weights(tiny_gpt2):
    base = copy.deepcopy(tiny_gpt2)
    model = inject_lora(tiny_gpt2, TARGETS, rank=3, alpha=5.0)
    randomize_lora(model)
    merge_lora(model)  # fp32: the sum is rounded
    found = {update.name: numerical_rank(update) for update in updates_of(model, base)}
    adapted = {name for name in found if any(name.endswith(target) for target in TARGETS)}
    assert {found[name] for name in adapted} == {3} and len(adapted) == 4
    assert {rank for name, rank in found.items() if name not in adapted} == {0}


def test_effective_rank_by_hand():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    p = numpy.array([0.5, 0.25, 0.25])  # its entropy is 1.5 bits
    assert effective_rank(torch.tensor(7 * p)) == pytest.approx(2**1.5, abs=1e-9)


def test_the_papers_table_7():
    """W_q of GPT-3's layer 48 has the norm 61.95; its random column, and its factors to two digits."""
    width = 12_288
    assert random_norm(4, 61.95, width, width) == pytest.approx(0.020, abs=0.0005)
    assert random_norm(64, 61.95, width, width) == pytest.approx(0.323, abs=0.0005)
    one, row = torch.ones(1, 1, dtype=torch.float64), torch.eye(1, 3, dtype=torch.float64)
    for norm, along, factor in ((6.91, 0.32, 21.5), (3.57, 1.90, 1.9)):
        update = Update("", along * row, one, norm * one[0], row, row)
        found = amplification(update, torch.linalg.svd(update.base, full_matrices=False))
        assert found["by_update"] == pytest.approx(along)
        assert found["factor"] == pytest.approx(factor, rel=0.02)


def test_amplification_is_that_of_dense_products(adapted):
    for update in updates_of(adapted):
        found = amplification(update, torch.linalg.svd(update.base, full_matrices=False))
        U, _, Vh = numpy.linalg.svd(dense(update).numpy())
        U0, S0, Vh0 = numpy.linalg.svd(update.base.numpy())
        along = numpy.linalg.norm(U[:, :3].T @ update.base.numpy() @ Vh[:3].T)
        inside = numpy.linalg.norm(U0[:, :3].T @ dense(update).numpy() @ Vh0[:3].T)
        assert found["directions"] == 3 and found["by_update"] == pytest.approx(along, abs=1e-9)
        assert found["by_base"] == pytest.approx(math.sqrt((S0[:3] ** 2).sum()), abs=1e-9)
        assert found["factor"] == pytest.approx(update.norm / along, abs=1e-9)
        assert found["inside"] == pytest.approx((inside / update.norm) ** 2, abs=1e-9)
        chance = random_norm(3, numpy.linalg.norm(update.base), *update.base.shape)
        assert found["by_chance"] == pytest.approx(chance, abs=1e-9)


def test_what_chance_gives_is_what_random_directions_give():
    draw, (m, n, r), W = torch.Generator().manual_seed(0), (12, 20, 3), drawn(12, 20)
    squares, inside, phis, S = [], [], [], torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    for _ in range(2000):
        U, V = orthonormal(r, m, draw), orthonormal(r, n, draw)
        squares.append((U @ W @ V.T).norm() ** 2)
        inside.append(((U[:, :r].T * S) @ V[:, :r]).norm() ** 2 / S.norm() ** 2)
        phis.append(overlap(V, orthonormal(5, n, draw)))
    assert math.sqrt(torch.stack(squares).mean()) == pytest.approx(
        random_norm(r, W.norm().item(), m, n), rel=0.02
    )
    assert torch.stack(inside).mean().item() == pytest.approx(r * r / (m * n), rel=0.05)
    mean = torch.stack(phis).mean(0)
    for i, j in ((1, 1), (1, 5), (3, 2), (3, 5)):
        assert mean[i - 1, j - 1].item() == pytest.approx(overlap_by_chance(i, j, n), rel=0.05)


def test_overlap_is_equation_4_on_the_dense_spans():
    draw = torch.Generator().manual_seed(0)
    V, other = orthonormal(4, 9, draw), orthonormal(6, 9, draw)
    phi = overlap(V, other).numpy()
    assert phi.shape == (4, 6)
    for i in range(1, 5):
        for j in range(1, 7):
            product = V[:i].numpy() @ other[:j].numpy().T
            assert phi[i - 1, j - 1] == pytest.approx((product**2).sum() / min(i, j), abs=1e-12)
    turned = torch.linalg.qr(drawn(4, 4))[0] @ V  # another basis of the same span
    assert overlap(V, turned)[-1, -1].item() == pytest.approx(1, abs=1e-12)
    assert overlap(V, V)[0].tolist() == pytest.approx([1] * 4, abs=1e-12)


def test_q_k_and_v_are_the_thirds_of_the_fused_matrix(adapted):
    with torch.no_grad():
        for name, layer in lora_layers(adapted):
            if name.endswith("c_attn"):
                layer.lora_B[16:32] = 0  # k
    fused = [update for update in updates_of(adapted) if update.name.endswith("c_attn")]
    assert len(fused) == 2
    for update in fused:
        found, change = parts(update), dense(update)
        for i, name in enumerate("qkv"):
            rows = slice(16 * i, 16 * (i + 1))
            assert found[name]["norm"] == pytest.approx(change[rows].norm().item(), abs=1e-9)
            assert found[name]["base_norm"] == pytest.approx(update.base[rows].norm().item(), abs=1e-9)
        assert found["k"]["norm"] < 1e-12
        assert sum(part["share"] for part in found.values()) == pytest.approx(1, abs=1e-9)
    assert [parts(one) for one in updates_of(adapted) if not one.name.endswith("c_attn")] == [None, None]


def test_intruders_are_those_that_peft_counts():
    """On nn.Linear, whose weight PEFT takes as it is stored, `(out, in)`."""
    import peft

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 24)).double()
    said: list[str] = []
    theirs = peft.get_peft_model(
        copy.deepcopy(plain), peft.LoraConfig(target_modules=["0", "1", "2"], r=4, lora_alpha=8)
    ).double()
    ours = inject_lora(plain, ["0", "1", "2"], rank=4, alpha=8)
    sizes = dict(zip("012", (0.0, 1.0, 3.0), strict=True))
    with torch.no_grad():
        for name, layer in lora_layers(ours):
            their = theirs.base_model.model.get_submodule(name)
            layer.lora_B.copy_(sizes[name] * drawn(*layer.lora_B.shape))
            their.lora_A["default"].weight.copy_(layer.lora_A)
            their.lora_B["default"].weight.copy_(layer.lora_B)
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    reduce_intruder_dimension(theirs, logging_sink=said.append)
    counts = [int(re.search(r"Intruders: (\d+)", line)[1]) if "No" not in line else 0 for line in said[:3]]
    found = [layer_record(update)["intruders"] for update in updates_of(ours)]
    assert found == counts and counts[0] == 0 and len(set(counts)) == 3


def test_the_cosine_of_a_direction_with_itself_is_one():
    U0 = torch.linalg.svd(drawn(9, 5), full_matrices=False)[0]
    assert closest(-U0[:, [3, 1]], U0).tolist() == pytest.approx([1, 1], abs=1e-12)
    outside = torch.linalg.svd(drawn(9, 5), full_matrices=True)[0][:, 5:6]
    assert closest(outside, U0).item() < 1e-12


def test_a_truncation_is_the_nearest_matrix_of_that_rank(adapted):
    layers = dict(lora_layers(adapted))
    wholes = {name: layer.delta_weight().detach().clone() for name, layer in layers.items()}
    lost = truncate(adapted, 2)
    squares = [0.0, 0.0]
    for name, layer in lora_layers(adapted):
        assert (layer.rank, layer.scaling) == (2, pytest.approx(5 / 3)) and layer.base_layer is layers[
            name
        ].base_layer
        U, S, Vh = numpy.linalg.svd(wholes[name].numpy(), full_matrices=False)
        torch.testing.assert_close(
            layer.delta_weight().detach().numpy(), (U[:, :2] * S[:2]) @ Vh[:2], **TIGHT
        )
        squares = [squares[0] + (S[2:] ** 2).sum(), squares[1] + (S**2).sum()]
    assert lost == pytest.approx(math.sqrt(squares[0] / squares[1]), abs=1e-9) and lost > 0.01


def test_truncating_to_the_rank_there_is_changes_nothing(adapted):
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    assert truncate(adapted, 3) == 0.0 and truncate(adapted, 50) == 0.0
    after = adapted.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)
    for _, layer in lora_layers(adapted):
        whole = layer.delta_weight()
        torch.testing.assert_close(truncated(layer, 3).delta_weight(), whole, rtol=0, atol=1e-12)


def test_an_update_of_zero_stays_a_layer_that_can_learn(tiny_gpt2, tmp_path):
    """In one layer A is 0, in the other B, as before training."""
    base = copy.deepcopy(tiny_gpt2)
    model = inject_lora(tiny_gpt2, ["c_attn"], rank=3, alpha=5.0, modules_to_save=["score"])
    with torch.no_grad():
        first = next(layer for _, layer in lora_layers(model))
        first.lora_A.zero_()
        first.lora_B.fill_(1.0)
    assert truncate(model, 2) == 0.0
    save_adapter(model, tmp_path)
    back = load_adapter(copy.deepcopy(base), tmp_path)
    assert [layer.rank for _, layer in lora_layers(back)] == [2, 2]
    ids = torch.arange(6).view(1, -1)
    logits = back(ids).logits
    assert torch.equal(logits, base(ids).logits)
    logits[0, 0].backward()
    assert all(layer.lora_B.grad.any(dim=0).all() for _, layer in lora_layers(back))


def test_a_matrix_of_zeros_in_the_base_has_no_norm_to_compare_with():
    """As where a base was made deeper by blocks that do nothing yet."""
    layer = LoRALinear(nn.Linear(8, 6).double(), 2, alpha=3)
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        layer.lora_B.copy_(drawn(6, 2))
    ((_, norm, of_base, rank, *_, factor, _),) = layer_rows({"layers": [record := one_layer(layer)]})
    assert (norm, rank) == (f"{layer.delta_weight().norm():.3g}", "2")
    assert of_base == factor == NOTHING and change({"layers": [record]}) is None


def one_layer(layer: nn.Module) -> dict[str, object]:
    """The record of the one layer of a model."""
    (update,) = updates_of(nn.Sequential(layer))
    return layer_record(update)


def test_truncating_keeps_dropout_and_the_scaling_of_rslora():
    layer = LoRALinear(nn.Linear(8, 6).double(), 4, alpha=3, dropout=0.25, rank_stabilized=True)
    with torch.no_grad():
        layer.lora_B.copy_(drawn(6, 4))
    smaller = truncated(layer, 2)
    assert smaller.rank_stabilized and smaller.lora_dropout.p == 0.25
    assert smaller.scaling == pytest.approx(layer.scaling, abs=1e-12) and smaller.rank == 2


def test_parts_are_worth_what_the_model_with_just_these_is_worth(adapted, tiny_examples):
    """Against models that are put together here, plainly; the whole one to the bit."""
    adapted.float()
    untouched = copy.deepcopy(adapted)
    bare = merge_lora(copy.deepcopy(adapted))
    for name, layer in lora_layers(untouched):
        bare.get_submodule(name).weight.data.copy_(layer.base_layer.weight)
    updates = list(updates_of(adapted))

    def worth(change: dict[str, torch.Tensor]) -> tuple[float, float]:
        model = copy.deepcopy(bare)
        for name, delta in change.items():
            model.get_submodule(name).weight.data.add_(delta.T.float())
        found = evaluate(model, tiny_examples, "fp32")
        return found.score.accuracy, pytest.approx(found.loss, abs=1e-6)

    found = measure(adapted, updates, tiny_examples)
    whole = evaluate(merge_lora(copy.deepcopy(untouched)), tiny_examples, "fp32")
    deltas = {update.name: dense(update) for update in updates}
    assert [point["directions"] for point in found.kept] == [0, 1, 2, 3]
    assert (found.kept[-1]["accuracy"], found.kept[-1]["loss"]) == (whole.score.accuracy, whole.loss)
    for point in found.kept:
        kept = {}
        for name, delta in deltas.items():
            U, S, Vh = torch.linalg.svd(delta)
            k = point["directions"]
            kept[name] = (U[:, :k] * S[:k]) @ Vh[:k]
        assert (point["accuracy"], point["loss"]) == worth(kept)
        share = sum(d.norm() ** 2 for d in kept.values()) / sum(d.norm() ** 2 for d in deltas.values())
        assert point["energy"] == pytest.approx(float(share), abs=1e-9)
    for point in found.scaled:
        assert (point["accuracy"], point["loss"]) == worth({n: point["scale"] * d for n, d in deltas.items()})
    assert [point["scale"] for point in found.scaled] == [0, 0.5, 1, 1.5, 2]
    for update, point in zip(updates, found.left_out, strict=True):
        assert point["layer"] == update.layer
        assert (point["accuracy"], point["loss"]) == worth(
            {n: d for n, d in deltas.items() if n != update.name}
        )
    assert len({point["loss"] for point in [*found.kept, *found.scaled, *found.left_out]}) > 8
    after = merge_lora(untouched).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in adapted.state_dict().items())


def test_of_many_directions_powers_of_two_are_tried(tiny_gpt2, tiny_examples):
    model = inject_lora(tiny_gpt2, ["attn.c_attn"], rank=13, alpha=13)
    randomize_lora(model)
    updates = list(updates_of(model))
    found = measure(model, updates, tiny_examples)
    assert [point["directions"] for point in found.kept] == [*range(9), 13]
    assert energy_kept(updates)[-1] == 1 and energy_kept(updates)[0] == 0


def test_a_layer_that_is_more_than_b_a_is_refused_in_one_line(adapted):
    class Scaled(LoRALinear):
        """As DoRA's: its norm is learned too, which no direction of B A shows."""

    next(layer for _, layer in lora_layers(adapted)).__class__ = Scaled
    with pytest.raises(
        UserError, match=r"runs/x: there is nothing to inspect: .*h.0.attn.c_attn is of type Scaled"
    ):
        check_layers(adapted, Path("runs/x"), "inspect")

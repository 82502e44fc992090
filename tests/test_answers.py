"""What docs/questions-of-use.md, docs/questions.md and the pages that they link to say of using a model."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import randomize_lora, tiny_config
from safetensors.torch import load_file
from test_pages import missed_rows
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Tokenizer

from lora_from_scratch import (
    LoRALinear,
    RunConfig,
    adapt,
    inject_lora,
    load_adapter,
    merge_lora,
    save_adapter,
)
from lora_from_scratch.base.load import BUNDLED, BUNDLED_MODEL, draw_head, load_model, load_tokenizer
from lora_from_scratch.cli import main as cli
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.lens.measures import overlap
from lora_from_scratch.lens.record import _spanned
from lora_from_scratch.methods import METHODS
from lora_from_scratch.methods.parted_lora import PartedLoRALinear
from lora_from_scratch.train.evaluate import predict_logits
from lora_from_scratch.train.measure import count_parameters

DOCS = Path(__file__).parents[1] / "docs"


def raw(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def read(page: str) -> str:
    """In one line, so that a sentence is found wherever the page breaks it."""
    return " ".join(raw(page).split())


def blocks(page: str, heading: str) -> list[tuple[str, str]]:
    """Language and lines of each block of code below a heading."""
    section = re.split(r"^#+ ", raw(page).split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    return re.findall(r"^```(\w+)\n(.*?)^```", section, re.S | re.M)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_other_factors_span_the_same_rows_and_columns():
    """What the lens compares of A, its span, is the same for A and for inverse(M) A; A itself is not."""
    A, B, M = normal(3, 9), normal(7, 3, seed=1), normal(3, 3, seed=2)
    for mine, other in ((A, torch.linalg.inv(M) @ A), (B.T, (B @ M).T)):
        assert overlap(_spanned(mine), _spanned(other))[-1, -1].item() == pytest.approx(1, abs=1e-9)
        assert not torch.allclose(mine, other, atol=0.1)
    elsewhere = overlap(_spanned(A), _spanned(normal(3, 9, seed=3)))[-1, -1].item()
    assert elsewhere < 0.9


def test_at_full_rank_b_a_can_be_any_update_and_still_steps_elsewhere():
    """By one step of plain gradient descent from B = 0; of AdamW's the page says no more."""
    width, out, s = 5, 9, 4.0
    wanted = normal(out, width)
    layer = LoRALinear(nn.Linear(width, out, dtype=torch.float64), rank=width, alpha=s * width)
    U, S, Vh = torch.linalg.svd(wanted, full_matrices=False)
    kept, layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.clone(), Vh, U * S / s
    torch.testing.assert_close(layer.delta_weight(), wanted, rtol=1e-9, atol=1e-9)
    layer.lora_A.data, layer.lora_B.data = kept, torch.zeros(out, width, dtype=torch.float64)
    full, x = copy.deepcopy(layer.base_layer).requires_grad_(), normal(20, width, seed=1)
    for module in (layer, full):
        module(x).square().sum().backward()
    moved = s * (-layer.lora_B.grad) @ layer.lora_A.detach()  # at a rate of 1
    torch.testing.assert_close(moved, -(s**2) * full.weight.grad @ kept.T @ kept, rtol=1e-9, atol=1e-9)
    aligned = torch.cosine_similarity(moved.flatten(), -full.weight.grad.flatten(), dim=0).item()
    assert 0 < aligned < 0.99


def test_a_first_step_is_the_projection_on_rows_of_a_where_these_are_orthonormal_times_a_number():
    """By plain gradient descent from B = 0; the projection is torch's pseudo-inverse times A."""
    x, G = normal(20, 6), normal(9, 6, seed=1)
    orthonormal = torch.linalg.qr(normal(6, 2, seed=2)).Q.T
    for A, is_one in ((normal(1, 6), True), (normal(2, 6), False), (3 * orthonormal, True)):
        layer = LoRALinear(nn.Linear(6, 9, dtype=torch.float64), rank=len(A), alpha=5)
        layer.lora_A.data, s = A, 5 / len(A)
        (layer(x) * (x @ torch.linalg.pinv(x.T @ x) @ G.T)).sum().backward()  # so that W's gradient is G
        moved = -s * layer.lora_B.grad @ A  # at a rate of 1
        projected = G @ torch.linalg.pinv(A) @ A
        size = (moved * projected).sum() / projected.square().sum()
        assert torch.allclose(moved, size * projected, rtol=1e-9, atol=1e-9) == is_one
        if is_one:
            assert size.item() == pytest.approx(-(s**2) * (A @ A.T)[0, 0].item(), rel=1e-9)
        assert not torch.allclose(moved, -G, atol=0.1)
        preconditioned = -s * torch.linalg.solve(s**2 * A @ A.T, layer.lora_B.grad.T).T @ A
        torch.testing.assert_close(preconditioned, -projected, rtol=1e-9, atol=1e-9)


def heads_of(model: GPT2ForSequenceClassification) -> list[tuple[nn.Module, slice, slice]]:
    """Every head: its block's `c_attn`, and where its queries and its keys are among that layer's outputs."""
    C, H, found = model.config.n_embd, model.config.n_head, []
    for block in model.transformer.h:
        for start in range(0, C, C // H):
            end = start + C // H
            found.append((block.attn.c_attn, slice(start, end), slice(C + start, C + end)))
    return found


@torch.no_grad()
def test_where_new_keys_are_the_old_ones_mixed_other_queries_do_the_same(tiny_gpt2):
    """Whatever the keys' bias; by transformers' own forward pass. The queries' bias has to be mixed, too."""
    ids, model = torch.arange(1, 25).view(4, 6), tiny_gpt2.double()
    keys, queries, without_bias = (copy.deepcopy(model) for _ in range(3))
    heads = zip(*map(heads_of, (keys, queries, without_bias)), strict=True)
    for seed, ((k, _, mine), (q, own, _), (half, _, _)) in enumerate(heads):
        M = normal(8, 8, seed=seed)
        k.weight[:, mine] = k.weight[:, mine] @ M.T  # Conv1D: (in, out)
        k.bias[mine] = normal(8, seed=100 + seed)
        q.weight[:, own] = half.weight[:, own] = q.weight[:, own] @ M
        q.bias[own] = q.bias[own] @ M
    expected = keys(ids).logits
    torch.testing.assert_close(queries(ids).logits, expected, rtol=1e-9, atol=1e-9)
    for other in (model, without_bias):
        assert (other(ids).logits - expected).abs().max() > 1e-3


def test_what_lora_adds_to_k_is_another_lora_of_q_only_if_its_a_lies_in_ks_rows():
    """Of one head, `(d, C)`; what the scores hold of two tokens is Wq^T Wk."""
    d, C, r, s = 4, 16, 2, 2.5
    Wq, Wk, B, N = normal(d, C), normal(d, C, seed=1), normal(d, r, seed=2), normal(r, d, seed=3)
    changed = Wq.T @ (Wk + s * B @ N @ Wk)
    update = s * N.T @ B.T @ Wq
    torch.testing.assert_close((Wq + update).T @ Wk, changed, rtol=1e-9, atol=1e-9)
    assert torch.linalg.matrix_rank(update) == r
    changed = Wq.T @ (Wk + s * B @ normal(r, C, seed=4))  # A is drawn from all C dimensions
    best = torch.linalg.lstsq(Wk.T, changed.T).solution  # (d, C), any Wq at all
    left = (best.T @ Wk - changed).norm() / (changed - Wq.T @ Wk).norm()
    assert left > 0.5


@torch.no_grad()
def test_q_and_k_move_the_attention_weights_of_their_block_and_v_what_is_carried(tiny_gpt2):
    """In transformers' own attention, the first block's."""
    tiny_gpt2.set_attn_implementation("eager")
    ids, C = torch.arange(1, 7)[None], tiny_gpt2.config.n_embd
    before = tiny_gpt2(ids, output_attentions=True)
    for part, moves in enumerate((True, True, False)):
        model = copy.deepcopy(tiny_gpt2)
        model.transformer.h[0].attn.c_attn.weight[:, part * C : (part + 1) * C] += normal(C, C).float()
        after = model(ids, output_attentions=True)
        assert torch.equal(after.attentions[0], before.attentions[0]) == (not moves)
        assert not torch.equal(after.logits, before.logits)


def test_rows_that_never_occur_shrink_by_as_much_as_the_page_says():
    """AdamW's decay over two epochs of SST-2 in batches of 16, while the rate falls in a straight line."""
    steps, decay, told = 2 * math.ceil(67_349 / 16), RunConfig().weight_decay, []
    for method in ("prelayer", "full"):
        lr = METHODS[method].default_lr(GPT2Config().n_embd)
        left = math.prod(1 - lr * (1 - step / steps) * decay for step in range(steps))
        told.append(f"{100 * (1 - left):.1f} % by `{method}`")
    assert " and ".join(told) in read("questions"), told


@torch.no_grad()
def test_a_factor_on_alpha_is_one_on_the_update(tiny_gpt2):
    ids, bare = torch.arange(1, 9)[None], copy.deepcopy(tiny_gpt2)
    inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=8)
    randomize_lora(tiny_gpt2)
    for factor in (0.0, 0.5, -1.0):
        model, expected = copy.deepcopy(tiny_gpt2), copy.deepcopy(bare)
        for (_, layer), block in zip(lora_layers(model), expected.transformer.h, strict=True):
            block.attn.c_attn.weight += factor * layer.delta_weight()
            layer.alpha *= factor
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-5, atol=1e-5)


def test_what_full_rank_counts_on_gpt2_small():
    per_rank, of_w = 768 + 2304, 768 * 2304
    assert of_w == 576 * per_rank
    for rank in (576, 768):
        with torch.device("meta"):
            model = GPT2ForSequenceClassification(GPT2Config(n_layer=1, pad_token_id=0))
        assert count_parameters(adapt(model, RunConfig(rank=rank))).adapter == rank * per_rank
    told = f"{768 * per_rank:,} numbers at rank 768 against {of_w:,} in W0"
    assert told in read("questions")


def test_no_rate_is_within_a_point_of_the_best_for_all():
    table = re.search(r"<!-- from \S+: flat_ranges -->\n(.*?)<!-- end -->", raw("choices"), re.S)[1]
    near = [set(re.findall(r"[\d.e-]*\d", row.split("|")[4])) for row in table.strip().splitlines()[2:]]
    assert len(near) == 6 and all(near) and not set.intersection(*near)


def test_three_parts_can_be_every_shared_update_and_one_shared_a_not_every_one_of_theirs():
    width, rank = 6, 2
    shared = LoRALinear(nn.Linear(width, 3 * width, dtype=torch.float64), rank, alpha=5)
    parts = PartedLoRALinear(nn.Linear(width, 3 * width, dtype=torch.float64), ("q", "k", "v"), rank, alpha=5)
    shared.lora_B.data = normal(3 * width, rank)
    parts.lora_A.data, parts.lora_B.data = shared.lora_A.repeat(3, 1), shared.lora_B.data.clone()
    torch.testing.assert_close(parts.delta_weight(), shared.delta_weight(), rtol=1e-9, atol=1e-9)
    parts.lora_A.data = normal(3 * rank, width, seed=1)
    assert torch.linalg.matrix_rank(parts.delta_weight()) == 3 * rank
    assert torch.linalg.matrix_rank(shared.delta_weight()) == rank
    for targets, count in ((("attn.c_attn",), "24,576"), (("attn.c_attn:q,k,v",), "36,864")):
        with torch.device("meta"):
            model = GPT2ForSequenceClassification(GPT2Config(n_layer=1, pad_token_id=0))
        adapted = adapt(model, RunConfig(rank=8, target_modules=targets))
        assert f"{count_parameters(adapted).adapter:,}" == count and count in read("family-lora")


def test_before_the_first_step_the_loss_is_near_ln_2():
    """Over ten heads, on all bundled validation sentences, of which half are of either class."""
    dataset, tokenizer = load_dataset("bundled"), load_tokenizer(BUNDLED)
    model = load_model(BUNDLED, [str(i) for i in range(256)], tokenizer.pad_token_id).eval()
    model.score.weight.data = torch.eye(256)  # what the head reads comes out as it is
    split = dataset.validation
    labels = torch.tensor(split.labels)
    states = predict_logits(model, tokenize(tokenizer, split.sentences, split.labels, 128))  # (N, 256)
    losses, squares = [], []
    model.score = nn.Linear(256, 2, bias=False)
    for seed in range(10):
        head = draw_head(model, torch.Generator().manual_seed(seed)).score.weight.detach()
        logits = states @ head.T
        losses.append(cross_entropy(logits, labels).item())
        squares.append((logits[:, 1] - logits[:, 0]).square().mean().item())
    told = f"it was {min(losses):.2f} to {max(losses):.2f}, for ten seeds"
    assert told in read("questions"), told
    assert f"has a length of {states.norm(dim=1).mean():.0f}" in read("questions"), states.norm(dim=1).mean()
    for loss, square in zip(losses, squares, strict=True):
        assert loss == pytest.approx(math.log(2) + square / 8, abs=0.01)


def checkpointed(
    forward: Callable, reentrant: bool, x: torch.Tensor, *more: object, **named: object
) -> object:
    return checkpoint(partial(forward, **named), x, *more, use_reentrant=reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_of_ones_own_gives_the_same_gradients(tiny_gpt2, dropout):
    """Around blocks whose inputs need no gradient: embeddings are frozen. Of the older kind A gets none."""
    inject_lora(tiny_gpt2, ["attn.c_attn"], 2, 8, dropout=dropout, modules_to_save=["score"])
    randomize_lora(tiny_gpt2)
    ids, labels = torch.arange(1, 25).view(4, 6), torch.tensor([0, 1, 1, 0])
    found = []
    for reentrant in (None, False, True):  # None: not checkpointed
        model = copy.deepcopy(tiny_gpt2).train()
        if reentrant is not None:
            for block in model.transformer.h:
                block.forward = partial(checkpointed, block.forward, reentrant)
        torch.manual_seed(0)
        cross_entropy(model(ids, use_cache=False).logits, labels).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys() and all(g is not None for g in found[0].values())
    assert [name for name, grad in found[2].items() if grad is not None] == ["score.weight"]
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name]), name
    assert any(grad.abs().max() > 0 for name, grad in found[0].items() if name.endswith("lora_A"))


def test_prefixes_take_no_position_of_the_text():
    """A text may fill all positions, and its first token stands at 0."""
    torch.manual_seed(0)
    model = adapt(GPT2ForSequenceClassification(tiny_config()), RunConfig(method="prefix")).eval()
    ids, lengths = torch.arange(1, 33)[None], torch.tensor([32])
    assert model.config.n_positions == 32
    before = plain_classify(model, ids, lengths)
    model.transformer.wpe.weight.data[0] += 1.0
    assert not torch.equal(plain_classify(model, ids, lengths), before)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"score.weight", "transformer.h.0.prefix", "transformer.h.1.prefix"}


def test_gpt2s_tokens_change_with_a_capital_and_a_space_and_the_bundled_ones_do_not(shared):
    gpt2 = GPT2Tokenizer(str(shared / "gpt2" / "vocab.json"), str(shared / "gpt2" / "merges.txt"))
    bundled, page = load_tokenizer(BUNDLED), read("questions-of-use")
    rows = [f"`{text}`" for text in ("it does n't work .", "It does n't work .", "It doesn't work.")]
    for row in rows:
        tokens = " ".join(gpt2.tokenize(row[1:-1])).replace("\u0120", "_")
        assert f"| {row} | `{tokens}` |" in page, tokens
    assert len({tuple(bundled(row[1:-1]).input_ids) for row in rows}) == 1
    assert gpt2.tokenize(" it")[0] != gpt2.tokenize("it")[0] and gpt2.tokenize("work . ")[-1] == "\u0120"
    assert bundled(" it ").input_ids == bundled("it").input_ids


def test_any_text_has_tokens_and_costs_what_the_page_says(shared):
    gpt2 = GPT2Tokenizer(str(shared / "gpt2" / "vocab.json"), str(shared / "gpt2" / "merges.txt"))
    bundled, page = load_tokenizer(BUNDLED), raw("your-own-data")
    rows = re.findall(r"^\| `(.+)` \| (\d+) \| (\d+) \| (\d+) \|$", page, re.M)
    assert len(rows) == 5
    for text, *told in rows:
        ids = gpt2(text).input_ids
        assert [str(len(one)) for one in (text.split(), ids, bundled(text).input_ids)] == told
        assert gpt2.decode(ids, clean_up_tokenization_spaces=False) == text
    every = "".join(map(chr, [*range(1, 0x3000), 0x1F3AC, 0x1F44D]))
    assert gpt2.decode(gpt2(every).input_ids, clean_up_tokenization_spaces=False) == every
    assert bundled.unk_token is None
    assert bundled("Schön \u201cso\u201d \u2013 \u2026").input_ids == bundled('schon "so" -- ...').input_ids


def test_the_two_bases_are_built_as_the_page_says(shared):
    page, counts = raw("bundle"), []
    configs = [GPT2Config.from_pretrained(BUNDLED_MODEL), GPT2Config()]
    for config in configs:
        with torch.device("meta"):
            model = GPT2ForSequenceClassification(config)
        counts.append(sum(p.numel() for p in model.transformer.parameters()))
    sizes = {"blocks": "n_layer", "width": "n_embd", "heads": "n_head"}
    sizes |= {"positions": "n_positions", "vocabulary": "vocab_size"}
    for row, name in sizes.items():
        assert "| {} | {:,} | {:,} |".format(row, *(getattr(config, name) for config in configs)) in page
    assert "| parameters | {:,} | {:,} |".format(*counts) in page
    assert f"{4 * counts[1] / 1e6:.0f} MB at least ({counts[1]:,} numbers" in page
    times = json.loads((DOCS.parent / "benchmarks" / "results" / "vs-peft-cpu.json").read_text("utf-8"))
    minutes = 2 * 67_349 * times["results"]["best"]["ours_ms_per_sentence"] / 60_000
    assert f"{minutes:.0f} minutes by arithmetic" in page
    for folder, told in (("gpt2", "a tokenizer of {:.1f} MB"), ("data/sst2", "SST-2\nis {:.1f} MB")):
        files = [path for path in (shared / folder).iterdir() if path.name != "config.json"]
        assert told.format(sum(path.stat().st_size for path in files) / 1e6) in page


def test_layernorms_that_learn_beside_lora_are_saved_loaded_and_merged(tiny_gpt2, tmp_path):
    """By the call on the page; the merged one is read by transformers' own forward pass."""
    assert 'modules_to_save=["ln_1", "ln_2", "ln_f", "score"])' in raw("commands")
    base, ids = copy.deepcopy(tiny_gpt2), torch.arange(1, 9)[None]
    whole = ["ln_1", "ln_2", "ln_f", "score"]
    model = inject_lora(tiny_gpt2, ["attn.c_attn"], rank=4, alpha=16, modules_to_save=whole)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = {name for name, _ in model.named_parameters() if ".ln_" in name}
    factors = {f"{name}.lora_{one}" for name, _ in lora_layers(model) for one in "AB"}
    assert learning == norms | factors | {"score.weight"}
    randomize_lora(model)
    for number, name in enumerate(sorted(norms)):
        parameter = model.get_parameter(name)
        parameter.data += 0.3 * normal(*parameter.shape, seed=number).to(parameter.dtype)
    expected = model.eval()(ids).logits
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(base, tmp_path / "adapter").eval()
    assert torch.equal(loaded(ids).logits, expected)
    torch.testing.assert_close(merge_lora(loaded)(ids).logits, expected, rtol=1e-5, atol=1e-5)
    small = GPT2Config()
    assert f"{(2 * small.n_layer + 1) * 2 * small.n_embd:,} numbers in GPT-2 small" in read("commands")


def test_a_bias_thawed_by_hand_is_saved_with_its_layer_and_not_of_one_under_lora(tiny_gpt2, tmp_path):
    base = copy.deepcopy(tiny_gpt2)
    model = inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=4, modules_to_save=["score"])
    layer = model.transformer.h[0].mlp.c_fc
    layer.bias.requires_grad_().data += 1
    save_adapter(model, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.0.mlp.c_fc"
    assert {one for one in stored if "mlp" in one} == {f"{name}.weight", f"{name}.bias"}
    assert torch.equal(load_adapter(base, tmp_path / "adapter").transformer.h[0].mlp.c_fc.bias, layer.bias)
    model.transformer.h[0].attn.c_attn.base_layer.bias.requires_grad_()
    with pytest.raises(UserError, match="stands under what learns whole and has LoRA"):
        save_adapter(model, tmp_path / "refused")


def words(text: str) -> tuple[str, ...]:
    """Letters and digits alone, in lower case."""
    return tuple(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


def test_what_sst2s_train_rows_share_with_its_validation_sentences(shared):
    dataset = load_dataset(str(shared / "data" / "sst2"))
    rows, sentences = map(words, dataset.train.sentences), list(map(words, dataset.validation.sentences))
    parts: dict[tuple[str, ...], set[int]] = {}
    for number, sentence in enumerate(sentences):
        for start in range(len(sentence)):
            for end in range(start + 1, len(sentence) + 1):
                parts.setdefault(sentence[start:end], set()).add(number)
    inside = [row for row in rows if row in parts]
    assert sorted(" ".join(one) for one in set(inside) & set(sentences)) == ["bad", "cool"]
    assert max(map(len, inside)) == 7
    longer = [row for row in inside if len(row) >= 5]
    told = f"{len(longer)} of the rows that have five words or more stand in {{}} of the validation sentences"
    assert told.format(len(set().union(*(parts[row] for row in longer)))) in read("published-table"), told


def test_the_published_row_without_training_called_106_sentences_positive():
    """The one way to answer 444 positive and 428 negative sentences that has that accuracy and F1."""
    found = {
        right + wrong
        for right in range(445)
        for wrong in range(429)
        if f"{100 * (right + 428 - wrong) / 872:.2f}" == "50.46"
        and f"{100 * 2 * right / (right + wrong + 444):.2f}" == "21.45"
    }
    (called,) = found
    assert f"this one called {called} of the 872 positive" in read("published-table")


def test_what_every_method_gets_wrong_in_numbers(shared):
    """Lengths and words of the sentences that the page of the comparison lists, and of the others."""
    missed = {int(n) - 1 for n in re.findall(r'class="number">(\d+)<', missed_rows())}
    sentences = load_dataset(str(shared / "data" / "sst2")).validation.sentences
    inside = [sentence for i, sentence in enumerate(sentences) if i in missed]
    others = [sentence for i, sentence in enumerate(sentences) if i not in missed]

    def length(side: list[str]) -> str:
        return f"{sum(len(sentence.split()) for sentence in side) / len(side):.1f}"

    def counts(pattern: str) -> list[int]:
        return [sum(bool(re.search(pattern, sentence)) for sentence in side) for side in (inside, others)]

    negated = counts(r"\b(not|no|never|nothing|none|neither|nor|without|hardly)\b|n't\b")
    turned = counts(r"\b(but|though|although|however|yet|despite)\b")
    told = (
        f"{length(inside)} words in the mean against {length(others)}.",
        f"stands in {negated[0]} of the {len(inside)} and in {negated[1]} of the other {len(others)};",
        f"and the like in {turned[0]} and in {turned[1]} (",
    )
    assert all(one in read("comparing") for one in told), told


@pytest.mark.usefixtures("few_sentences", "undrawn")
def test_more_data_for_a_finished_adapter_goes_on_from_it(tmp_path, monkeypatch, capsys, tiny_bundle):
    """The recipe of docs/resuming.md, then the lines of docs/commands.md on what it leaves."""
    monkeypatch.chdir(tmp_path)
    dataset = load_dataset("bundled")
    for name, split in (("reviews.csv", dataset.train), ("more_reviews.csv", dataset.validation)):
        with Path(name).open("w", newline="", encoding="utf-8") as file:
            rows = zip(split.sentences, (("bad", "good")[label] for label in split.labels), strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
    short = ["--precision", "fp32", "--max-steps", "4", "--batch-size", "8"]
    first = ["--model", "bundled", "--dataset", "reviews.csv", "--output-dir", "runs/reviews"]
    assert cli.main([*first, *short]) == 0
    ((_, commands),) = blocks("resuming", "More data for a finished adapter")
    for command in commands.strip().splitlines():
        arguments = shlex.split(command)[2:]
        at_zero = ["--lr", "1e-9"] if arguments[0].startswith("--") else []  # the start is what is looked at
        assert cli.main([*arguments, *(short if at_zero else []), *at_zero]) == 0, command
    old, new = load_adapted(Path("runs/reviews")), load_adapted(Path("runs/more"))
    torch.testing.assert_close(new.model.score.weight, old.model.score.weight, rtol=0, atol=1e-6)
    assert new.base_name.endswith("merged") and new.label_names == ["bad", "good"]
    ids, lengths = torch.arange(1, 7)[None], torch.tensor([6])
    logits = [plain_classify(one.model.eval(), ids, lengths) for one in (new, old)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    by_shape, other = (load_model("merged", names, 0) for names in (["good", "poor"], ["bad", "good"]))
    assert torch.equal(by_shape.score.weight, other.score.weight)
    again = load_adapter(load_model(BUNDLED, ["bad", "good"], 0), Path("runs/reviews"))
    learning = [name.split(".")[-1] for name, p in again.named_parameters() if p.requires_grad]
    assert sorted(learning) == ["lora_A", "lora_A", "lora_B", "lora_B", "weight"]
    assert torch.equal(again.score.weight, old.model.score.weight) and again.score.weight.requires_grad
    capsys.readouterr()
    (lines,) = [code for language, code in blocks("commands", "Classify from Python")]
    exec(compile(lines, "docs/commands.md", "exec"), {})
    shown = capsys.readouterr().out.strip().splitlines()
    assert cli.main(["predict", "--adapter", "runs/reviews", "--json", "a warm , funny film", "dull"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.strip().splitlines()]
    assert [line.split()[0] for line in shown] == [one["label"] for one in printed]
    assert [line.split()[1] for line in shown] == [f"{one['probability']:.2f}" for one in printed]

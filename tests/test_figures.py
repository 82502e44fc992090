"""The pictures of docs/ that tools/draw_figures.py draws: as it draws them, and true of GPT-2 small."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from conftest import randomize_lora, tiny_config
from test_methods import gpt2_small
from torch import nn
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import LoRALinear, RunConfig, adapt, inject_lora

ROOT = Path(__file__).parents[1]
DRAWN = runpy.run_path(str(ROOT / "tools" / "draw_figures.py"))
FIGURES = DRAWN["FIGURES"]
EACH = pytest.mark.parametrize("name", FIGURES)
SVG = "{http://www.w3.org/2000/svg}"


def words_of(name: str) -> str:
    """All that is written in a picture."""
    tree = ElementTree.fromstring((ROOT / "docs" / name).read_text(encoding="utf-8"))
    return "\n".join(letters.text for letters in tree.iter(f"{SVG}text"))


@EACH
def test_the_file_is_what_the_script_draws(name):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == FIGURES[name]()


@EACH
def test_a_picture_says_what_it_shows_and_stands_on_a_page_in_words(name):
    tree = ElementTree.fromstring((ROOT / "docs" / name).read_text(encoding="utf-8"))
    assert tree.get("role") == "img"
    assert len(tree.findtext(f"{SVG}title")) > 20 and len(tree.findtext(f"{SVG}desc")) > 100
    assert min(int(letters.get("font-size")) for letters in tree.iter(f"{SVG}text")) >= 15
    assert int(tree.get("width")) <= 480
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    (alternative,) = re.findall(rf"!\[([^\]]+)\]\({re.escape(name)}\)", pages)
    assert len(alternative) > 60


def test_shapes_and_counts_are_those_of_gpt2_smalls_c_attn():
    model = adapt(gpt2_small(), RunConfig(method="lora"))
    layer = model.transformer.h[0].attn.c_attn
    (out, r), (_, in_dim) = layer.lora_B.shape, layer.lora_A.shape
    drawn = (DRAWN[key] for key in ("OUT", "R", "IN", "BLOCKS"))
    assert (out, r, in_dim, len(model.transformer.h)) == tuple(drawn)
    learn, whole = layer.lora_A.numel() + layer.lora_B.numel(), layer.base_layer.weight.numel()
    assert f"{learn:,} numbers learn beside {whole:,}: {100 * learn / whole:.1f} %" in words_of("w0-a-b.svg")
    assert tuple(layer.base_layer.weight.shape) == (in_dim, out)  # the transpose of what is drawn
    assert f"Conv1D stores W0 as {in_dim} × {out}" in words_of("w0-a-b.svg")
    part = r * (in_dim + out // 3)  # an A and a B for one of q, k and v
    assert f"{3 * part:,} numbers;\nq and v alone: {2 * part:,}" in words_of("fused-c-attn.svg")
    assert f"{learn:,} numbers" in words_of("fused-c-attn.svg")


def test_an_a_for_each_part_is_a_block_diagonal_b():
    """Three layers side by side, each with its A and B, against one of three times the rank and alpha."""
    torch.manual_seed(0)
    parts = [LoRALinear(nn.Linear(6, 6, dtype=torch.float64), rank=2, alpha=5) for _ in range(3)]
    for part in parts:
        nn.init.normal_(part.lora_B)
    base = nn.Linear(6, 18, dtype=torch.float64)
    base.weight.data = torch.cat([part.base_layer.weight for part in parts])
    base.bias.data = torch.cat([part.base_layer.bias for part in parts])
    fused = LoRALinear(base, rank=6, alpha=15)
    fused.lora_A.data = torch.cat([part.lora_A for part in parts])
    fused.lora_B.data = torch.block_diag(*(part.lora_B for part in parts))
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(
        fused(x), torch.cat([part(x) for part in parts], dim=1), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("target", "lowest"), [("attn.c_attn", 0), ("h.2.attn.c_attn", 2)])
def test_backward_ends_at_the_lowest_adapter(target, lowest):
    """What is computed before it needs no gradient; A, B and the head get one, and nothing else."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(n_layer=4))
    inject_lora(model, [target], rank=2, alpha=4, modules_to_save=["score"])
    randomize_lora(model)
    needs = []
    for name, module in model.named_modules():
        if (
            not name.endswith((".h", "attn"))
            and isinstance(module, nn.Module)
            and not list(module.children())
        ):
            module.register_forward_hook(lambda _, __, y, name=name: needs.append((name, y.requires_grad)))
    model(input_ids=torch.arange(1, 9)[None]).logits.sum().backward()
    order = [name for name, _ in needs]
    first = order.index(f"transformer.h.{lowest}.attn.c_attn.base_layer")
    assert not any(needed for _, needed in needs[: first + 1])
    assert all(needed for name, needed in needs[first + 1 :] if "lora_dropout" not in name)
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    adapted = range(4) if lowest == 0 else [lowest]
    assert got == {
        "score.weight",
        *(f"transformer.h.{i}.attn.c_attn.lora_{matrix}" for i in adapted for matrix in "AB"),
    }


def test_the_tensors_that_get_a_gradient_are_counted_right():
    parameters = list(adapt(gpt2_small(), RunConfig(method="lora")).parameters())
    learning = sum(parameter.requires_grad for parameter in parameters)
    assert f"{learning} of {len(parameters)} tensors get a gradient" in words_of("where-gradients-stop.svg")

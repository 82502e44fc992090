"""The worked example of docs/by-hand.md and the arithmetic of docs/memory.md, each number anew."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy
import pytest
import torch
from test_methods import gpt2_small
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_from_scratch import LoRALinear, RunConfig, adapt, merged
from lora_from_scratch.compare.accounting import account_model

DOCS = Path(__file__).parents[1] / "docs"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@cache
def page() -> tuple[dict[str, object], list[tuple[str, object, list[float]]]]:
    """What the page's code computes, by name; and each line that says its value, with value and words."""
    names: dict[str, object] = {}
    said = []
    text = (DOCS / "by-hand.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M):
        for line in block.splitlines():
            exec(line, names)
            code, _, value = line.partition("  # = ")
            if value:
                name, assigned, _ = code.partition(" = ")
                found = names[name] if assigned else eval(code, names)
                said.append((code, found, [float(number) for number in NUMBER.findall(value)]))
    return names, said


def test_the_page_computes_what_it_says():
    _, said = page()
    assert len(said) >= 18
    for code, found, numbers in said:
        numpy.testing.assert_allclose(numpy.ravel(found), numbers, rtol=1e-12, atol=1e-12, err_msg=code)


def layer_of(kind: type, dtype: torch.dtype = torch.float64) -> LoRALinear:
    """The page's layer before its first step."""
    names, _ = page()
    W0 = torch.tensor(names["W0"], dtype=dtype)
    base = nn.Linear(3, 3, bias=False, dtype=dtype) if kind is nn.Linear else Conv1D(3, 3).to(dtype)
    base.weight.data = W0 if kind is nn.Linear else W0.T.contiguous()
    layer = LoRALinear(base, rank=1, alpha=2)
    layer.lora_A.data = torch.tensor(names["A"], dtype=dtype)
    return layer


def is_on_the_page(found: torch.Tensor, name: str, atol: float = 1e-12) -> None:
    numpy.testing.assert_allclose(found.detach(), page()[0][name], rtol=1e-12, atol=atol, err_msg=name)


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_the_layer_of_core_gives_the_same_numbers(kind):
    names, _ = page()
    x, target = torch.tensor(names["x"]), torch.tensor(names["target"])

    def backward(layer: LoRALinear, h_name: str, loss_name: str) -> None:
        h = layer(x)
        loss = ((h - target) ** 2).sum() / 2
        loss.backward()
        is_on_the_page(h, h_name)
        is_on_the_page(loss, loss_name)

    layer = layer_of(kind)
    optimizer = torch.optim.SGD([layer.lora_A, layer.lora_B], lr=0.05)
    backward(layer, "h", "loss")
    is_on_the_page(layer.lora_B.grad, "dB")
    is_on_the_page(layer.lora_A.grad, "dA")
    optimizer.step()
    optimizer.zero_grad()
    is_on_the_page(layer.lora_A, "A1")
    is_on_the_page(layer.lora_B, "B1")
    delta = layer.delta_weight()
    is_on_the_page(delta if kind is nn.Linear else delta.T, "delta")
    backward(layer, "h1", "loss1")
    is_on_the_page(layer.lora_B.grad, "dB1")
    is_on_the_page(layer.lora_A.grad, "dA1")
    plain = layer.merge()
    is_on_the_page(plain.weight if kind is nn.Linear else plain.weight.T, "W")
    is_on_the_page(plain(x), "h2")

    layer = layer_of(kind)
    optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=0.05, weight_decay=0.01)
    backward(layer, "h", "loss")
    optimizer.step()
    is_on_the_page(layer.lora_A, "A_adam")
    is_on_the_page(layer.lora_B, "B_adam", atol=1e-9)  # AdamW divides by the size plus 1e-8


def test_subtracting_does_not_undo_a_merge_in_fp32_and_merged_does():
    names, _ = page()
    layer = layer_of(nn.Linear, torch.float32)
    layer.lora_B.data = torch.tensor(names["B1"], dtype=torch.float32)
    model, W0 = nn.Sequential(layer), layer.base_layer.weight.detach().clone()
    with merged(model):
        whole = model[0].weight.detach().clone()
    assert torch.equal(model[0].base_layer.weight, W0)
    back = whole - layer.delta_weight()
    assert torch.equal(back, torch.from_numpy(names["back"])) and not torch.equal(back, W0)


def sums() -> list[tuple[str, float, str]]:
    """The lines of the account by hand: its label, what its left side comes to, and its right side."""
    text = (DOCS / "memory.md").read_text(encoding="utf-8")
    section = text[text.index("## By hand") :].split("\n## ")[0]
    found = []
    for block in re.findall(r"^```text\n(.*?)^```", section, re.S | re.M):
        for line in block.splitlines():
            left, value = line.rsplit(" = ", 1)
            *label, product = re.split(r"\s{2,}", left.strip())
            terms = product.replace(",", "").replace("·", "*").replace("^", "**")
            found.append((" ".join(label), eval(terms), value.strip().removesuffix(" GiB")))
    return found


def test_the_account_by_hand_comes_to_what_it_says():
    lines = sums()
    assert len(lines) >= 14
    for label, found, value in lines:
        assert (f"{found:.3f}" if "." in value else f"{found:,}") == value, label


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_account_by_hand_is_gpt2_smalls(method):
    """Against the account that is held to real steps to the byte."""
    model = adapt(gpt2_small(), RunConfig(method=method))
    accounted = account_model(model, 16, 128, as_on_a_gpu=True)
    lines = {label.split()[-1]: value for label, _, value in sums() if label.startswith(method)}
    for part in ("weights", "gradients", "moments"):
        assert lines[part] == f"{accounted[part]:,}"
    together = sum(accounted[part] for part in ("weights", "gradients", "moments"))
    assert lines["together"] == f"{together / 2**30:.3f}"
    if method == "lora":
        (blocks,) = (found for label, found, _ in sums() if label == "12 blocks")
        assert blocks == pytest.approx(accounted["activations"] / 2**30, rel=2e-3)

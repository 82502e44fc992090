"""The house as DESIGN draws it: imports run downwards, the core stands alone, no room is too large."""

from __future__ import annotations

import ast
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from transformers import GPT2ForSequenceClassification, get_scheduler

import lora_from_scratch
from lora_from_scratch.compare.cells import ROOMS
from lora_from_scratch.methods import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lora_from_scratch"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FLOORS = [  # each may import from those before it, and within itself
    {"errors", "version"},
    {"core"},
    {"base", "data"},
    {"fast"},
    {"formats", "methods"},
    {"train"},
    {"runs"},
    {"compare", "lens"},
    {"report"},
    {"cli", "__main__"},
]


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, inside functions too; not those for type checkers."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module.startswith("lora_from_scratch")
            and node not in typing
        ):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
        assert not (isinstance(node, ast.Import) and any("lora_from_scratch" in a.name for a in node.names))
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name != "lora_from_scratch"])
def test_imports_run_downwards(module):
    for imported in imports(MODULES[module]):
        assert imported != "lora_from_scratch", f"{module} imports the package's face"
        assert floor(imported) <= floor(module), f"{module} imports {imported} from a floor above"


def test_the_core_imports_nothing_of_the_package_but_errors():
    for module, path in MODULES.items():
        if ".core" in module:
            assert {name.split(".")[1] for name in imports(path)} <= {"core", "errors"}, module


def test_there_is_no_circle():
    left = {module: imports(path) - {module} for module, path in MODULES.items()}
    while left:
        free = {module for module, needed in left.items() if not needed & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {module: needed for module, needed in left.items() if module not in free}


def test_no_module_and_no_function_is_too_long():
    for path in [*MODULES.values(), ROOT / "run.py", *(ROOT / "tools").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, f"{path}: {node.name}"
    core = sum(path.read_text().count("\n") for module, path in MODULES.items() if ".core" in module)
    assert core <= 450


def test_a_cell_is_named_by_the_code_of_every_room_that_computes():
    """`formats` reads and writes what a run leaves, which cells are made without."""
    below = set().union(*FLOORS[: floor("lora_from_scratch.compare")])
    assert set(ROOMS) == below - {"errors", "version", "formats"}


def test_methods_are_known_by_name_in_their_own_room_alone():
    """Nobody else asks `if method == "lora"`: a comparison or a table with a method's name is a defect."""
    names = set(METHODS)
    for module, path in MODULES.items():
        if ".methods" in module:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = [
                *getattr(node, "comparators", []),
                *getattr(node, "keys", []),
                *getattr(node, "elts", []),
            ]
            spelled = {part.value for part in parts if isinstance(part, ast.Constant)}
            assert not spelled & (names - {"none"}), f"{module}, line {node.lineno}"


def test_the_core_alone_trains_and_evaluates(monkeypatch):
    """Imported anew, where nothing else of the package can be imported."""
    monkeypatch.setattr(lora_from_scratch, "core", None, raising=False)  # put back afterwards
    for name in MODULES:
        if ".core" in name:
            monkeypatch.delitem(sys.modules, name, raising=False)
        elif name not in ("lora_from_scratch", "lora_from_scratch.errors"):
            monkeypatch.setitem(sys.modules, name, None)
    from lora_from_scratch.core.loop import Batch, TrainState, predict, train
    from lora_from_scratch.core.surgery import inject_lora

    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(vocab_size=20, n_positions=8))
    inject_lora(model, ["c_attn"], rank=2, alpha=4, modules_to_save=["score"])
    ids = torch.randint(1, 20, (16, 6))
    batch = Batch(ids, torch.full((16,), 6), ids[:, 5] % 2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    schedule = get_scheduler("constant", optimizer)
    state = TrainState(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))
    losses = [step.loss.item() for step in train(state, [[batch]] * 200)]
    (logits,) = predict(model, [batch])
    assert losses[0] > 0.5 and losses[-1] < 0.1, losses
    assert logits.argmax(1).tolist() == batch.labels.tolist()


def test_libraries_of_which_a_late_interface_is_used_have_a_lower_bound():
    """`safe_open(..., backend=...)`, by which weights are read or mapped, came with safetensors 0.8."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = [line.partition(">=") for line in config["options"]["install_requires"].split()]
    bounds = {name: tuple(map(int, at_least.split("."))) for name, _, at_least in required if at_least}
    assert bounds.keys() == {"torch", "transformers", "safetensors"} and bounds["safetensors"] >= (0, 8)

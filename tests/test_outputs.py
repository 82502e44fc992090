"""The folder of a run: nothing of an earlier run outlives it, nothing of anybody else's is touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_from_scratch import RunConfig, UserError, run
from lora_from_scratch.model import BUNDLED_MODEL
from lora_from_scratch.outputs import check_folder, write_run

QUICK = RunConfig(
    model="bundled", dataset="bundled", device="cpu", precision="fp32", limit_train=16, max_steps=1
)
FIGURES = {"results.json", "metrics.jsonl"}
CHECKPOINT = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
LEFT = {
    "none": FIGURES,
    "head": FIGURES | {"training.png", "README.md", "head.safetensors"},
    "full": FIGURES | {"training.png", "README.md"} | CHECKPOINT,
    "lora": FIGURES | {"training.png", "README.md", "adapter_config.json", "adapter_model.safetensors"},
}
LEFT["prelayer"] = LEFT["lora"]


@pytest.fixture(scope="module")
def results():
    return {method: run(replace(QUICK, method=method)) for method in LEFT}


def test_each_run_leaves_its_own_files_and_none_of_the_run_before(results, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for method in ("lora", "full", "head", "prelayer", "none"):
        check_folder(tmp_path)
        names = write_run(results[method], tmp_path)
        assert set(names) == LEFT[method]
        assert {path.name for path in tmp_path.iterdir()} == LEFT[method] | {"notes.txt"}
        assert json.loads((tmp_path / "results.json").read_text())["files"] == names


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "adapter_config.json"])
def test_files_of_somebody_else_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds a {name} that is no earlier run's"):
        check_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": ["../outside"]}'])
def test_a_results_file_that_lists_nothing_usable(results, tmp_path, text):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(text)
    write_run(results["none"], folder)
    assert outside.read_text() == "mine"


def test_random_weights_are_not_saved(tmp_path):
    result = run(replace(QUICK, random_init=True))
    assert set(write_run(result, tmp_path)) == FIGURES | {"training.png"}


def test_a_base_folder_is_named_so_that_it_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(BUNDLED_MODEL)
    write_run(run(replace(QUICK, model="base")), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(BUNDLED_MODEL.resolve())


@pytest.mark.parametrize("method", ["head", "full", "lora", "prelayer"])
def test_the_card_says_what_how_and_how_to_load_it(results, tmp_path, method):
    write_run(results[method], tmp_path)
    card = (tmp_path / "README.md").read_text()
    opening, front, body = card.split("---\n", 2)
    assert opening == ""
    keys = dict(line.split(": ", 1) for line in front.splitlines() if ": " in line)
    assert keys["base_model"] == '"bundled"'
    assert keys["library_name"] == ("peft" if method in ("lora", "prelayer") else "transformers")
    for key in ("tags:\n- text-classification", 'datasets:\n- "bundled"', "metrics:\n- accuracy\n- f1"):
        assert key in front
    values = results[method].as_dict()
    for said in (
        f"{values['accuracy']:.2f} ±",
        f"{values['trainable_parameters']:,}",
        f"learning rate {values['config']['lr']:g}",
        "mini-gpt2 (bundled)",
        "negative or positive",
        "1 steps of 16 sentences",
        values["data"]["fingerprint"][:16],
        "run.py predict --adapter .",
        "pipeline(",
    ):
        assert said in body, said
    assert ("PeftModel.from_pretrained" in body) == (method in ("lora", "prelayer"))
    assert "None" not in card and "TODO" not in card and "{" not in card


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
def test_the_cards_code_for_peft_runs(results, tmp_path, monkeypatch):
    """What the card tells a reader to paste gives the logits of the model that was trained."""
    peft = pytest.importorskip("peft")
    result = results["lora"]
    write_run(result, tmp_path)
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "README.md").read_text().split("In PEFT:\n\n```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], peft.PeftModel)
    input_ids = torch.arange(5, 15)[None]
    ours = result.prepared.model.eval()
    with torch.no_grad():
        expected, got = ours(input_ids=input_ids).logits, names["model"](input_ids=input_ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

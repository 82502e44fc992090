"""inspect and truncate, from a tiny run's folder to the page: every figure is the record's."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from browser import picture_boxes, views
from safetensors.torch import load_file, save_file
from small_runs import write_base, write_sentences
from test_cli import BUNDLED, fails
from test_page import Page
from torch import nn

from lora_from_scratch.cli import main as cli
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.formats.peft import save_adapter
from lora_from_scratch.formats.tensors import read_tensors
from lora_from_scratch.report import drawing
from lora_from_scratch.report.lens_page import write_lens

PICTURES = ["spectrum", "amplification", "cosines", "truncation", "overlap"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, undrawn) -> Path:
    """Runs of a few steps on a tiny base; `other` is LoRA of another rank and seed."""
    folder = tmp_path_factory.mktemp("runs")
    base, rows = write_base(folder / "base"), write_sentences(folder / "reviews.csv")
    common = ["--model", str(base), "--dataset", str(rows), "--device", "cpu", "--precision", "fp32"]
    common += ["--max-steps", "6", "--batch-size", "4", "--lr", "1e-2"]
    wide = ["--target-modules", "attn.c_attn", "mlp.c_proj", "--rank"]
    for name, flags in {
        "lora": ["--method", "lora", *wide, "3", "--alpha", "5"],
        "other": ["--method", "lora", *wide, "2", "--seed", "1"],
        "elsewhere": ["--method", "lora", "--target-modules", "attn.c_proj"],
        "apart": ["--method", "lora", "--target-modules", "attn.c_attn:q,v", "--rank", "3"],
        "full": ["--method", "full"],
        "prefix": ["--method", "prefix"],
        "prelayer": ["--method", "prelayer"],
    }.items():
        assert cli.main([*common, *flags, "--output-dir", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def records(runs) -> dict[str, dict]:
    """lens.json of LoRA beside two others, and of full fine-tuning alone."""
    found = {}
    for name, beside in (("lora", ["other", "full"]), ("full", [])):
        out = runs / f"lens-{name}"
        flags = ["--beside", *(str(runs / one) for one in beside)] if beside else []
        assert cli.main(["inspect", "--adapter", str(runs / name), *flags, "--output-dir", str(out)]) == 0
        found[name] = json.loads((out / "lens.json").read_text())
    return found


@pytest.fixture(scope="module")
def pages(runs, records) -> dict[str, Page]:
    """What a reader of each page finds."""
    return {name: Page((runs / f"lens-{name}" / "lens.html").read_text(encoding="utf-8")) for name in records}


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """What is not about pictures does not wait for them."""
    monkeypatch.setattr(drawing, "available", lambda: False)


def alts(page: Page) -> dict[str, str]:
    """What each picture says in words, by its name."""
    told = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    return dict(zip(PICTURES, told, strict=False))


def test_the_record_holds_what_the_run_measured(runs, records):
    for name, lens in records.items():
        results, measured = json.loads((runs / name / "results.json").read_text()), lens["measured"]
        assert measured["sentences"] == results["data"]["validation_sentences"] == 2
        whole = measured["kept"][-1]
        assert whole["accuracy"] == results["accuracy"]
        assert whole["loss"] == pytest.approx(results["evaluation"]["loss"], abs=1e-5)
        assert [point["scale"] for point in measured["scaled"]] == [0, 0.5, 1, 1.5, 2]
        assert whole.items() >= {k: v for k, v in measured["scaled"][2].items() if k != "scale"}.items()
        assert len(measured["left_out"]) == len(lens["adapters"][0]["layers"])
    lora, full = (records[name]["adapters"][0] for name in ("lora", "full"))
    assert lora["low_rank"] and [layer["rank"] for layer in lora["layers"]] == [3] * 4
    assert not full["low_rank"] and {layer["rank"] for layer in full["layers"]} == {16}
    assert [one["label"] for one in records["lora"]["adapters"]] == ["lora", "other", "full"]
    other, beside_full = records["lora"]["overlaps"]
    assert len(other["layers"][0]["of_update"]) == 3 and len(other["layers"][0]["of_update"][0]) == 2
    assert other["layers"][0]["of_A"] and beside_full["layers"][0]["of_A"] is None


def test_every_figure_of_the_tables_is_the_records(records, pages):
    for name, lens in records.items():
        page, adapter = pages[name], lens["adapters"][0]
        for row, layer in zip(page.tables["layer-table"], adapter["layers"], strict=True):
            cells = [cell.strip() for cell in row]
            assert cells[0] == layer["layer"] and float(cells[1]) == pytest.approx(layer["norm"], rel=5e-3)
            assert float(cells[2].split()[0]) == pytest.approx(
                100 * layer["norm"] / layer["base_norm"], abs=0.06
            )
            assert cells[3] == str(layer["rank"]) and cells[4] == f"{layer['effective_rank']:.2f}"
            first = 100 * layer["singular_values"][0] ** 2 / layer["norm"] ** 2
            assert cells[5] == f"{first:.1f} %"
            assert (cells[6] != "\u2013") == layer["layer"].endswith("c_attn")
            assert cells[9] == str(layer["intruders"])
        for table, key in (("kept", "directions"), ("scaled", "scale"), ("left-out", "layer")):
            points = lens["measured"][table.replace("-", "_")]
            for row, point in zip(page.tables[table], points, strict=True):
                assert row[0].strip() == f"{point[key]:g}" if key != "layer" else point[key]
                assert row[-2].split()[0] == f"{point['accuracy']:.2f}"
                assert row[-1].strip() == f"{point['loss']:.4f}"
        assert ("adapters" in page.tables) == (len(lens["adapters"]) > 1)
        for number, overlap in enumerate(lens["overlaps"], 1):
            for row, one in zip(page.tables[f"overlap-{number}"], overlap["layers"], strict=True):
                assert row[1].startswith(f"{one['of_update'][0][0]:.3f} (by chance {1 / one['width']:.3f}")
                assert row[2].startswith(f"{one['of_update'][0][-1]:.3f}")


def test_each_picture_says_in_words_what_it_shows(records, pages):
    lens, letters = records["lora"], "\n".join(pages["lora"].letters)
    found = alts(pages["lora"])
    assert list(found) == PICTURES and list(alts(pages["full"])) == PICTURES[:-1]
    for layer in lens["adapters"][0]["layers"]:
        assert f"{layer['layer']}: the largest {layer['singular_values'][0]:.3g}" in found["spectrum"]
        assert f"effective rank {layer['effective_rank']:.1f} of 3" in letters
        along = layer["amplification"]
        assert f"of the update {along['by_update']:.3g}" in found["amplification"]
        assert f"{along['factor']:.3g} times" in letters
    for point in lens["measured"]["kept"]:
        told = f"{point['directions']} kept: {point['accuracy']:.2f} %, loss {point['loss']:.4f}"
        assert told in found["truncation"]
    for adapter in lens["adapters"]:
        count = sum(layer["intruders"] for layer in adapter["layers"])
        assert f"{adapter['label']}: {count} of {10 * len(adapter['layers'])} are" in letters
    phi = [layer["of_update"] for layer in lens["overlaps"][0]["layers"]]
    mean = sum(one[1][1] for one in phi) / len(phi)
    assert f"{mean:.3f} at k = 2" in found["overlap"]


def test_the_page_is_whole_safe_and_readable_by_whoever(pages):
    for page in pages.values():
        tags, held = [tag for tag, _ in page.tags], [attributes for _, attributes in page.tags]
        assert {"script", "img", "link", "iframe"}.isdisjoint(tags)
        assert not any(name.startswith("on") or name == "src" for attributes in held for name in attributes)
        assert ("html", {"lang": "en"}) in page.tags and {"header", "main", "footer", "nav"} <= set(tags)
        levels = [level for level, _ in page.headings]
        assert levels.count(1) == 1 and levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert tags.count("table") == tags.count("caption")
        assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
        assert tags.count("svg") == sum(a.get("role") == "img" for a in held)
        ids = [attributes["id"] for attributes in held if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {a["href"][1:] for a in held if a.get("href", "")[:1] == "#"} <= set(ids)
        assert {a["href"] for a in held if a.get("href", "#")[0] != "#"} == set()
        named = "".join(str(value) for attributes in held for value in attributes.values())
        assert set(re.findall(r"url\(#([^)]+)\)", named)) <= set(ids)


def test_equal_inputs_give_equal_bytes(runs, records, tmp_path):
    import matplotlib

    flags = ["--beside", str(runs / "other"), str(runs / "full"), "--output-dir", str(tmp_path)]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert cli.main(["inspect", "--adapter", str(runs / "lora"), *flags]) == 0
    names = sorted(path.name for path in (runs / "lens-lora").iterdir())
    assert names == sorted(["lens.html", "lens.json", *(f"{name}.png" for name in PICTURES)])
    for name in names:
        assert (tmp_path / name).read_bytes() == (runs / "lens-lora" / name).read_bytes(), name


def test_without_matplotlib_there_are_numbers_and_one_line_says_so(records, tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert write_lens(records["lora"], tmp_path) == ["lens.html", "lens.json"]
    page = Page((tmp_path / "lens.html").read_text(encoding="utf-8"))
    assert "svg" not in [tag for tag, _ in page.tags]
    assert "".join(page.text).count("There are no pictures: matplotlib is not installed.") == 1
    assert json.loads((tmp_path / "lens.json").read_text()) == records["lora"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
def test_where_updates_lie_stacked_both_ranks_are_told(runs, tmp_path, no_pictures, capsys):
    """q and v have rank 3 each, PEFT's file one of rank 6; beside a run whose files have its own."""
    out = ["--output-dir", str(tmp_path / "out")]
    runs_of = [str(runs / name) for name in ("apart", "lora")]
    assert cli.main(["inspect", "--adapter", runs_of[0], "--beside", runs_of[1], *out]) == 0
    assert capsys.readouterr().out.startswith("lora, rank 6 (--rank 3): ")
    page = Page((tmp_path / "out" / "lens.html").read_text(encoding="utf-8"))
    assert [row[1].strip() for row in page.tables["adapters"]] == ["lora, rank 6 (--rank 3)", "lora, rank 3"]
    for name, told in zip(runs_of, (True, False), strict=True):
        assert cli.main(["explain", "--adapter", name, "so good"]) == 0
        assert ("the run had --rank 3" in " ".join(capsys.readouterr().out.split())) == told


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers
def test_truncate_writes_an_adapter_that_peft_reads(runs, records, tmp_path, capsys):
    import peft
    from transformers import AutoModelForSequenceClassification

    assert (
        cli.main(["truncate", "--adapter", str(runs / "lora"), "--rank", "2", "--out", str(tmp_path / "two")])
        == 0
    )
    whole = records["lora"]["adapters"][0]
    lost = (1 - whole["energy"][2]) ** 0.5
    assert f"rank 2 of 3, {100 * lost:.3g} % of the update's norm lost" in capsys.readouterr().out
    ours = load_adapted(tmp_path / "two")
    assert ours.label_names == ["dull", "good"] and {layer.rank for _, layer in lora_layers(ours.model)} == {
        2
    }
    before, after = (
        read_tensors(folder / "adapter_model.safetensors")[1] for folder in (runs / "lora", tmp_path / "two")
    )
    kept = {"base_weights", "base_config", "tokenizer", "labels"}
    assert {key: before[key] for key in kept} == {key: after[key] for key in kept}
    base = AutoModelForSequenceClassification.from_pretrained(runs / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "two")).eval()
    ids = torch.tensor([[5, 9, 77, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=ids).logits, ours.model(input_ids=ids).logits, rtol=0, atol=1e-5
        )


def test_a_truncated_adapter_finds_its_base_from_elsewhere(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    flags = ["--adapter", "lora", "--model", "./base", "--rank", "1", "--out", str(tmp_path / "one")]
    assert cli.main(["truncate", *flags]) == 0
    monkeypatch.chdir(tmp_path)
    assert load_adapted("one").base_name == str((runs / "base").resolve())


@pytest.mark.filterwarnings("always::UserWarning")  # to be printed, not raised
def test_truncating_to_the_rank_there_is_copies_and_warns(runs, tmp_path, capsys):
    flags = ["--adapter", str(runs / "lora"), "--rank", "3", "--out", str(tmp_path / "same")]
    assert cli.main(["truncate", *flags]) == 0
    said = capsys.readouterr()
    assert "warning: --rank 3: no layer of" in said.err and "0 % of the update's norm lost" in said.out
    one, other = (
        read_tensors(folder / "adapter_model.safetensors") for folder in (runs / "lora", tmp_path / "same")
    )
    assert one[1] == other[1] and all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())


def test_a_truncated_adapter_and_a_merged_one_can_be_inspected_too(runs, tmp_path, no_pictures):
    for command, flags in (("truncate", ["--rank", "1"]), ("merge", [])):
        assert (
            cli.main([command, "--adapter", str(runs / "lora"), *flags, "--out", str(tmp_path / command)])
            == 0
        )
        where = ["--dataset", str(runs / "reviews.csv"), "--output-dir", str(tmp_path / f"lens-{command}")]
        base = ["--model", str(runs / "base")] if command == "merge" else []
        assert cli.main(["inspect", "--adapter", str(tmp_path / command), *base, *where]) == 0
    small, merged = (
        json.loads((tmp_path / f"lens-{command}" / "lens.json").read_text())
        for command in ("truncate", "merge")
    )
    assert [layer["rank"] for layer in small["adapters"][0]["layers"]] == [1] * 4
    assert small["measured"]["sentences"] == 16  # every row of a file that is named
    ranks = {layer["layer"]: layer["rank"] for layer in merged["adapters"][0]["layers"]}
    assert {rank for name, rank in ranks.items() if name.endswith(("c_attn", "mlp.c_proj"))} == {3}
    assert {rank for name, rank in ranks.items() if not name.endswith(("c_attn", "mlp.c_proj"))} == {0}


@pytest.mark.filterwarnings("always::UserWarning")
def test_without_sentences_the_matrices_are_inspected_all_the_same(runs, tmp_path, capsys, no_pictures):
    shutil.copytree(runs / "lora", tmp_path / "bare")
    (tmp_path / "bare" / "results.json").unlink()
    assert (
        cli.main(["inspect", "--adapter", str(tmp_path / "bare"), "--output-dir", str(tmp_path / "out")]) == 0
    )
    said = capsys.readouterr().err
    assert "no accuracy is measured" in said and "--dataset" in said
    lens = json.loads((tmp_path / "out" / "lens.json").read_text())
    assert lens["measured"] is None and len(lens["adapters"][0]["layers"]) == 4
    assert "kept" not in Page((tmp_path / "out" / "lens.html").read_text(encoding="utf-8")).tables


@pytest.mark.filterwarnings("always::UserWarning")
def test_sentences_are_cut_where_the_run_cut_its_own(runs, tmp_path, undrawn, no_pictures):
    common = ["--model", str(runs / "base"), "--dataset", str(runs / "reviews.csv"), "--device", "cpu"]
    common += ["--precision", "fp32", "--max-steps", "6", "--batch-size", "4", "--lr", "1e-2"]
    assert cli.main([*common, "--max-length", "1", "--output-dir", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["data"]["validation_truncated"] > 0
    losses = []
    for name, flags in (("as-trained", []), ("longer", ["--max-length", "16"])):
        where = ["--adapter", str(tmp_path / "run"), *flags, "--output-dir", str(tmp_path / name)]
        assert cli.main(["inspect", *where]) == 0
        lens = json.loads((tmp_path / name / "lens.json").read_text())
        losses.append(lens["measured"]["kept"][-1]["loss"])
    assert losses[0] == pytest.approx(record["evaluation"]["loss"], abs=1e-5)
    assert abs(losses[1] - losses[0]) > 1e-3


def test_an_adapter_whose_every_b_is_zero_has_nothing_to_inspect(runs, tmp_path, capsys):
    """As of a run whose head alone has learned."""
    read = load_adapted(runs / "other")
    for _, layer in lora_layers(read.model):
        nn.init.zeros_(layer.lora_B)
    save_adapter(read.model, tmp_path / "zero", read.base_name, read.tokenizer)
    told = fails(
        capsys, "inspect", "--adapter", str(tmp_path / "zero"), "--output-dir", str(tmp_path / "out")
    )
    assert told.endswith("zero: there is nothing to inspect: every B A is zero, so none of it has learned")


def test_mistakes_end_in_one_line(runs, tmp_path, capsys):
    out = ["--output-dir", str(tmp_path / "out")]

    def line(*arguments: object) -> str:
        return fails(capsys, *map(str, arguments))

    for name in ("prefix", "prelayer"):
        assert f"{name}: there is nothing to inspect" in line("inspect", "--adapter", runs / name, *out)
        told = line("truncate", "--adapter", runs / name, "--rank", 1, "--out", tmp_path / "x")
        assert f"{name}: there is nothing to truncate" in told
    told = line("truncate", "--adapter", runs / "full", "--rank", 1, "--out", tmp_path / "x")
    assert "full: there is nothing to truncate" in told
    adapter = ["inspect", "--adapter", runs / "lora"]
    told = line(*adapter, "--beside", runs / "elsewhere", *out)
    assert "elsewhere adapts no layer that" in told
    assert "--output-dir" in line(*adapter)
    assert "--beside nowhere: no such folder" in line(*adapter, "--beside", "nowhere", *out)
    told = line(*adapter, "--beside", runs / "prefix", *out)
    assert "prefix: there is nothing to inspect" in told
    for rank in (0, -1):
        told = line("truncate", "--adapter", runs / "lora", f"--rank={rank}", "--out", tmp_path / "x")
        assert f"--rank must be at least 1, not {rank}" in told
    told = line("truncate", "--adapter", runs / "lora", "--rank", 1, "--out", runs / "other")
    assert "is not an empty folder" in told
    assert "no such file or folder" in line(*adapter, "--dataset", "gone.csv", *out)
    (tmp_path / "odd.csv").write_text("text,label\nfine,splendid\n")
    assert "'splendid' is none of 'dull', 'good'" in line(*adapter, "--dataset", tmp_path / "odd.csv", *out)
    shutil.copytree(runs / "full", tmp_path / "nameless")
    (tmp_path / "nameless" / "results.json").unlink()
    told = line("inspect", "--adapter", tmp_path / "nameless", *out)
    assert "does not say of which base: name it with --model" in told
    shutil.copytree(runs / "base", tmp_path / "near")
    weights = load_file(tmp_path / "near" / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"] += 0.01
    save_file(weights, tmp_path / "near" / "model.safetensors", {"format": "pt"})
    for base in ("bundled", tmp_path / "near"):  # of other shapes, of other weights
        told = line("inspect", "--adapter", runs / "full", "--model", base, *out)
        assert "is not the base that it was trained on; name its own with --model" in told
    assert not (tmp_path / "out").exists() and not (tmp_path / "x").exists()


def test_another_base_beside_is_refused(runs, tmp_path, capsys):
    base = write_base(tmp_path / "base", n_layer=3)
    flags = [
        "--model",
        str(base),
        "--dataset",
        str(runs / "reviews.csv"),
        "--max-steps",
        "2",
        "--device",
        "cpu",
    ]
    flags += ["--precision", "fp32", "--lr", "1e-2", "--output-dir", str(tmp_path / "foreign")]
    assert cli.main(flags) == 0
    beside = ["--beside", str(tmp_path / "foreign"), "--output-dir", str(tmp_path / "out")]
    assert "is on another base than" in fails(capsys, "inspect", "--adapter", str(runs / "lora"), *beside)


@pytest.mark.usefixtures("few_sentences", "undrawn")
def test_a_run_on_the_bundle_is_inspected_from_end_to_end(tmp_path, capsys, no_pictures):
    flags = ["--method", "lora", "--limit-train", "64", "--max-steps", "4", "--lr", "5e-3"]
    assert cli.main([*BUNDLED, *flags, "--output-dir", str(tmp_path / "run")]) == 0
    (tmp_path / "few.csv").write_text("text,label\na warm film,positive\ndull,negative\n")
    capsys.readouterr()
    where = ["--dataset", str(tmp_path / "few.csv"), "--output-dir", str(tmp_path / "lens")]
    assert cli.main(["inspect", "--adapter", str(tmp_path / "run"), *where]) == 0
    said, lens = capsys.readouterr().out, json.loads((tmp_path / "lens" / "lens.json").read_text())
    (adapter,) = lens["adapters"]
    assert adapter["model"] == "mini-gpt2 (bundled)" and adapter["trained_on"] == "mini-reviews (bundled)"
    assert [layer["shape"] for layer in adapter["layers"]] == [[768, 256]] * 4
    assert [layer["rank"] for layer in adapter["layers"]] == [4] * 4
    assert lens["measured"]["sentences"] == 2 and lens["measured"]["dataset"].endswith("few.csv")
    assert "| h.0.attn.c_attn" in said and said.splitlines()[-1].startswith("written     ")


def test_the_page_in_a_browser(runs, records):
    for shown in views(runs / "lens-lora" / "lens.html"):
        boxes = picture_boxes(shown)
        assert len(boxes) == len(PICTURES) and all(box["width"] > 300 for box in boxes)

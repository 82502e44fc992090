"""docs/your-own-data.md as somebody follows it: each command and each line of Python, in order."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from lora_from_scratch.cli import main as cli
from lora_from_scratch.data.dataset import load_dataset

PAGE = Path(__file__).parents[1] / "docs" / "your-own-data.md"


def write(path: Path, rows: list[tuple[str, int]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review_text", "verdict"])
        writer.writerows([number, text, ("bad", "good")[label]] for number, (text, label) in enumerate(rows))


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.usefixtures("few_sentences", "undrawn")
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bundled = load_dataset("bundled")
    for name, split in (("reviews.csv", bundled.train), ("new_reviews.csv", bundled.validation)):
        write(tmp_path / name, list(zip(split.sentences, split.labels, strict=True)))
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    said = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), {})
            said["pipeline" if "pipeline" in block else "wrong"] = capsys.readouterr().out
            continue
        for command in block.strip().splitlines():
            assert command.startswith(".venv/bin/python run.py "), command
            arguments = shlex.split(command)[2:]
            if arguments[0].startswith("--"):
                arguments += ["--precision", "fp32", "--max-steps", "8"]
            elif arguments[0] == "compare":  # 27 runs
                arguments += ["--dry-run"]
            assert cli.main(arguments) == 0, command
            captured = capsys.readouterr()
            said[command] = captured.out + captured.err

    pipeline, listed = said.pop("pipeline"), said.pop("wrong").splitlines()
    look, rates, train, few, head, text, table, measured, merged = said.values()
    assert "baseline    always saying " in look and "bad (" in look and "good (" in look
    assert "plan        for each 5 rates (up to 7) with one seed, the best 3 with 2 more" in rates
    assert "plan        9 variants x 3 seeds" in few
    results = json.loads((tmp_path / "runs" / "reviews" / "results.json").read_text())
    assert results["config"]["epochs"] == 32 and results["data"]["label_names"] == ["bad", "good"]
    assert results["data"]["train_sentences"] == 36 and "baseline" in train and "baseline" in head
    assert text.split("\t")[0] in ("bad", "good")
    with (tmp_path / "labelled.csv").open(newline="", encoding="utf-8") as file:
        labelled = list(csv.DictReader(file))
    assert list(labelled[0]) == ["id", "review_text", "verdict", "predicted_label", "probability"]
    assert len(labelled) == 20 and "labelled.csv" in table
    right = sum(row["verdict"] == row["predicted_label"] for row in labelled)
    assert f"{100 * right / 20:.2f} (" in measured  # the accuracy that evaluate gives
    sure = [float(line.split()[0]) for line in listed]
    assert sure == sorted(sure, reverse=True) and 0 < len(listed) == 20 - right
    told = {f"{row['probability']} {row['verdict']} {row['review_text']}" for row in labelled}
    assert set(listed) <= told
    assert "flipped predictions 0" in merged and re.search(r"'label': '(bad|good)'", pipeline)
    assert "were trained on" not in measured
    assert cli.main(["evaluate", "--adapter", "runs/reviews", "--dataset", "reviews.csv",
                     "--text-column", "review_text", "--label-column", "verdict"]) == 0  # fmt: skip
    assert "warning: 36 of 40 sentences were trained on" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "runs")  # from another folder, by another path
    assert cli.main(["evaluate", "--adapter", "reviews", "--dataset", "../reviews.csv",
                     "--text-column", "review_text", "--label-column", "verdict"]) == 0  # fmt: skip
    assert "warning: 36 of 40 sentences were trained on" in capsys.readouterr().err

"""Every sentence that bad input is answered with: to be read from top to bottom.

A row is what somebody did (arguments of `run.py`, after files were put into an empty folder) and the whole
line that answers it. An error ends with exit status 2 and leaves nothing behind; a warning lets the command
go on. No line has more than 200 characters, and each ends in what to do.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lora_from_scratch.cli import main as cli


class Case(NamedTuple):
    """What somebody did, and the line on stderr."""

    name: str
    arguments: str  # of run.py, split as a shell does
    answer: str  # "error: ..." or "warning: ..."
    files: dict[str, str | bytes] | Callable[[], None] | None = None  # put into the folder first


LOAD = "--model bundled --dry-run --dataset "

ROWS: list[Case] = []

LABELS: list[Case] = []

HUB: list[Case] = []

ADAPTERS: list[Case] = []

AFTERWARDS: list[Case] = []

FRONT_DOOR: list[Case] = []

TRAIN = "--model bundled --dataset . --method full --device cpu --precision fp32"
Y = "y" * 27
SIX_A = "text\tlabel\n" + "fine\ta\n" * 6
SAME = {"train.tsv": SIX_A + "fine\tb\n" * 2, "dev.tsv": SIX_A + "fine\tb\n" * 4}
APART = {
    "train.tsv": "text\tlabel\n" + "a masterpiece\ta\nso dull\tb\n" * 4,
    "dev.tsv": "text\tlabel\n" + "a masterpiece\ta\n" * 3 + "so dull\tb\n" * 2,
}

FRONT_DOOR += [
    Case(
        "a positive class that is none",
        f"{LOAD}bundled --positive-class Positive",
        "error: --positive-class 'Positive': there is no such label; choose one of 'negative', 'positive'",
    ),
    Case(
        "a positive class among many, by its number",
        f"{LOAD}moods.csv --positive-class 1",
        "error: --positive-class '1': there is no such label; choose one of 'angry', 'calm', 'glad', ...",
        {
            "moods.csv": "text,label\n"
            + "".join(f"x,{mood}\n" * 3 for mood in ("calm", "angry", "sad", "glad"))
        },
    ),
    Case(
        "a positive class as long as a page",
        f"{LOAD}mine.csv --positive-class {'x' * 999}",
        f"error: --positive-class '{'x' * 27}...': there is no such label; choose one of '{Y}...', 'z'",
        {"mine.csv": "text,label\n" + f"a,{'y' * 999}\nb,z\n" * 5},
    ),
    Case(
        "a result no better than the commonest class",
        f"{TRAIN} --epochs 4 --lr 1e-3",
        "warning: accuracy 60.00 % (31.3 to 83.2) does not beat always saying 'a' (60.00 %): "
        "train longer (--epochs) or take another --lr",
        SAME,
    ),
    Case(
        "a result on too few sentences",
        f"{TRAIN} --epochs 8 --lr 1e-3",
        "warning: accuracy 100.00 % (56.6 to 100.0) is not shown to beat always saying 'a' (60.00 %): "
        "measure on more sentences",
        APART,
    ),
]


@pytest.mark.parametrize(
    "case", ROWS + LABELS + HUB + ADAPTERS + AFTERWARDS + FRONT_DOOR, ids=lambda c: c.name
)
def test_the_sentence(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if callable(case.files):
        case.files()
    else:
        for name, content in (case.files or {}).items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))
    try:
        status = cli.main(shlex.split(case.arguments))
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "warning: "))
    ]
    assert case.answer in lines
    assert len(case.answer) <= 200
    if case.answer.startswith("error: "):
        assert (status, lines) == (2, [case.answer])
        assert sorted(tmp_path.rglob("*")) == before

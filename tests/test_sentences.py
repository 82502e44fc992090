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

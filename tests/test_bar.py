"""How often a progress bar prints, by a clock that stands still between two steps."""

from __future__ import annotations

import ast
import io
import sys
import time
from contextlib import redirect_stderr
from itertools import pairwise

import pytest
from test_house import MODULES, ROOT

from lora_from_scratch.train.bar import Bar


class Screen(io.StringIO):
    """Notes when what was printed."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal, self.now = is_terminal, time.time()
        self.prints: list[tuple[float, str]] = []

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        if text.strip():
            self.prints.append((self.now, text.strip()))
        return super().write(text)

    def gaps(self) -> list[float]:
        return [after - before for (before, _), (after, _) in pairwise(self.prints)]


@pytest.fixture(params=[True, False], ids=["terminal", "log"])
def screen(request, monkeypatch) -> Screen:
    made = Screen(request.param)
    monkeypatch.setattr("tqdm.std.time", lambda: made.now)
    return made


def test_it_prints_ten_times_a_second_or_once_in_ten_seconds(screen):
    every, seconds = (0.1, 5) if screen.is_terminal else (10.0, 500)
    started, steps = screen.now, 2000
    with redirect_stderr(screen):
        for _ in Bar(range(steps), desc="train"):
            screen.now += seconds / steps
    assert screen.prints[0][0] - started == pytest.approx(every, abs=every / 20)
    *gaps, last = screen.gaps()
    assert min(gaps) >= every and len(gaps) >= 45
    assert f"{steps}/{steps}" in screen.prints[-1][1] and last <= every  # its end, at once


def test_what_is_over_at_once_prints_nothing(screen):
    with redirect_stderr(screen):
        for _ in range(100):
            for _ in Bar(range(3), desc="evaluate", leave=False):
                screen.now += 0.02 if screen.is_terminal else 3
    assert not screen.prints


def test_a_bar_that_does_not_stay_is_taken_away(screen):
    with redirect_stderr(screen):
        for _ in Bar(range(30), desc="evaluate", leave=False):
            screen.now += 1
    assert screen.prints
    assert not screen.getvalue().rpartition("it/s]")[2].strip(" \r")  # it is blanked
    assert screen.getvalue().endswith(" \r")


def test_a_log_waits_where_a_terminal_is_told_at_once(screen):
    """What is beside the bar changes, and lines are written above it, by every second or so."""
    with redirect_stderr(screen), Bar(total=100, bar_format="{n_fmt}/{total_fmt}{postfix}") as bar:
        for number in range(100):
            bar.set_postfix_str(f"run {number}")
            screen.now += 1
            Bar.write(f"done {number}", file=sys.stderr)
            bar.update()
    lines = [text for _, text in screen.prints if "done" in text]
    assert len(lines) == 100
    screen.prints = [(when, text) for when, text in screen.prints if "done" not in text]
    if screen.is_terminal:
        assert len(screen.prints) > 200
    else:
        *gaps, _ = screen.gaps()
        assert min(gaps) >= 10 and len(gaps) >= 4


def test_a_bar_that_was_shown_ends_its_line_though_nothing_moved_it(screen):
    """Interrupted in its first run: what is told next begins a line of its own."""
    with redirect_stderr(screen), Bar(total=3) as bar:
        bar.set_postfix_str("run 0")
        screen.now += 0.05
    assert screen.getvalue().endswith("\n") == screen.is_terminal == bool(screen.prints)


def test_every_bar_is_this_one():
    for path in [*MODULES.values(), *(ROOT / "tools").glob("*.py")]:
        if path.name != "bar.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert getattr(node, "module", "") != "tqdm" and getattr(node, "id", "") != "tqdm", path

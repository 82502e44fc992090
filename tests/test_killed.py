"""SIGKILL at random moments: what was killed goes on until it ends, as if nobody had killed it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from forks import in_a_fork

ROOT = Path(__file__).parents[1]


def killed_twenty_times(out: str) -> None:
    """The script that does it a thousand times."""
    sys.path.insert(0, "benchmarks")
    sys.argv = ["benchmarks/killed_a_thousand_times.py", "--kills", "20", "--out", out]
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.mark.skipif(not hasattr(sys, "abiflags"), reason="this system cannot fork")
def test_twenty_kills_change_not_a_bit(tmp_path):
    """A fork of one process with everything loaded is a leg."""
    out = tmp_path / "killed.json"
    done = in_a_fork(killed_twenty_times, out, folder=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {row["method"]: row["kills"] for row in found["results"]} == dict.fromkeys(
        ("lora", "full", "prelayer", "prefix"), 5
    )
    assert found["differing"] == 0 and found["trainings"] >= 4
    assert found["kills_inside_a_write"] and found["resumed_from_a_checkpoint"]

"""SIGKILL at random moments: what was killed goes on until it ends, as if nobody had killed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(sys, "abiflags"), reason="this system cannot fork")
def test_twenty_kills_change_not_a_bit(tmp_path):
    """By the script that does it a thousand times: a fork of one process with everything loaded is a leg."""
    out = tmp_path / "killed.json"
    command = [sys.executable, "benchmarks/killed_a_thousand_times.py", "--kills", "20", "--out", str(out)]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}  # else another copy of the package, if one is installed
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {row["method"]: row["kills"] for row in found["results"]} == dict.fromkeys(
        ("lora", "full", "prelayer", "prefix"), 5
    )
    assert found["differing"] == 0 and found["trainings"] >= 4
    assert found["kills_inside_a_write"] and found["resumed_from_a_checkpoint"]

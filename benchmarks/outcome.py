"""How a benchmark ends: one JSON line, and with `--out FILE` the same as a file with command, date and place.

Not a benchmark itself. What stands in `results/` is written here, never by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from lora_from_scratch.train.device import environment, resolve_device

# What holds PyTorch and oneDNN to the instructions of an older CPU, part of the command where it is set.
HELD_TO = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=_new_file, metavar="FILE", help="write the results there too")


def finish(out: Path | None, results: object, **about: object) -> None:
    """Print the results as one JSON line; `about` goes with them, and into the file before them."""
    about = {"environment": _environment(), **about}
    print(json.dumps({**about, "results": results}))
    if out:
        told = [word for before, word in pairwise(sys.argv) if "--out" not in (before, word)]
        held_to = [f"{name}={os.environ[name]}" for name in HELD_TO if name in os.environ]
        command = shlex.join([*held_to, "python", f"benchmarks/{Path(sys.argv[0]).name}", *told])
        whole = {"command": command, "date": date.today().isoformat(), **about, "results": results}
        out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _environment() -> dict[str, object]:
    here = environment(resolve_device("auto"))
    return {**here, "peft": version("peft")} if find_spec("peft") else here


def _new_file(name: str) -> Path:
    """Refused before hours of measuring rather than after them."""
    path = Path(name)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{name} is not a file in a folder that is there")
    return path

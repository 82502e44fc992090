"""Damaged files, at random: each loads clean, or is refused in one sentence. Nothing else is ever raised.

    python tests/fuzz.py --cases 2000 [--only NAME ...] [--first SEED]

A property draws a case from a seed (`make`: files by name) and holds the package to it (`check`: whether
it loaded; raises `Finding`). `tests/test_fuzz.py` runs a few hundred cases of each, this script any number:
it ends in one line a property, or at the first finding, of which it prints the bytes.
"""

from __future__ import annotations

import argparse
import base64
import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fuzz_folders
import fuzz_rows
from fuzz_files import Files, Finding

SECONDS = 20  # that a case may take: more than a thousand times what it does take
ROOM = 4 << 30  # bytes that may be asked for beside what the libraries hold


class Property(NamedTuple):
    make: Callable[[random.Random], Files]
    check: Callable[[Files], bool]


PROPERTIES = {
    **{name: Property(fuzz_rows.maker(name), fuzz_rows.check) for name in fuzz_rows.FORMATS},
    **{name: Property(folder.make, folder.check) for name, folder in fuzz_folders.FOLDERS.items()},
}


def case(name: str, seed: int) -> Files:
    """The files of a seed; of the same one always the same."""
    return PROPERTIES[name].make(random.Random(f"{name} {seed}"))


def prepare(folder: Path) -> None:
    """Write what the cases of folders are made of, and go there, so that paths in sentences are short."""
    os.chdir(folder)
    fuzz_folders.write()


def run(name: str, seeds: range) -> tuple[int, int]:
    """How many cases loaded, and how many were refused. Of one that raises, the bytes are printed."""
    loaded = 0
    signal.signal(signal.SIGALRM, _stop)
    for seed in seeds:
        files = case(name, seed)
        signal.alarm(SECONDS)
        # The alarm waits for C to return; this does not.
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=sys.__stderr__)
        try:
            loaded += PROPERTIES[name].check(files)
        except BaseException:  # a panic of Rust's is no Exception
            print(f"--only {name} --first {seed} --cases 1")
            print(*(f"{file}: {_shown(contents)}" for file, contents in files.items()), sep="\n")
            raise
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
    return loaded, len(seeds) - loaded


def _shown(contents: bytes) -> str:
    if len(contents) < 4000:
        return repr(contents)
    packed = base64.b64encode(zlib.compress(contents)).decode()
    return f"zlib.decompress(base64.b64decode({packed!r}))"


def _stop(*_: object) -> None:
    raise Finding(f"not done after {SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="of each property (default: 2000)")
    parser.add_argument("--only", nargs="+", choices=PROPERTIES, default=list(PROPERTIES), metavar="NAME")
    parser.add_argument("--first", type=int, default=0, help="seed of the first case (default: 0)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk takes longer than the rest
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory))
    print(f"in {folder}; a process that dies leaves its last case there", flush=True)
    try:
        prepare(folder)
        for name in arguments.only:  # once, before memory is counted
            run(name, range(10**9, 10**9 + 20))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, resource.RLIM_INFINITY))
        for name in arguments.only:
            start = time.perf_counter()
            loaded, refused = run(name, range(arguments.first, arguments.first + arguments.cases))
            each = (time.perf_counter() - start) / max(arguments.cases, 1)
            line = f"{name:<10} {loaded + refused:>7,} cases {loaded:>7,} loaded {refused:>7,} refused"
            print(f"{line} {each * 1000:6.1f} ms each", flush=True)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        os.chdir("/")
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

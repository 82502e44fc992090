"""PyTorch and transformers take seconds to import: less of them, and somebody who is told."""

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lora_from_scratch.cli.one_line import speaks

PATIENCE = 1.0  # seconds that nothing is said for


@contextmanager
def importing() -> Iterator[None]:
    """Where PyTorch is imported within the block, Python does not look for garbage there.

    Modules stay as long as the process, and each look at their objects finds that anew: a sixth of the time
    of these imports. Afterwards it looks at what is newer alone.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def told_while(what: str, unless: bool = False) -> Iterator[None]:
    """Once the block has taken a second a line on the terminal says what is done; it is gone at the end.

    Nothing is told to a file or a pipe. What is written meanwhile takes the line's place.
    """
    if unless or not speaks() or not sys.stderr.isatty():
        yield
        return
    line, told = f"{what} ...", threading.Event()

    def tell() -> None:
        told.set()
        print(line, end="\r", file=sys.stderr, flush=True)

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if told.is_set():
            print(" " * len(line), end="\r", file=sys.stderr, flush=True)

"""Memory that was freed goes back to the system, where the C library would keep it for the next to ask."""

import ctypes
import sys


def give_back_freed() -> None:
    """Lower what is resident by what was freed in between what is still in use; glibc alone can do that.

    It keeps freed pieces of up to 32 MB, which weights are, until everything behind them is freed too.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)

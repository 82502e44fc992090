"""Ctrl-C and SIGTERM as a wish that training grants after its step; a second one acts at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lora_from_scratch.train.processes import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A training that was stopped between two steps; what it says tells how to go on."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = number

    @property
    def exit_status(self) -> int:
        """What shells show for a process that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal


@dataclass
class Wish:
    """Whether somebody wants the training to stop: the number of the signal."""

    signal: int | None = None


@contextmanager
def listening() -> Iterator[Wish]:
    """Within the block the first signal becomes a wish, and the next one does what it did before.

    Of several processes, which torchrun signals once more, each keeps listening: torchrun itself ends those
    that take too long. Outside the main thread, where Python lets nobody listen, there is never a wish.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def note(number: int, frame: FrameType | None) -> None:
        wish.signal = number
        if processes().count == 1:
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not one of Python's

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, `&`
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield wish
    finally:
        restore()

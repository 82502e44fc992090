"""The progress bar of everything that takes long."""

import sys

from tqdm import tqdm

TERMINAL, LOG = 0.1, 10.0  # seconds between two prints


class Bar(tqdm):
    """A bar on stderr, for a terminal ten times a second at most, for a log (a file, a pipe) once in ten seconds.

    What is over before its first print was due prints nothing; otherwise a bar that stays prints its end too.
    """

    def __init__(self, *args: object, **options: object) -> None:
        terminal = sys.stderr.isatty()
        every = TERMINAL if terminal else LOG
        super().__init__(*args, mininterval=every, maxinterval=LOG, delay=every, **options)
        self._pause = 0.0 if terminal else LOG
        self._next = self._time() + self._pause if not self.disable else 0.0

    def refresh(self, *args: object, **options: object) -> bool | None:
        """Print it: a text beside it is new, or a line was written in its place. In a log it waits its turn."""
        if self.disable or (now := self._time()) < self._next:
            return False
        self._next = now + self._pause
        self.delay = 0  # `close` leaves alone what it thinks was never shown
        return super().refresh(*args, **options)

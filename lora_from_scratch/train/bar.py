"""The progress bar of everything that takes long."""

import sys

from tqdm import tqdm

TERMINAL, LOG = 0.1, 10.0  # seconds between two prints


class Bar(tqdm):
    """A bar on stderr, ten times a second at most on a terminal, else (in a log) once in ten seconds.

    What is over before its first print was due prints nothing; any other bar that stays prints its end too.
    """

    def __init__(self, *args: object, **options: object) -> None:
        terminal = sys.stderr.isatty()
        every = TERMINAL if terminal else LOG
        super().__init__(*args, mininterval=every, maxinterval=LOG, delay=every, **options)
        self._pause = 0.0 if terminal else LOG
        self._next = self._time() + self._pause if not self.disable else 0.0

    def refresh(self, *args: object, **options: object) -> bool | None:
        """Print it: its text is new, or a line took its place. A log waits until it is due."""
        if self.disable or (now := self._time()) < self._next:
            return False
        self._next = now + self._pause
        self.delay = 0  # `close` leaves alone what it thinks was never shown
        return super().refresh(*args, **options)

"""Signals that ask a training to save and end."""

from __future__ import annotations

import signal
import time
from typing import Any


class Interruption:
    """SIGTERM and SIGUSR1 ask for a checkpoint and an end after the present step; a second one, seconds later, ends at once
    (a launcher forwards what its process group has had already)."""

    AGAIN_SECONDS = 5.0

    def __init__(self) -> None:
        self.now, self._first = False, 0.0
        self._before: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGUSR1):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread: the caller handles signals
                return

    def restore(self) -> None:
        """The handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.now and time.monotonic() - self._first > self.AGAIN_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.now:
            self.now, self._first = True, time.monotonic()

"""End a run on Ctrl-C or SIGTERM after the step in progress, with a checkpoint.

A second Ctrl-C ends the run at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Stopping:
    """A context in which the first SIGINT or SIGTERM sets ``asked``; the process continues."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())  # type: ignore[arg-type]

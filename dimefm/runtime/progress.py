"""One progress bar; without a terminal (a cluster's log file), a line every half minute instead."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from dimefm.runtime import console

EVERY = 30.0  # seconds between lines without a terminal


class Progress:
    """Counts to ``total`` units; use as a context manager. ``quiet`` shows nothing, nor does a
    quiet :mod:`~dimefm.runtime.console`."""

    def __init__(self, total: int, name: str, unit: str, done: int = 0, quiet: bool = False):
        quiet = quiet or console.is_quiet()
        self.lines = not quiet and not sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=unit,
            unit_scale=total > 10_000,
            disable=quiet or self.lines,
        )
        self.name = name
        self.unit = unit
        self.total = total
        self.done = done
        self.first = done
        self.note = ""
        self.started = time.monotonic()
        self.printed = self.started

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        with unless_hung_up():
            self.bar.close()

    def update(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more units; ``note`` replaces the text behind the bar."""
        self.done += count
        if note is not None:
            self.note = note
        with unless_hung_up():
            self._show(count, note)

    def _show(self, count: int, note: str | None) -> None:
        if note is not None:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self.lines and now - self.printed >= EVERY:
            self.printed = now
            print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        """Return the line that stands for the bar where there is no terminal."""
        rate = (self.done - self.first) / (now - self.started)
        left = "time left unknown"
        if rate:
            seconds = (self.total - self.done) / rate
            left = f"{seconds:,.0f} s left"
        line = (
            f"{self.name}: {self.done:,} of {self.total:,} {self.unit}s, {rate:,.1f}"
            f" {self.unit}s/s, {left}"
        )
        if self.note:
            line += f", {self.note}"
        return line


@contextlib.contextmanager
def unless_hung_up() -> Iterator[None]:
    """Let a line for people be lost when their terminal is gone; the work goes on."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise

"""One progress bar; where there is no terminal (a cluster's log file), a line every half minute
instead.
"""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between lines without a terminal


class Progress:
    """Counts to ``total`` units; use as a context manager. ``quiet`` shows nothing."""

    def __init__(self, total: int, name: str, unit: str, done: int = 0, quiet: bool = False):
        self.lines = not quiet and not sys.stderr.isatty()
        hidden = quiet or self.lines
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=unit,
            unit_scale=total > 10_000,
            disable=hidden,
        )
        self.name, self.unit, self.total, self.done, self.first = name, unit, total, done, done
        self.note = ""
        self.started = self.spoken = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def update(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more units; ``note`` replaces the text behind the bar."""
        self.done += count
        if note is not None:
            self.note = note
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self.lines and now - self.spoken >= EVERY:
            self.spoken = now
            rate = (self.done - self.first) / (now - self.started)
            left = f"{(self.total - self.done) / rate:,.0f} s left" if rate else "time left unknown"
            text = (
                f"{self.name}: {self.done:,} of {self.total:,} {self.unit}s, {rate:,.1f}"
                f" {self.unit}s/s, {left}"
            )
            print(f"{text}{', ' + self.note if self.note else ''}", file=sys.stderr, flush=True)

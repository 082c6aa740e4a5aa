"""The engine that is this process.

Several such processes, started by torchrun or by hand, share the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from dimefm.extract.job import Extraction
from dimefm.extract.sharding import Share


def run(extraction: Extraction, share: Share, echo: Callable[[str], None]) -> None:
    """Do this process's share of ``extraction``; ``echo`` prints a report for the user."""
    sources = extraction.open()
    encoders = extraction.load()
    if share.rank == 0:
        for encoder in encoders:
            weights = str(encoder.card.weights_sha256)[:12]
            line = f"teacher {encoder.card.name} (weights {weights}) on {encoder.device}"
            print(line, file=sys.stderr)
            for note in encoder.notes:
                print(note, file=sys.stderr)
    for report in extraction.run(encoders, sources, share):
        text = report.describe()
        if share.ranks > 1:
            text = f"rank {share.rank}: {text}"
        echo(text)

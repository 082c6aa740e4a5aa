"""The engine that is this process; started several times, by torchrun or by hand, its processes
share the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from dimefm.extract.job import Extraction
from dimefm.extract.sharding import Share


def run(extraction: Extraction, share: Share, echo: Callable[[str], None]) -> None:
    """Do this process's share of ``extraction``; ``echo`` gets what people want to read about
    it.
    """
    sources, encoders = extraction.open(), extraction.load()
    for encoder in encoders if share.rank == 0 else ():
        weights = str(encoder.card.weights_sha256)[:12]
        print(
            f"teacher {encoder.card.name} (weights {weights}) on {encoder.device}", file=sys.stderr
        )
    for report in extraction.run(encoders, sources, share):
        echo(report.describe() if share.ranks == 1 else f"rank {share.rank}: {report.describe()}")

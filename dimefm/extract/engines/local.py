"""The engine that is this process.

Several such processes, started by torchrun or by hand, share the work.
"""

from __future__ import annotations

from collections.abc import Callable

from dimefm.extract.job import Extraction
from dimefm.extract.report import Report
from dimefm.extract.sharding import Share
from dimefm.runtime import console


def run(extraction: Extraction, share: Share, echo: Callable[[str], None]) -> list[Report]:
    """Do this process's share of ``extraction`` and return its reports; ``echo`` prints one."""
    sources = extraction.open()
    encoders = extraction.load()
    if share.rank == 0:
        for encoder in encoders:
            weights = str(encoder.card.weights_sha256)[:12]
            console.note(f"teacher {encoder.card.name} (weights {weights}) on {encoder.device}")
            for line in encoder.notes:
                console.note(line)
    reports = []
    for report in extraction.run(encoders, sources, share):
        text = report.describe()
        if share.ranks > 1:
            text = f"rank {share.rank}: {text}"
        echo(text)
        reports.append(report)
    return reports

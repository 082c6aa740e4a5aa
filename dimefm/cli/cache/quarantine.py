"""``dimefm cache quarantine``."""

from __future__ import annotations

from collections import Counter

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result
from dimefm.cli.cache import caches
from dimefm.runtime import console


@click.command(
    "quarantine",
    context_settings=CONTEXT,
    short_help="List the quarantined rows of a cache, with reasons.",
)
@click.argument("root")
@click.option(
    "--summary", is_flag=True, help="Count the rows of each source instead of listing them."
)
def command(root, summary):
    """List the quarantined rows of the cache at ROOT: source, row, key, reason, tab-separated.

    dimefm extract-features --retry-bad tries them again.

    Example: dimefm cache quarantine cache/images
    """
    from dimefm.cache import Manifest
    from dimefm.cache.quarantine import quarantined
    from dimefm.storage.stores import open_store

    listed: dict[str, list[dict]] = {}
    for folder in caches(root):
        store = open_store(folder)
        manifest = Manifest.read(store)
        bad_rows = list(quarantined(store, manifest))
        count = len(bad_rows)
        total = manifest.rows + count
        console.note(f"{folder}: {count:,} of {total:,} rows quarantined")
        listed[str(folder)] = []
        if summary:
            counts = Counter(source for source, _ in bad_rows)
            for source, source_count in counts.most_common():
                result(f"{source_count}\t{source}")
                listed[str(folder)].append({"source": source, "rows": source_count})
            continue
        for source, bad in bad_rows:
            reason = " ".join(bad.reason.split())
            result(f"{source}\t{bad.row}\t{bad.key}\t{reason}")
            entry = {"source": source, "row": bad.row, "key": bad.key, "reason": reason}
            listed[str(folder)].append(entry)
    return listed

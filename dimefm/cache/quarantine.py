"""The quarantined rows of a cache, with their reasons."""

from __future__ import annotations

from collections.abc import Iterator

from dimefm.cache.manifest import Manifest
from dimefm.cache.plan import QUARANTINE
from dimefm.cache.writer import Bad
from dimefm.errors import CacheError
from dimefm.storage.small_files import parse_json
from dimefm.storage.stores import Store


def quarantined(store: Store, manifest: Manifest) -> Iterator[tuple[str, Bad]]:
    """Yield (source, row) of every quarantined row, in the manifest's order.

    The manifest has the row numbers, ``quarantine.jsonl`` has the keys and reasons; for a row that
    it does not list, the reason says so. Raises CacheError when a line of it cannot be read.
    """
    listed: dict[tuple[str, int], Bad] = {}
    try:
        lines = (store.read(QUARANTINE) or "").splitlines()
    except UnicodeDecodeError as error:
        raise CacheError(
            f"{store.where(QUARANTINE)}: cannot be read ({error}). Fix: restore the file"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            fields = parse_json(line)
            listed[fields["source"], fields["row"]] = Bad(
                fields["row"], str(fields["key"]), str(fields["reason"])
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CacheError(
                f"{store.where(QUARANTINE)}, line {number}: cannot be read ({error}). Fix: restore"
                " the file"
            ) from error
    for shard in manifest.shards:
        for row in shard.bad:
            bad = listed.get((shard.source, row))
            if bad is None:
                bad = Bad(row, "", f"not listed in {QUARANTINE}")
            yield shard.source, bad

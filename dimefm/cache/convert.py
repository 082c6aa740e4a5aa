"""The same cache in another format or dtype. Its fingerprint stays: what was computed is the
same.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.cache.int8 import QuantizerFitter
from dimefm.cache.manifest import Manifest
from dimefm.cache.plan import SYNONYMS, text_of, write_lock
from dimefm.cache.quarantine import quarantined
from dimefm.cache.reader import FeatureCache
from dimefm.cache.writer import Bad, CacheWriter
from dimefm.errors import CacheError


def convert(
    cache: FeatureCache,
    out: str | Path,
    format_: str | None = None,
    dtype: str | None = None,
    scratch: str | None = None,
) -> Manifest:
    """Write ``cache`` to ``out`` in another format, losslessly, or dtype, and return the new
    manifest.

    None keeps what it is. An int8 code is fitted on every row, so nothing lies outside it.
    Interrupted, the same call goes on. Raises CacheError when a shard is damaged, ``out`` holds
    another cache, or the format cannot hold a key.
    """
    old = cache.manifest
    dtype, format_ = dtype or old.dtype, format_ or old.format
    plugins.module("caches", format_, CacheError)
    if str(out).rstrip("/") == str(cache.store).rstrip("/"):
        raise CacheError(f"{out}: is the cache to convert; give another folder")
    header = dataclasses.replace(
        old, format=format_, dtype=dtype, shards=(), code=old.code if dtype == "int8" else None
    )
    if dtype == "int8" and old.dtype != "int8":
        fit = QuantizerFitter(old.rows)
        for info in old.shards:
            for _, rows in cache.blocks(info):
                fit.add(rows)
        code = fit.code(margin=0)
        header = dataclasses.replace(
            header,
            code=code.fields(),
            quantization_error=fit.quantization_error(code, old.encoder.logit_scale),
        )
    sources = [(info.source, info.source_rows) for info in old.shards]
    digests = {info.source: info.source_digest for info in old.shards}
    with write_lock(out, shared=False, scratch=scratch):
        made = _convert(cache, CacheWriter(out, header, sources, digests, scratch=scratch))
    if made.fingerprint != old.fingerprint:
        raise CacheError(
            f"{out}: fingerprint {made.fingerprint[:12]}, expected {old.fingerprint[:12]};"
            " remove it"
        )
    return made


def _convert(cache: FeatureCache, writer: CacheWriter) -> Manifest:
    """Write every shard that is not there yet, and seal."""
    bad: dict[str, list[Bad]] = {}
    for source, row in quarantined(cache.store, cache.manifest):
        bad.setdefault(source, []).append(row)
    for info in cache.manifest.shards:
        if info.source not in writer:
            with writer.row_buffer(info.source) as spool:
                for keys, rows in cache.blocks(info):
                    spool.add(keys, _as(cache, rows, writer.header.dtype))
                writer.write(info.source, spool.keys, spool.rows(), bad.get(info.source, ()))
    table = text_of(cache.store, SYNONYMS)
    if table is not None:
        writer.store.write(SYNONYMS, table)
    return writer.seal()


def _as(cache: FeatureCache, rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return stored rows as they are when the dtype stays, else as floats."""
    return rows if dtype == cache.manifest.dtype or cache.code is None else cache.code.decode(rows)

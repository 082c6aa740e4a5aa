"""Writing a cache in another format or dtype; its fingerprint stays the same."""

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
    """Write ``cache`` to ``out`` in another format or dtype and return the new manifest.

    A format or dtype of None stays as it is; another format is lossless. An int8 code is fitted on
    every row, so no row lies outside it. After an interruption the same call resumes. Raises
    CacheError when a shard is damaged, ``out`` holds another cache, or the format cannot hold a
    key.
    """
    old = cache.manifest
    dtype = dtype or old.dtype
    format_ = format_ or old.format
    plugins.module("caches", format_, CacheError)
    if str(out).rstrip("/") == str(cache.store).rstrip("/"):
        raise CacheError(f"{out}: is the cache to convert. Fix: give another folder")
    header = dataclasses.replace(old, format=format_, dtype=dtype, shards=())
    if dtype != "int8":
        header = dataclasses.replace(header, code=None)
    elif old.dtype != "int8":
        header = _quantized(header, cache)
    sources = [(info.source, info.source_rows) for info in old.shards]
    digests = {info.source: info.source_digest for info in old.shards}
    with write_lock(out, shared=False, scratch=scratch):
        writer = CacheWriter(out, header, sources, digests, scratch=scratch)
        new = _convert(cache, writer)
    if new.fingerprint != old.fingerprint:
        raise CacheError(
            f"{out}: fingerprint {new.fingerprint[:12]}, expected {old.fingerprint[:12]}. Fix:"
            " remove it"
        )
    return new


def _quantized(header: Manifest, cache: FeatureCache) -> Manifest:
    """Return ``header`` with an int8 code that is fitted on every row of ``cache``."""
    fitter = QuantizerFitter(cache.manifest.rows)
    for info in cache.manifest.shards:
        for _, rows in cache.blocks(info):
            fitter.add(rows)
    code = fitter.code(margin=0)
    error = fitter.quantization_error(code, header.encoder.logit_scale)
    return dataclasses.replace(header, code=code.fields(), quantization_error=error)


def _convert(cache: FeatureCache, writer: CacheWriter) -> Manifest:
    """Write every shard that is not finished yet, and seal the cache."""
    bad: dict[str, list[Bad]] = {}
    for source, row in quarantined(cache.store, cache.manifest):
        bad.setdefault(source, []).append(row)
    for info in cache.manifest.shards:
        if info.source in writer:
            continue
        with writer.row_buffer(info.source) as buffer:
            for keys, rows in cache.blocks(info):
                buffer.add(keys, _as_dtype(cache, rows, writer.header.dtype))
            bad_rows = bad.get(info.source, ())
            writer.write(info.source, buffer.keys, buffer.rows(), bad_rows)
    table = text_of(cache.store, SYNONYMS)
    if table is not None:
        writer.store.write(SYNONYMS, table)
    return writer.seal()


def _as_dtype(cache: FeatureCache, rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return stored rows unchanged when the dtype stays, else as floats."""
    if dtype == cache.manifest.dtype or cache.code is None:
        return rows
    return cache.code.decode(rows)

"""Writing a cache in another format or dtype; its fingerprint stays the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dimefm import plugins
from dimefm.cache.int8 import AffineQuantizer, QuantizerFitter
from dimefm.cache.manifest import Manifest
from dimefm.cache.plan import SYNONYMS, read_plan, text_of, write_lock
from dimefm.cache.precision_loss import LossCount, least_length
from dimefm.cache.quarantine import quarantined
from dimefm.cache.reader import FeatureCache
from dimefm.cache.shard_info import ShardInfo
from dimefm.cache.skip_index import SkipIndex
from dimefm.cache.writer import Bad, CacheWriter
from dimefm.errors import CacheError


def convert(
    cache: FeatureCache,
    out: str | Path,
    format_: str | None = None,
    dtype: str | None = None,
    scratch: str | None = None,
    force: bool = False,
) -> Manifest:
    """Write ``cache`` to ``out`` in another format or dtype and return the new manifest.

    A format or dtype of None stays as it is, but float16 becomes float32 in Parquet, where DuckDB
    reads no float16; another format is lossless. An int8 code is fitted on
    every row, so no row lies outside it. After an interruption the same call resumes. Raises
    CacheError when a shard is damaged, ``out`` holds another cache, the format cannot hold a key,
    or a row loses too much in the new dtype: its cosine with its stored form is below LEAST_COSINE.
    ``force`` stores such rows all the same.
    """
    old = cache.manifest
    format_ = format_ or old.format
    if dtype is None:
        dtype = _usual_dtype(old, format_, read_plan(out, scratch))
    if str(out).rstrip("/") == cache.store.address.rstrip("/"):
        raise CacheError(f"{out}: is the cache to convert. Fix: give another folder")
    header = dataclasses.replace(old, format=format_, dtype=dtype, shards=())
    if dtype != "int8":
        header = dataclasses.replace(header, code=None)
    elif old.dtype != "int8":
        header = _quantized(header, cache, force)
    sources = [(info.source, info.source_rows) for info in old.shards]
    digests = {info.source: info.source_digest for info in old.shards}
    with write_lock(out, shared=False, scratch=scratch):
        writer = CacheWriter(out, header, sources, digests, scratch=scratch)
        new = _convert(cache, writer, force)
    if new.fingerprint != old.fingerprint:
        raise CacheError(
            f"{out}: fingerprint {new.fingerprint[:12]}, expected {old.fingerprint[:12]}. Fix:"
            " remove it"
        )
    return new


def _usual_dtype(old: Manifest, format_: str, begun: Manifest | None) -> str:
    """Return the dtype of a conversion that names none: the cache's own, or a wider one that the
    readers of another format need. A conversion that was ``begun`` with the cache's own keeps it.
    """
    widened = getattr(plugins.module("caches", format_, CacheError), "WIDENED", {})
    was_kept = begun is not None and (begun.format, begun.dtype) == (format_, old.dtype)
    if format_ == old.format or was_kept:
        return old.dtype
    return widened.get(old.dtype, old.dtype)


def _quantized(header: Manifest, cache: FeatureCache, force: bool) -> Manifest:
    """Return ``header`` with an int8 code that is fitted on every row of ``cache``.

    Raises CacheError, without ``force``, when rows lose too much.
    """
    fitter = QuantizerFitter(cache.manifest.rows)
    for info in cache.manifest.shards:
        for _, rows in cache.blocks(info):
            fitter.add(rows)
    code = fitter.code(margin=0)
    error = fitter.quantization_error(code, header.encoder.logit_scale)
    if fitter.shortest < least_length(code):
        loss = _int8_loss(cache, code)
        if not force:
            _refuse_loss(cache, loss, "int8")
        error["min_cosine"] = min(error["min_cosine"], round(loss.lowest, 7))
    return dataclasses.replace(header, code=code.fields(), quantization_error=error)


def _int8_loss(cache: FeatureCache, code: AffineQuantizer) -> LossCount:
    """Return what every row of ``cache`` loses in ``code``."""
    loss = LossCount()
    for info in cache.manifest.shards:
        first = 0
        for _, rows in cache.blocks(info):
            stored = code.decode(code.encode(rows))
            loss.add(rows, stored, info.source, _source_rows(info, first, len(rows)))
            first += len(rows)
    return loss


def _source_rows(info: ShardInfo, first: int, count: int) -> np.ndarray:
    """Return the source rows of ``count`` stored rows of a shard from ``first`` on."""
    stored_rows = np.arange(first, first + count)
    return SkipIndex.from_rows(info.bad).to_source(stored_rows)


def _refuse_loss(cache: FeatureCache, loss: LossCount, dtype: str) -> None:
    if not loss.lossy:
        return
    raise CacheError(
        f"{cache.store}: {loss.describe(dtype)}. Fix: keep {cache.manifest.dtype}, remove outliers"
        " from the source, or store the rows all the same with --force"
    )


def _convert(cache: FeatureCache, writer: CacheWriter, force: bool) -> Manifest:
    """Write every shard that is not finished yet, and seal the cache."""
    dtype = writer.header.dtype
    bad: dict[str, list[Bad]] = {}
    for source, row in quarantined(cache.store, cache.manifest):
        bad.setdefault(source, []).append(row)
    for info in cache.manifest.shards:
        if info.source in writer:
            continue
        with writer.row_buffer(info.source) as buffer:
            for keys, rows in cache.blocks(info):
                floats = _as_dtype(cache, rows, dtype)
                if dtype == "float16" and floats.dtype != np.float16 and not force:
                    _refuse_lost_digits(cache, info, len(buffer.keys), floats)
                buffer.add(keys, floats)
            bad_rows = bad.get(info.source, ())
            writer.write(info.source, buffer.keys, buffer.rows(), bad_rows)
    table = text_of(cache.store, SYNONYMS)
    if table is not None:
        writer.store.write(SYNONYMS, table)
    return writer.seal()


def _refuse_lost_digits(cache: FeatureCache, info: ShardInfo, first: int, rows: np.ndarray) -> None:
    """Raise CacheError when float16 has too few digits for the small numbers of some rows."""
    with np.errstate(over="ignore"):
        stored = rows.astype(np.float16)
    if not np.isfinite(stored).all():
        return  # the buffer refuses them, with the number of the row
    loss = LossCount()
    loss.add(rows, stored, info.source, _source_rows(info, first, len(rows)))
    _refuse_loss(cache, loss, "float16")


def _as_dtype(cache: FeatureCache, rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return stored rows unchanged when the dtype stays, else as floats."""
    if dtype == cache.manifest.dtype or cache.code is None:
        return rows
    return cache.code.decode(rows)

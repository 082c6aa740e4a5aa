"""The writer side of a shard: its embeddings are gathered on disk, then written to the cache.

Only the writer thread calls ``add`` and ``finish``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from dimefm.cache import CacheWriter, FeatureCache, ShardInfo
from dimefm.cache.int8 import AffineQuantizer
from dimefm.cache.precision_loss import LEAST_COSINE, first_lossy
from dimefm.cache.row_buffer import RowBuffer, stored
from dimefm.cache.writer import Bad
from dimefm.data import Shard
from dimefm.errors import CacheError, DataError, DimefmError
from dimefm.extract.report import Report
from dimefm.extract.stages.base import Batch
from dimefm.storage.locks import Claim

UNUSABLE = "the encoder's feature is not finite or has no length"
NO_ROW = -1  # in place of the number of a vector that is not usable


class ShardWriter:
    """Writes every row of one claimed shard.

    ``replaced`` is the shard of a finished cache that this one takes the place of, if there is one.
    """

    def __init__(
        self,
        cache: CacheWriter,
        shard: Shard,
        claim: Claim,
        report: Report,
        replaced: ShardInfo | None,
    ):
        self.cache = cache
        self.shard = shard
        self.claim = claim
        self.report = report
        self.replaced = replaced
        self.bad: list[Bad] = []
        self.buffer = cache.row_buffer(shard.name)
        self._code = None
        if cache.header.code is not None:
            self._code = AffineQuantizer.from_fields(cache.header.code)
        # The buffer row of each vector of a task with repeats, in the order of encoding.
        self._buffer_rows = np.empty(0, np.int64)

    def add(self, batch: Batch, vectors: np.ndarray | None) -> None:
        """Take the rows of a batch and the vectors [M, dim] that the encoder made of its inputs.

        A row is quarantined when its vector is not finite or has no length.
        """
        self.bad += batch.bad
        if vectors is None:
            vectors = np.empty((0, self.cache.header.dim), np.float32)
        usable = usable_rows(vectors)
        buffer_rows = self._buffer_rows_of(batch, usable)
        for place in np.flatnonzero(buffer_rows == NO_ROW).tolist():
            self.bad.append(Bad(batch.numbers[place], batch.keys[place], UNUSABLE))
        good = np.flatnonzero(buffer_rows != NO_ROW).tolist()
        numbers = [batch.numbers[place] for place in good]
        keys = [batch.keys[place] for place in good]
        stored_rows = buffer_rows[good]
        self._refuse_loss(numbers, vectors[usable], stored_rows)
        self._keep(numbers, keys, vectors[usable], stored_rows)

    def _refuse_loss(
        self, numbers: list[int], vectors: np.ndarray, buffer_rows: np.ndarray
    ) -> None:
        """Raise CacheError when a vector loses too much as int8; a value outside the code is
        refused where it is stored.
        """
        if self._code is None or not self._code.holds(vectors):
            return
        lossy = first_lossy(vectors, self._code)
        if lossy is None:
            return
        place, cosine = lossy
        row_of_vector = np.flatnonzero(buffer_rows == self.buffer.count + place)
        row = numbers[int(row_of_vector[0])]
        raise CacheError(
            f"{self.shard.path}, row {row}: as int8 its embedding has cosine {cosine:.4f} with"
            f" itself, expected at least {LEAST_COSINE}: this encoder's embeddings differ too much"
            " in size for one code. Fix: use --dtype float16"
        )

    def _buffer_rows_of(self, batch: Batch, usable: np.ndarray) -> np.ndarray:
        """Return the buffer row of each row of a batch, whose new vectors are ``usable`` or not."""
        new = self.buffer.count + np.cumsum(usable) - 1
        new = np.where(usable, new, NO_ROW)
        if batch.vector_numbers is None:
            return new
        self._buffer_rows = np.append(self._buffer_rows, new)
        return self._buffer_rows[batch.vector_numbers]

    def _keep(
        self, numbers: list[int], keys: list[str], vectors: np.ndarray, buffer_rows: np.ndarray
    ) -> None:
        """Keep usable rows of the shard until all of them are encoded."""
        self.buffer.add(keys, vectors, buffer_rows)

    def finish(self) -> None:
        """Write the shard, of which every row was added.

        Raises DataError when the source has changed since the run began.
        """
        self._refuse_changed_source()
        self._write()
        if self.replaced is not None:
            tried = len(self.replaced.bad)
            self.report.tried += tried
            self.report.recovered += max(0, tried - len(self.bad))
        self.close()

    def _write(self) -> None:
        """Write the rows in the buffer to the cache."""
        started = time.perf_counter()
        self.cache.write(self.shard.name, self.buffer.keys, self.buffer.rows(), self.bad)
        self.report.seconds["write"] += time.perf_counter() - started

    def _refuse_changed_source(self) -> None:
        """Raise DataError when the source is not what it was when the run began."""
        expected = self.cache.digests.get(self.shard.name, "")
        if not expected:
            return
        try:
            current = self.shard.digest()
        except (OSError, DimefmError) as error:
            raise DataError(
                f"{self.shard.path}: went away while it was read ({error}); nothing of it was kept."
                " Fix: restore it and run the same command again"
            ) from error
        if current != expected:
            raise DataError(
                f"{self.shard.path}: changed while it was read; nothing of it was kept. Fix: wait"
                " until nobody writes to it and run the same command again"
            )

    def close(self) -> None:
        """Release the claim and remove the buffer; a second call does nothing."""
        self.buffer.__exit__()
        self.claim.release()


class RetriedShardWriter(ShardWriter):
    """Writes a stored shard again whose quarantined rows were tried again.

    Only the quarantined rows are added; the others are read from the finished cache.
    """

    def __init__(
        self,
        cache: CacheWriter,
        shard: Shard,
        claim: Claim,
        report: Report,
        replaced: ShardInfo,
        scratch: str | None,
    ):
        super().__init__(cache, shard, claim, report, replaced)
        self.stored_shard = replaced
        self.scratch = scratch
        self._numbers: list[int] = []
        self._keys: list[str] = []
        self._vectors: list[np.ndarray] = []

    def _keep(
        self, numbers: list[int], keys: list[str], vectors: np.ndarray, buffer_rows: np.ndarray
    ) -> None:
        if numbers:
            self._numbers += numbers
            self._keys += keys
            self._vectors.append(vectors)

    def _write(self) -> None:
        """Write the shard with the recovered rows; without any it stays as it is."""
        if not self._vectors:
            self.cache.keep(self.stored_shard)
            return
        vectors = np.concatenate(self._vectors)
        vectors = stored(vectors, self.cache.header, self.shard.name)
        finished_cache = FeatureCache(self.cache.store.address, self.scratch)
        numbers = np.array(self._numbers)
        merge_retried(self.buffer, finished_cache, self.stored_shard, numbers, self._keys, vectors)
        super()._write()


def merge_retried(
    buffer: RowBuffer,
    cache: FeatureCache,
    stored_shard: ShardInfo,
    numbers: np.ndarray,
    keys: Sequence[str],
    vectors: np.ndarray,
) -> None:
    """Put the stored rows of a shard and its recovered rows into ``buffer``, in source order.

    The recovered rows are the source rows ``numbers``, ascending, with ``keys`` and ``vectors``
    [n, dim] in the stored dtype.
    """
    # A recovered row stands behind the stored rows whose source rows come before its own.
    quarantined_before = np.searchsorted(np.array(stored_shard.bad), numbers)
    stored_before = numbers - quarantined_before
    block_start = 0
    done = 0
    for block_keys, block_rows in cache.blocks(stored_shard):
        block_end = block_start + len(block_rows)
        if block_end == stored_shard.rows:
            end = len(numbers)
        else:
            end = int(np.searchsorted(stored_before, block_end))
        places = stored_before[done:end] - block_start
        merged_keys = _inserted(block_keys, places.tolist(), keys[done:end])
        merged_rows = np.insert(block_rows, places, vectors[done:end], axis=0)
        buffer.add(merged_keys, merged_rows)
        block_start = block_end
        done = end
    if done < len(numbers):  # a shard without stored rows has no blocks
        buffer.add(list(keys[done:]), vectors[done:])


def _inserted(keys: list[str], places: list[int], new_keys: Sequence[str]) -> list[str]:
    """Return ``keys`` with each new key in front of the key at its place, ascending."""
    merged: list[str] = []
    start = 0
    for place, key in zip(places, new_keys, strict=True):
        merged += keys[start:place]
        merged.append(key)
        start = place
    merged += keys[start:]
    return merged


def usable_rows(vectors: np.ndarray) -> np.ndarray:
    """Return for each vector whether it is finite and has a length, bool [n]."""
    finite = np.isfinite(vectors).all(1)
    return finite & (np.linalg.norm(vectors, axis=1) > 0.5)

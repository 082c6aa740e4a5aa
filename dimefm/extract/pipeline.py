"""The stream of an extraction: shards are claimed, their rows encoded, and a thread of its own
writes what is done.

One pass over the shards may fill the caches of several encoders: each has a :class:`CacheJob`, and
what all of them need of a row is done once.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from dimefm.cache import CacheWriter, FeatureCache, Manifest, ShardInfo
from dimefm.cache.plan import QUARANTINE
from dimefm.cache.row_buffer import RowBuffer, stored
from dimefm.cache.writer import Bad
from dimefm.data import Shard
from dimefm.errors import DataError, DimefmError
from dimefm.extract.stages.base import Batch, Stage
from dimefm.extract.stream import ShardTask, encoded
from dimefm.runtime.progress import Progress
from dimefm.runtime.threads import encode_thread_count
from dimefm.storage.locks import Claim


@dataclass
class Report:
    """What an extraction did: rows of this call, and seconds spent in each stage (read and decode
    add up over threads).

    What is read and decoded once for several caches counts in the first one's.
    """

    manifest: Manifest | None = None
    out: str = ""
    rows_done: int = 0
    unused_captions: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "decode", "encode", "write"), 0.0)
    )
    wall: float = 0.0
    streamed: float = 0.0  # seconds of ``wall`` in which the encoder could have been busy
    encode_threads: int = 1  # batches that are encoded at the same time
    resumed: int = 0
    missing: int = 0  # shards that are other processes' work and not there yet
    tried: int = 0
    recovered: int = 0
    already_finished: bool = False

    def describe(self) -> str:
        """Return a few lines for people."""
        if self.already_finished:
            return f"{self.out}: finished already, {self.manifest.rows:,} rows; nothing to do"
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        rate = self.rows_done / max(self.wall, 1e-9)
        left = (
            f"{self.out}: {self.missing:,} shards of other parts are not there yet; the cache is"
            " finished with the last"
        )
        lines = [
            *(self._of_cache(self.manifest) if self.manifest else [left]),
            f"  {self.wall:.1f} s wall, {rate:,.0f} rows/s, encoder busy {self.busy:.0%}; {stages}",
        ]
        if self.resumed:
            lines.append(
                f"  {self.resumed} shard{'s were' if self.resumed > 1 else ' was'} finished by an"
                " earlier run"
            )
        if self.tried:
            lines.append(f"  {self.recovered:,} of {self.tried:,} quarantined rows were recovered")
        if self.unused_captions:
            lines.append(
                f"  {self.unused_captions:,} further captions of these rows were not used;"
                f" {self._of_unused()}"
            )
        return "\n".join(lines)

    @property
    def busy(self) -> float:
        """Share of the streaming time in which the encoder was at work."""
        return min(1.0, self.seconds["encode"] / max(self.encode_threads * self.streamed, 1e-9))

    def _of_unused(self) -> str:
        views = self.manifest.how.get("text_views") if self.manifest else None
        if views is None:
            return "--captions all encodes them"
        return (
            "a larger --text-views takes more"
            if views["augment"] == "none"
            else "variants are of the first"
        )

    def _of_cache(self, manifest: Manifest) -> list[str]:
        bad = sum(len(shard.bad) for shard in manifest.shards)
        size = sum(shard.bytes for shard in manifest.shards) / max(manifest.rows, 1)
        return [
            f"{self.out}: {manifest.rows + bad:,} rows in = {manifest.rows:,} rows out + {bad:,}"
            " quarantined" + (f" (listed in {self.out}/{QUARANTINE})" if bad else ""),
            f"  {manifest.format} {manifest.dtype}[{manifest.dim}], {size:.0f} bytes/row",
        ]


class CacheJob:
    """One process's work on one cache: its shards are claimed, and what the stage made of their
    rows is handed on.
    """

    def __init__(self, stage: Stage, writer: CacheWriter, report: Report, scratch: str | None):
        self.stage, self.writer, self.report, self.scratch = stage, writer, report, scratch
        self.counted = dict(writer.sources)
        report.encode_threads = encode_thread_count(stage.encoder.device)
        self.opened: set[ShardInProgress] = set()

    def open(self, shard: Shard) -> ShardInProgress | None:
        """Claim a shard; None when it is finished or another process is at it."""
        claim = self.writer.claim(shard.name)
        return None if claim is None else ShardInProgress(self, shard, claim)

    def hand_on(self, writer_thread: BackgroundWriter, shard: ShardInProgress, batch: Batch) -> int:
        """Hand a batch that the encoder has done to the thread that writes; return how many rows it
        had.
        """
        seconds, vectors = self.report.seconds, None
        if batch.pending is not None:
            vectors, busy = batch.pending.fetch()
            seconds["encode"] += busy
        writer_thread.submit(shard.add, batch, vectors)
        if batch.last:
            writer_thread.submit(shard.finish)
        seconds["read"] += batch.read
        seconds["decode"] += batch.decode
        self.report.unused_captions += batch.unused
        rows = len(batch.numbers) + len(batch.bad)
        self.report.rows_done += rows
        return rows

    def close(self) -> None:
        """Give back the shards that are not finished."""
        for shard in list(self.opened):
            shard.close()


def run(works: Sequence[CacheJob], shards: Sequence[Shard], bar: Progress) -> None:
    """Encode and write those of ``shards`` that a cache does not have and that no other process is
    at, all in one pass.

    The works are about the same sources, on one device, with the same settings.
    """
    started, stage = time.perf_counter(), works[0].stage
    stream = encoded(
        _groups(works, shards),
        stage.encoder.device,
        stage.settings.workers,
        stage.split_batch_across_threads,
    )
    try:
        with BackgroundWriter() as writer_thread, contextlib.closing(stream):
            for shard, batch in stream:
                bar.update(shard.work.hand_on(writer_thread, shard, batch))
            for work in works:
                work.report.streamed += time.perf_counter() - started
    finally:
        for work in works:
            work.close()


def _groups(works: Sequence[CacheJob], shards: Sequence[Shard]) -> Iterator[list[ShardInProgress]]:
    """Claim the shards for every cache that lacks them; those that lack the same rows of one go
    together.
    """
    for shard in shards:
        groups: dict[Sequence[int], list[ShardInProgress]] = {}
        for work in works:
            opened = work.open(shard)
            if opened is not None:
                groups.setdefault(opened.numbers, []).append(opened)
        yield from groups.values()


class ShardInProgress(ShardTask):
    """A claimed shard on its way into the cache; where only its quarantined rows are tried again,
    ``old`` is what it was.

    ``add`` and ``finish`` run in the thread that writes.
    """

    def __init__(self, work: CacheJob, shard: Shard, claim: Claim):
        self.work, self.claim, self.bad = work, claim, list[Bad]()
        self.before = work.writer.replaced(shard.name)
        same = self.before is not None and self.before.source_digest == shard.digest()
        self.old = self.before if same else None
        self.mended: list[tuple[list[int], list[str], np.ndarray]] = []
        numbers = range(work.counted[shard.name]) if self.old is None else self.old.bad
        super().__init__(work.stage, shard, numbers)
        if self.old is not None:
            self.met = (
                None  # repeats find their rows in the spool, which such rows do not go through
            )
        self.spool = work.writer.row_buffer(shard.name)
        self.places = np.empty(
            0, np.int64
        )  # in the spool, of each vector so far of which others are repeats; -1: unusable
        work.opened.add(self)

    def close(self) -> None:
        """Give the claim back and remove what is not needed any more; twice does no harm."""
        self.spool.__exit__()
        self.claim.release()
        self.work.opened.discard(self)

    def add(self, batch: Batch, vectors: np.ndarray | None) -> None:
        """Take the rows of one batch; a row whose vector is not finite or has no length is
        quarantined.
        """
        self.bad += batch.bad
        if vectors is None:
            vectors = np.empty((0, self.work.writer.header.dim), np.float32)
        usable = usable_rows(vectors)
        places = np.where(usable, self.spool.count + np.cumsum(usable) - 1, -1)
        if batch.which is not None:
            self.places = np.append(self.places, places)
            places = self.places[batch.which]
        for i in np.flatnonzero(places < 0):
            self.bad.append(
                Bad(
                    batch.numbers[i],
                    batch.keys[i],
                    "the encoder's feature is not finite or has no length",
                )
            )
        good = np.flatnonzero(places >= 0).tolist()
        keys = [batch.keys[i] for i in good]
        if self.old is None:
            self.spool.add(keys, vectors[usable], places[good])
        elif good:
            self.mended.append(([batch.numbers[i] for i in good], keys, vectors[good]))

    def finish(self) -> None:
        """Write the shard, whose rows are all there."""
        report, writer = self.work.report, self.work.writer
        self._refuse_changed(writer)
        tried = 0 if self.before is None else len(self.before.bad)
        if self.old is not None and not self.mended:
            writer.keep(self.old)
        else:
            if self.old is not None:
                self._merge(self.old)
            started = time.perf_counter()
            writer.write(self.shard.name, self.spool.keys, self.spool.rows(), self.bad)
            report.seconds["write"] += time.perf_counter() - started
        report.tried += tried
        report.recovered += max(0, tried - len(self.bad))
        self.close()

    def _refuse_changed(self, writer: CacheWriter) -> None:
        """Raise DataError when the source is no longer what it was when this run began."""
        expected = writer.digests.get(self.shard.name, "")
        try:
            found = self.shard.digest() if expected else ""
        except (OSError, DimefmError) as error:
            raise DataError(
                f"{self.shard.path}: went away while it was read ({error}); nothing of it was kept:"
                " bring it back, then run the same command again"
            ) from error
        if found != expected:
            raise DataError(
                f"{self.shard.path}: changed while it was read; nothing of it was kept: when it is"
                " at rest, run the same command again"
            )

    def _merge(self, old: ShardInfo) -> None:
        """Buffer the stored rows of ``old`` together with those that can be encoded now."""
        writer = self.work.writer
        numbers = np.array([number for part, _, _ in self.mended for number in part])
        keys = [key for _, part, _ in self.mended for key in part]
        vectors = stored(
            np.concatenate([part for _, _, part in self.mended]), writer.header, self.shard.name
        )
        _merge(
            self.spool,
            FeatureCache(str(writer.store), self.work.scratch),
            old,
            numbers,
            keys,
            vectors,
        )


class BackgroundWriter:
    """A thread that does what it is given, in order, at most ``LAG`` things behind; use it as a
    context manager.

    What went wrong there is raised by the next :meth:`submit` or at the end, and what was given
    after it is not done.
    """

    LAG = 4

    def __enter__(self) -> BackgroundWriter:
        self._pool, self._ahead, self._broken = (
            ThreadPoolExecutor(1, thread_name_prefix="writer"),
            deque[Future](),
            False,
        )
        return self

    def submit(self, what: Callable, *arguments: object) -> None:
        """Give the thread something to do."""
        self._ahead.append(self._pool.submit(self._do, what, *arguments))
        while len(self._ahead) > self.LAG:
            self._ahead.popleft().result()

    def _do(self, what: Callable, *arguments: object) -> None:
        if self._broken:
            return
        try:
            what(*arguments)
        except BaseException:
            self._broken = True
            raise

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if kind is None:
            for future in self._ahead:
                future.result()


def _merge(
    spool: RowBuffer,
    cache: FeatureCache,
    old: ShardInfo,
    numbers: np.ndarray,
    keys: list[str],
    new: np.ndarray,
) -> None:
    """Put the stored rows of ``old`` and the new rows of source rows ``numbers`` (ascending)
    together, in source order.
    """
    before = numbers - np.searchsorted(
        np.array(old.bad), numbers
    )  # old rows that come before each new one
    start = done = 0
    for held, rows in cache.blocks(old):
        last = start + len(held) == old.rows
        end = len(before) if last else int(np.searchsorted(before, start + len(held)))
        places = before[done:end] - start
        for place, key in reversed(list(zip(places.tolist(), keys[done:end], strict=True))):
            held.insert(place, key)
        spool.add(held, np.insert(rows, places, new[done:end], axis=0))
        start, done = start + len(rows), end
    if done < len(before):
        spool.add(keys[done:], new[done:])


def usable_rows(vectors: np.ndarray) -> np.ndarray:
    """Say of each vector whether it is finite and has a length."""
    return np.isfinite(vectors).all(1) & (np.linalg.norm(vectors, axis=1) > 0.5)

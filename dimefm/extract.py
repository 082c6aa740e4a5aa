"""The verb ``extract``: run an encoder once over rows and write a feature cache.

Shards of the cache correspond one to one to shards of the source, in order. A shard is the unit of work and of resume.
Within a shard, threads read and decode the next batch while the encoder works on this one.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dimefm import plugins
from dimefm.cache import CacheWriter, Manifest
from dimefm.cache.writer import QUARANTINE, Bad
from dimefm.data import Rows, Shard
from dimefm.data.images import DECODER, decode
from dimefm.data.rows import readable
from dimefm.errors import BadRow, CacheError, DataError, RecipeError
from dimefm.models.encoder import Encoder
from dimefm.progress import Progress
from dimefm.provenance import libraries


@dataclass(frozen=True)
class Settings:
    """How to extract. ``captions`` "first" keeps one sentence per source row, "all" makes a row of each; ``long_texts``
    says what happens to sentences past the encoder's context; ``dtype`` None is the format's own."""

    format: str = "hdf5"
    dtype: str | None = None
    batch_size: int = 256
    workers: int = 2
    captions: str = "first"
    long_texts: str = "quarantine"
    progress: bool = True


@dataclass
class Report:
    """What an extraction did: rows of this call, and seconds spent in each stage (read and decode add up over threads)."""

    manifest: Manifest | None = None
    out: Path = Path()
    rows_done: int = 0
    unused_captions: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "decode", "encode", "write"), 0.0))
    wall: float = 0.0
    resumed: int = 0
    already_finished: bool = False

    def describe(self) -> str:
        """Return a few lines for people."""
        if self.already_finished:
            return f"{self.out}: finished already, {self.manifest.rows:,} rows; nothing to do"
        shards = self.manifest.shards
        bad = sum(len(shard.bad) for shard in shards)
        size = sum(shard.bytes for shard in shards) / max(self.manifest.rows, 1)
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        lines = [
            f"{self.out}: {self.manifest.rows + bad:,} rows in = {self.manifest.rows:,} rows out + {bad:,} quarantined"
            + (f" (listed in {self.out / QUARANTINE})" if bad else ""),
            f"  {self.manifest.format} {self.manifest.dtype}[{self.manifest.dim}], {size:.0f} bytes/row",
            f"  {self.wall:.1f} s wall, {self.rows_done / max(self.wall, 1e-9):,.0f} rows/s; {stages}",
        ]
        if self.resumed:
            lines.append(f"  {self.resumed} shards were finished by an earlier run")
        if self.unused_captions:
            lines.append(
                f"  {self.unused_captions:,} further captions of these rows were not used; --captions all encodes them"
            )
        return "\n".join(lines)


def extract(encoder: Encoder, rows: Rows, kind: str, out: Path, settings: Settings | None = None) -> Report:
    """Write the features of every row of ``rows`` (``kind`` "image" or "text") to the cache folder ``out``.

    Vectors are unit length. A row that cannot be read or encoded is quarantined with its reason; rows in = rows out + rows
    quarantined. Raises CacheError when ``out`` holds a cache made otherwise or cannot be written, DataError when not one
    row could be used.
    """
    settings = settings or Settings()
    stage = (_Images if kind == "image" else _Texts)(encoder, settings)
    counted = [(shard.name, stage.count(shard)) for shard in rows.shards]
    writer = CacheWriter(out, _header(encoder, kind, settings, stage.how), counted)
    report = Report(out=out, resumed=len(writer.done))
    if writer.finished is not None:
        report.manifest, report.already_finished = writer.finished, True
        return report
    started = time.perf_counter()
    todo = [(shard, n) for shard, (name, n) in zip(rows.shards, counted, strict=True) if name not in writer]
    with Progress(sum(n for _, n in todo), f"{kind}s", "row", quiet=not settings.progress) as bar:
        for shard, n in todo:
            _shard(shard, n, stage, writer, report, bar)
    _refuse_nothing(writer, out)
    report.manifest = writer.seal()
    report.wall = time.perf_counter() - started
    return report


def _refuse_nothing(writer: CacheWriter, out: Path) -> None:
    """Raise DataError when there were rows and not one of them could be used; such a cache is not sealed."""
    read = sum(info.source_rows for info in writer.done.values())
    if read and not any(info.rows for info in writer.done.values()):
        reasons = sorted((out / ".partial").glob("*.bad"))
        first = json.loads(reasons[0].read_text(encoding="utf-8").splitlines()[0])
        writer.forget()
        raise DataError(
            f"{out}: none of the {read} rows could be used, so no cache was made; the first, {first['source']} row "
            f"{first['row']}: {first['reason']}; mend the source, then run the same command again"
        )


def _header(encoder: Encoder, kind: str, settings: Settings, how: dict) -> Manifest:
    dtype = settings.dtype or plugins.module("caches", settings.format, CacheError).DEFAULT_DTYPE
    how = {"precision": encoder.precision, **how}
    return Manifest(kind, settings.format, dtype, encoder.card.dim, True, encoder.card, how, libraries())


def _shard(shard: Shard, n: int, stage: _Stage, writer: CacheWriter, report: Report, bar: Progress) -> None:
    keys, vectors, bad = [], [], []
    for batch in stage.batches(shard, n, report):
        bad += batch.bad
        if batch.keys:
            started = time.perf_counter()
            found = stage.encode(batch.inputs).cpu().numpy()
            report.seconds["encode"] += time.perf_counter() - started
            good = np.isfinite(found).all(1) & (np.linalg.norm(found, axis=1) > 0.5)
            for i in np.flatnonzero(~good):
                bad.append(Bad(batch.numbers[i], batch.keys[i], "the encoder's feature is not finite or has no length"))
            keys += [batch.keys[i] for i in np.flatnonzero(good)]
            vectors.append(found[good])
        bar.update(len(batch.numbers) + len(batch.bad))
    rows = np.concatenate(vectors) if vectors else np.empty((0, writer.header.dim), dtype=np.float32)
    started = time.perf_counter()
    writer.write(shard.name, keys, rows, bad)
    report.seconds["write"] += time.perf_counter() - started
    report.rows_done += len(keys) + len(bad)


@dataclass
class _Batch:
    """Rows ready to encode: their numbers and keys, the stacked inputs, and the rows that could not be made ready."""

    numbers: list[int]
    keys: list[str]
    inputs: torch.Tensor | None
    bad: list[Bad]


class _Stage:
    """What differs between images and sentences: how many rows a shard has, and how a batch is made and encoded."""

    how: dict

    def __init__(self, encoder: Encoder, settings: Settings):
        self.encoder, self.settings = encoder, settings
        self._keys: tuple[str, list[str]] | None = None

    def count(self, shard: Shard) -> int:
        return len(shard)

    def key(self, shard: Shard, number: int) -> str:
        """Return the key of a row that cannot be read; the keys of the present shard stay in memory."""
        kept = self._keys
        if kept is None or kept[0] != shard.name:
            kept = self._keys = (shard.name, shard.keys())
        return kept[1][number]

    def prepare(self, shard: Shard, numbers: range, report: Report) -> _Batch:
        raise TypeError("a stage prepares images or sentences")

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        raise TypeError("a stage encodes images or sentences")

    def batches(self, shard: Shard, n: int, report: Report) -> Iterator[_Batch]:
        """Yield the batches of a shard of ``n`` rows in order, prepared ahead by threads."""
        size = self.settings.batch_size
        parts = iter([range(start, min(start + size, n)) for start in range(0, n, size)])
        with ThreadPoolExecutor(self.settings.workers, thread_name_prefix="reader") as pool:
            submit: Callable = lambda part: pool.submit(self.prepare, shard, part, report)  # noqa: E731
            ahead = deque(submit(part) for part in itertools.islice(parts, self.settings.workers + 1))
            try:
                while ahead:
                    batch = ahead.popleft().result()
                    ahead.extend(submit(part) for part in itertools.islice(parts, 1))
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()


class _Images(_Stage):
    how = {"decoder": DECODER, "views": None}

    def prepare(self, shard: Shard, numbers: range, report: Report) -> _Batch:
        batch, pixels = _Batch([], [], None, []), []
        for number in numbers:
            started = time.perf_counter()
            try:
                row = shard[number]
                read = time.perf_counter()
                pixels.append(self.encoder.preprocess(decode(row.image)))
            except BadRow as error:
                batch.bad.append(Bad(number, self.key(shard, number), str(error)))
                continue
            report.seconds["read"] += read - started
            report.seconds["decode"] += time.perf_counter() - read
            batch.numbers.append(number)
            batch.keys.append(row.key)
        batch.inputs = torch.stack(pixels) if pixels else None
        return batch

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.encoder.encode_image(inputs)


class _Texts(_Stage):
    def __init__(self, encoder: Encoder, settings: Settings):
        super().__init__(encoder, settings)
        for name, known in (("captions", ("first", "all")), ("long_texts", ("quarantine", "truncate"))):
            if getattr(settings, name) not in known:
                raise RecipeError(f"{name} is '{getattr(settings, name)}'; expected one of {', '.join(known)}")
        self.how = {"captions": settings.captions, "long_texts": settings.long_texts}
        self._items: dict[str, list[tuple[int, int]]] = {}

    def count(self, shard: Shard) -> int:
        if self.settings.captions == "first":
            return len(shard)
        self._items[shard.name] = [(row, j) for row in range(len(shard)) for j in range(_captions(shard, row))]
        return len(self._items[shard.name])

    def _sentence(self, shard: Shard, number: int) -> tuple[int, int]:
        """Return (row, caption) numbers of sentence ``number`` of a shard."""
        return (number, 0) if self.settings.captions == "first" else self._items[shard.name][number]

    def prepare(self, shard: Shard, numbers: range, report: Report) -> _Batch:
        batch, sentences = _Batch([], [], None, []), []
        started = time.perf_counter()
        for number in numbers:
            row_number, place = self._sentence(shard, number)
            try:
                row = shard[row_number]
                sentences.append(_sentence(row.texts, place))
            except BadRow as error:
                batch.bad.append(Bad(number, self.key(shard, row_number), str(error)))
                continue
            if self.settings.captions == "first":
                report.unused_captions += len(row.texts) - 1
            batch.numbers.append(number)
            batch.keys.append(row.key if self.settings.captions == "first" else f"{row.key}#{place}")
        read = time.perf_counter()
        report.seconds["read"] += read - started
        if sentences:
            self._tokenize(batch, sentences)
        report.seconds["decode"] += time.perf_counter() - read
        return batch

    def _tokenize(self, batch: _Batch, sentences: list[str]) -> None:
        tokens, lengths = self.encoder.tokenize(sentences)
        limit = tokens.shape[1]
        keep = [i for i, n in enumerate(lengths) if n <= limit or self.settings.long_texts == "truncate"]
        for i in sorted(set(range(len(lengths))) - set(keep)):
            reason = f"sentence has {lengths[i]} tokens, the encoder reads {limit} (--long-texts truncate cuts it)"
            batch.bad.append(Bad(batch.numbers[i], batch.keys[i], reason))
        batch.numbers = [batch.numbers[i] for i in keep]
        batch.keys = [batch.keys[i] for i in keep]
        batch.inputs = tokens[keep]

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.encoder.encode_text(inputs)


def _sentence(texts: tuple[str, ...], place: int) -> str:
    """Return one sentence; raise BadRow when it is empty or holds half a character."""
    if not texts or not texts[place].strip():
        raise BadRow("sentence is empty")
    if readable(texts[place]) != texts[place]:
        raise BadRow("sentence holds a lone surrogate, half of a character")
    return texts[place]


def _captions(shard: Shard, row: int) -> int:
    """Return how many sentences a row has; an unreadable row counts as one, so that it is quarantined once."""
    try:
        return max(1, len(shard[row].texts))
    except BadRow:
        return 1

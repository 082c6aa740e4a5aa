"""The verb ``pack``: images once to small upright JPEGs, so that training reads and decodes little.

Every shard of the source becomes one webdataset tar, ``00000.tar``, ``00001.tar``, ... in the order
of the source. A row is read by one read at its offset: at random that is as quick as files can be.
TSV would add a third of base64 and has no place for sentences, Parquet would read a whole row group
for a row. ``data/packed.py`` says how a packed shard stands for its source.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dimefm.data.formats import tar as tars
from dimefm.data.images.decode import jpeg_of, opened, photo_of, plain
from dimefm.data.images.resize import Size, resized, shorter_side
from dimefm.data.packed.shards import INDEX, PackedShard, PackIndex, name_of
from dimefm.data.rows import Columns, Row, Rows, Shard
from dimefm.data.skipped import Skipped
from dimefm.errors import BadRow, DataError
from dimefm.runtime.progress import Progress
from dimefm.runtime.threads import prefetch_map
from dimefm.runtime.versions import libraries
from dimefm.storage.files import commit, to_json, write_text
from dimefm.storage.locks import claim
from dimefm.storage.out_folder import refuse_foreign

MANIFEST = "pack.json"
LOCK = ".packing/writer"
PORTION = 32  # rows that a thread takes at a time
KEEP = 2  # times the packed size that a larger JPEG is decoded at, at least


@dataclass(frozen=True)
class Settings:
    """``size`` of the shorter side in pixels, JPEG ``quality``, and ``workers``, threads (None: one
    for each core).
    """

    size: int = 256
    quality: int = 90
    workers: int | None = None
    progress: bool = True

    @property
    def threads(self) -> int:
        """How many threads make images small."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.workers or cores or 1


@dataclass
class Report:
    """What was packed: ``rows`` of ``shards``, ``bad`` of them without a usable image, ``bytes`` of
    the tars, how many of the shards were there ``already``, and what was ``skipped``: what the
    sources hold besides rows."""

    shards: int = 0
    rows: int = 0
    bytes: int = 0
    already: int = 0
    seconds: float = 0.0
    bad: list[dict] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)

    def describe(self) -> str:
        """Return a human-readable summary of one line, and another for what was skipped."""
        images = self.rows - len(self.bad)
        each = f", {self.bytes / images / 1000:.1f} kB an image" if images else ""
        known = f" ({self.already} of them there already)" if self.already else ""
        shards = "shard" if self.shards == 1 else "shards"
        text = (
            f"{images:,} images in {self.shards} {shards}{known}, {self.bytes / 1e6:,.1f} MB{each},"
            f" {len(self.bad):,} bad rows, {self.seconds:.1f} s"
        )
        if self.skipped:
            text += f"\n  in the sources, but no rows: {self.skipped.describe()}"
        return text


def pack(rows: Rows, out: Path, settings: Settings | None = None) -> Report:
    """Write every shard of ``rows`` to ``out``, a folder, and ``pack.json`` last; finished shards
    are kept as they are.

    Raises DataError when another process packs there, when a shard there was packed from something
    else or otherwise, when a source changes meanwhile, and when not one row has an image.
    """
    settings, started = settings or Settings(), time.perf_counter()
    report = Report(skipped=rows.skipped)
    refuse_foreign(out, "packed images", [MANIFEST, LOCK, "00000.tar*"])
    held = claim(out / LOCK)
    if held is None:
        raise DataError(
            f"{out}: another process packs there. Fix: wait until it has ended, or stop it"
        )
    with (
        held,
        Progress(len(rows), "pack", "row", quiet=not settings.progress) as bar,
        _threads(settings) as pool,
    ):
        shards = []
        for number, shard in enumerate(rows.shards):
            path = out / f"{number:05d}.tar"
            found = _finished(path, shard, settings)
            report.already += found is not None
            if found is None:
                _write(path, shard, settings, pool, bar)
                found = _index(path)
            else:
                bar.update(len(shard))
            shards.append(_take(report, path, found))
        if report.rows == len(report.bad):
            first = "".join(
                f"; the first, {bad['source']} row {bad['row']}: {bad['reason']}"
                for bad in report.bad[:1]
            )
            raise DataError(
                f"{out}: none of the {report.rows} rows has an image{first}. Fix: correct the"
                " source, and choose another --out"
            )
        write_text(out / MANIFEST, _manifest(settings, report, shards))
    report.seconds = time.perf_counter() - started
    return report


@contextlib.contextmanager
def _threads(settings: Settings) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads, in each of which torch does without further ones."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(settings.threads, "packer", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def small(data: bytes, settings: Settings) -> bytes:
    """Return an image file as a JPEG with its shorter side at ``settings.size`` pixels or less,
    upright, in 8-bit RGB.

    A colour JPEG that has all this and is not progressive stays as it is. Raises BadRow for a file
    that gives no image.
    """

    def need(width: int, height: int) -> Size:
        width, height = shorter_side((width, height), settings.size)
        return KEEP * width, KEEP * height

    photo = photo_of(data, need)
    with opened(data) as image:
        simple = plain(image) and image.mode == "RGB" and not image.info.get("progressive")
        if simple and min(image.size) <= settings.size:
            return data
    size, pixels = shorter_side(photo.size, settings.size), photo.pixels
    if min(pixels.shape[:2]) > settings.size:
        pixels = resized(pixels, size, "bicubic")
    return jpeg_of(pixels, settings.quality, photo.size)


Packed = tuple[
    int, Row | None, str
]  # row number, the row with its small image, or why there is none


def _write(
    path: Path, shard: Shard, settings: Settings, pool: ThreadPoolExecutor, bar: Progress
) -> None:
    """Write one packed shard to a temporary name, and give it its own when it is whole."""
    digests, keys = shard.digests(), shard.keys()
    labels: list = [None] * len(keys)
    bad: dict[int, str] = {}
    part = path.with_name(path.name + ".part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for portion in _stream(shard, settings, pool):
            for number, row, reason in portion:
                if row is None:
                    bad[number] = reason
                    continue
                labels[number] = row.label
                _add(tar, f"{name_of(number)}.jpg", row.image or b"")
                told = {"captions": row.texts or None, "label": row.label}
                told = {name: value for name, value in told.items() if value is not None}
                if told:
                    _add(
                        tar,
                        f"{name_of(number)}.json",
                        json.dumps({"key": row.key, **told}).encode(),
                    )
            bar.update(len(portion))
        known = labels if any(label is not None for label in labels) else None
        index = PackIndex(shard.name, digests, settings.size, settings.quality, keys, known, bad)
        _add(tar, INDEX, index.to_json())
    if shard.digests() != digests:
        raise DataError(
            f"{shard.path}: changed while it was packed. Fix: when it is at rest, run the same"
            " command again"
        )
    commit(part, path)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _stream(shard: Shard, settings: Settings, pool: ThreadPoolExecutor) -> Iterator[list[Packed]]:
    """Yield the rows of a shard in order, in portions that threads make ahead."""

    def pack_portion(start: int) -> list[Packed]:
        end = min(start + PORTION, len(shard))
        return [_packed(shard, number, settings) for number in range(start, end)]

    starts = range(0, len(shard), PORTION)
    portions = prefetch_map(pool, 3 * settings.threads, pack_portion, starts)
    with contextlib.closing(portions):
        for _, portion in portions:
            yield portion


def _packed(shard: Shard, number: int, settings: Settings) -> Packed:
    try:
        row = shard[number]
        image = small(row.image or b"", settings)
    except BadRow as error:
        return number, None, str(error)
    return number, Row(row.key, image, row.texts, row.label), ""


def _index(path: Path) -> PackIndex:
    """Return the index of a packed shard; raise DataError for a tar that is none."""
    (shard,) = tars.open_shards(path, path.name, "image", Columns())
    if not isinstance(shard, PackedShard):
        raise DataError(f"{path}: is not a packed shard. Fix: choose another --out")
    return shard.index


def _finished(path: Path, shard: Shard, settings: Settings) -> PackIndex | None:
    """Return the index of a packed shard, None when there is none; raise DataError for one of
    something else.
    """
    if not path.exists():
        return None
    found = _index(path)
    remedy = "choose another --out, or remove the file"
    if found.source != shard.name or found.digests != shard.digests():
        raise DataError(
            f"{path}: was packed from {found.source}, not from {shard.name} as it is now. Fix:"
            f" {remedy}"
        )
    if (found.size, found.quality) != (settings.size, settings.quality):
        raise DataError(
            f"{path}: was packed with --size {found.size} --quality {found.quality}, not"
            f" {settings.size} and {settings.quality}. Fix: {remedy}"
        )
    return found


def _take(report: Report, path: Path, index: PackIndex) -> dict:
    """Add a packed shard to the report; return what the manifest says of it."""
    size = path.stat().st_size
    report.shards, report.rows, report.bytes = (
        report.shards + 1,
        report.rows + len(index.keys),
        report.bytes + size,
    )
    report.bad += [
        {"source": index.source, "row": row, "key": index.keys[row], "reason": reason}
        for row, reason in index.bad.items()
    ]
    return {
        "file": path.name,
        "source": index.source,
        "rows": len(index.keys),
        "bad": len(index.bad),
        "bytes": size,
    }


def _manifest(settings: Settings, report: Report, shards: list[dict]) -> str:
    head = {
        "size": settings.size,
        "quality": settings.quality,
        "rows": report.rows,
        "bytes": report.bytes,
    }
    tail = {"bad": report.bad, "libraries": libraries(), "skipped": report.skipped.fields()}
    return to_json({**head, "shards": shards, **tail})

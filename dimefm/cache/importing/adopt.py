"""Taking up feature files that dimefm did not write, by giving them a manifest.

Every row is read, checked and written into a sealed cache of ours; from there on nothing is special
about it. What a file does not say (who made it, from what) the caller says, or it stays unknown.
What can be measured is measured: whether rows have unit length, and which rows are unusable.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dimefm import plugins
from dimefm.cache.importing.sources import Vectors, open_tsvs
from dimefm.cache.importing.vectors import ROW_NUMBERS
from dimefm.cache.manifest import EncoderCard, Manifest
from dimefm.cache.plan import QUARANTINE, read_plan, write_lock
from dimefm.cache.reader import FeatureCache
from dimefm.cache.writer import Bad, CacheWriter
from dimefm.errors import CacheError
from dimefm.runtime.progress import Progress
from dimefm.storage.files import sha256_keys

UNKNOWN = "unknown"  # name of an encoder that nobody named
ROWS_PER_SHARD = 1_000_000  # as of raw files, see docs/cache-format.md
BLOCK = 16_384  # rows measured at once
UNIT = 1e-3  # how far from 1 a length may be


class RawShard(Protocol):
    """What adoption asks of a shard of raw rows; :class:`dimefm.data.Shard` has it."""

    name: str

    def __len__(self) -> int: ...

    def keys(self) -> list[str]:
        """Return the keys of all rows in order."""
        ...

    def digest(self) -> str:
        """Return a digest of the content."""
        ...


@dataclass(frozen=True)
class Piece:
    """One source shard of the cache to be: its name, the rows ``(file, start, stop)`` that make it
    up, in order, and a digest of what they belong to. The keys are those of ``raw``, if it is
    given, else the files' own.
    """

    name: str
    spans: tuple[tuple[Vectors, int, int], ...]
    digest: str
    raw: RawShard | None = None

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.spans)

    def read(self) -> tuple[list[str], np.ndarray]:
        """Return (keys, rows [n, D] as the files have them); raise CacheError when files and raw
        rows differ in a key.
        """
        found = [vectors.read(start, stop) for vectors, start, stop in self.spans]
        keys = [key for keys, _ in found for key in keys]
        rows = found[0][1] if len(found) == 1 else np.concatenate([rows for _, rows in found])
        if self.raw is None:
            return keys, rows
        ours = self.raw.keys()
        if all(vectors.named_by != ROW_NUMBERS for vectors, _, _ in self.spans):
            self._compare(ours, keys)
        return ours, rows

    def _compare(self, ours: list[str], theirs: list[str]) -> None:
        """Raise CacheError unless keys are equal, or theirs lead to ours as a path to a file
        does.
        """
        for row, (key, there) in enumerate(zip(ours, theirs, strict=True)):
            if key != there and not there.endswith("/" + key):
                raise CacheError(
                    f"{self.name}, row {row}: the raw row has key '{key}', its vector in"
                    f" {self.spans[0][0].path} has '{there}'; these are other rows, or in another"
                    " order: name those that were encoded"
                )


def pieces(vectors: Sequence[Vectors], names: Sequence[str]) -> list[Piece]:
    """Return feature files as the shards of a cache, called ``names``.

    A mapped file of more than 1,000,000 rows is cut into ``NAME/00000`` and on.
    """
    found = []
    for each, name in zip(vectors, names, strict=True):
        digest = each.digest()
        if not each.mapped or each.count <= ROWS_PER_SHARD:
            found.append(Piece(name, ((each, 0, each.count),), digest))
            continue
        for number, start in enumerate(range(0, each.count, ROWS_PER_SHARD)):
            stop = min(start + ROWS_PER_SHARD, each.count)
            part = sha256_keys([digest, f"{start}-{stop}"])
            found.append(Piece(f"{name}/{number:05d}", ((each, start, stop),), part))
    return found


def pieces_of(vectors: Sequence[Vectors], raw: Sequence[RawShard]) -> list[Piece]:
    """Return feature files as the shards ``raw`` of the images or sentences that their rows belong
    to, in order.

    Where there are as many files as shards, each file has the rows of its shard; else all rows in
    order are cut where the shards end. Raises CacheError when the counts do not agree.
    """
    if len(vectors) == len(raw):
        wrong = next(
            ((v, shard) for v, shard in zip(vectors, raw, strict=True) if v.count != len(shard)),
            None,
        )
        if wrong:
            raise CacheError(
                f"{wrong[0].path}: {wrong[0].count} rows, but {wrong[1].name} has {len(wrong[1])};"
                f" {_ROWS}"
            )
    total, wanted = sum(v.count for v in vectors), sum(len(shard) for shard in raw)
    if total != wanted:
        raise CacheError(
            f"{vectors[0].path}: {total} rows in {len(vectors)} feature files, but the {len(raw)}"
            f" raw shards have {wanted}; {_ROWS}"
        )
    ends = list(itertools.accumulate((len(shard) for shard in raw), initial=0))
    return [
        Piece(shard.name, tuple(_spans(vectors, start, stop)), shard.digest(), shard)
        for shard, (start, stop) in zip(raw, itertools.pairwise(ends), strict=True)
    ]


_ROWS = (
    "expected one feature row for each raw row, in the same order: name the files that were encoded"
)


def _spans(vectors: Sequence[Vectors], start: int, stop: int) -> Iterator[tuple[Vectors, int, int]]:
    """Yield the rows start..stop, counted through all files, as rows of each file; at least one
    span, maybe empty.
    """
    first, empty = 0, True
    for each in vectors:
        a, b = max(start - first, 0), min(stop - first, each.count)
        if a < b:
            empty = False
            yield each, a, b
        first += each.count
    if empty:
        yield vectors[0], 0, 0


def header(
    vectors: Sequence[Vectors], kind: str, card: EncoderCard, format: str, dtype: str | None = None
) -> Manifest:
    """Return the manifest, without shards, of ``vectors`` as the output of ``card``.

    ``dtype`` is the files' own unless given: float16 if all are, else float32; float32 in a format
    that wants it (tsv). Raises CacheError when the encoder has another dimension.
    """
    if card.dim != vectors[0].dim:
        raise CacheError(
            f"{vectors[0].path}: vectors of {vectors[0].dim} numbers, but the encoder {card.name}"
            f" makes {card.dim}; name the encoder that made them"
        )
    if dtype is None:
        halves = all(v.dtype == "float16" for v in vectors)
        wants = plugins.module("caches", format, CacheError).DEFAULT_DTYPE
        dtype = "float16" if halves and wants == "float16" else "float32"
    named_by = list(dict.fromkeys(v.named_by for v in vectors))
    named = named_by[0] + (f" and {len(named_by) - 1} more" if len(named_by) > 1 else "")
    files = sha256_keys(v.digest() for v in vectors)
    how = {"adopted": vectors[0].form, "keys": named, "files": files[:16]}
    return Manifest(kind, format, dtype, card.dim, False, card, how, {})


@dataclass(frozen=True)
class Adopted:
    """What an adoption did: ``lengths`` are the shortest and the longest row if they were measured
    in this call, ``already`` says that it was finished before."""

    manifest: Manifest
    out: str
    lengths: tuple[float, float] | None = None
    already: bool = False

    def describe(self) -> str:
        """Return a few lines for people."""
        manifest, card = self.manifest, self.manifest.encoder
        if self.already:
            return f"{self.out}: finished already, {manifest.rows:,} rows; nothing to do"
        bad = sum(len(shard.bad) for shard in manifest.shards)
        weights = (
            f"weights {card.weights_sha256[:12]}" if card.weights_sha256 else "weights unknown"
        )
        unit = (
            "unit length" if manifest.normalized else "not unit length (--normalize makes them so)"
        )
        measured = (
            f"measured from {self.lengths[0]:.4f} to {self.lengths[1]:.4f}"
            if self.lengths
            else "as measured before"
        )
        lines = [
            f"{self.out}: {manifest.rows + bad:,} rows in = {manifest.rows:,} rows out + {bad:,}"
            " quarantined" + (f" (listed in {self.out}/{QUARANTINE})" if bad else ""),
            (
                f"  {manifest.how['adopted']} files, now {manifest.format}"
                f" {manifest.dtype}[{manifest.dim}]; keys: {manifest.how['keys']}"
            ),
            f"  lengths {measured}: {unit}",
            f"  encoder {card.name} ({weights}), logit scale {card.logit_scale:.4g}",
        ]
        return "\n".join(lines)


def adopt(
    shards: Sequence[Piece],
    head: Manifest,
    out: str | Path,
    *,
    normalize: bool = False,
    quiet: bool = True,
) -> Adopted:
    """Write ``shards`` (of :func:`pieces` or :func:`pieces_of`) into the cache folder ``out``; go
    on with one begun.

    ``head`` is of :func:`header`; ``normalized`` is set when every row's length is within 1e-3 of
    1, as measured before anything is written. ``normalize`` divides each row by its length. Rows
    that, in the dtype to store, are not finite or have no length are quarantined. Rows pass in
    blocks, so memory does not grow with a mapped file.

    Raises CacheError when not one row can be used, or ``out`` holds a cache made otherwise.
    """
    how = {**head.how, "normalize": True} if normalize else head.how
    head = dataclasses.replace(
        head, how={**how, "keys": "raw rows"} if shards[0].raw is not None else how
    )
    begun, lengths = read_plan(out), None
    if begun is None:
        lengths = _measure(shards, head, normalize, quiet)
        unit = all(abs(length - 1) <= UNIT for length in lengths)
    with write_lock(out, shared=False):
        writer = _writer(
            shards, dataclasses.replace(head, normalized=begun.normalized if begun else unit), out
        )
        already = writer.finished is not None
        return Adopted(_write(shards, writer, normalize, quiet), str(out), lengths, already)


def _writer(shards: Sequence[Piece], head: Manifest, out: str | Path) -> CacheWriter:
    sources = [(piece.name, len(piece)) for piece in shards]
    return CacheWriter(out, head, sources, {piece.name: piece.digest for piece in shards})


def _measure(
    shards: Sequence[Piece], head: Manifest, normalize: bool, quiet: bool
) -> tuple[float, float]:
    """Return the least and greatest length of the usable rows; raise CacheError when there are
    none.
    """
    low, high, total = np.inf, 0.0, sum(len(piece) for piece in shards)
    with Progress(total, "measure", "row", quiet=quiet) as bar:
        for piece in shards:
            for block in _blocks(piece.read()[1], normalize):
                lengths = _lengths(block, head.dtype)
                usable = lengths[_usable(lengths)]
                low, high = usable.min(initial=low), usable.max(initial=high)
                bar.update(len(block))
    if high == 0:
        raise CacheError(
            f"{shards[0].name}: none of the {total} rows can be used as {head.dtype}, all are zero"
            " or not finite; look at what wrote them"
        )
    return float(low), float(high)


def _write(shards: Sequence[Piece], writer: CacheWriter, normalize: bool, quiet: bool) -> Manifest:
    dtype, todo = writer.header.dtype, [piece for piece in shards if piece.name not in writer]
    with Progress(sum(len(piece) for piece in todo), "write", "row", quiet=quiet) as bar:
        for piece in todo:
            (keys, rows), first = piece.read(), 0
            bad: list[Bad] = []
            with writer.row_buffer(piece.name) as spool:
                for block in _blocks(rows, normalize):
                    lengths = _lengths(block, dtype)
                    good = _usable(lengths)
                    poor = np.flatnonzero(~good).tolist()
                    bad += [
                        Bad(first + i, keys[first + i], _reason(lengths[i], dtype)) for i in poor
                    ]
                    spool.add([keys[first + i] for i in np.flatnonzero(good)], block[good])
                    first += len(block)
                    bar.update(len(block))
                writer.write(piece.name, spool.keys, spool.rows(), bad)
    return writer.seal()


def _blocks(rows: np.ndarray, normalize: bool) -> Iterator[np.ndarray]:
    """Yield rows in blocks as they are, or float32 of unit length; a row without length stays
    without.
    """
    for start in range(0, len(rows), BLOCK):
        block = np.asarray(rows[start : start + BLOCK])
        if normalize:
            lengths = np.linalg.norm(block.astype(np.float64), axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):
                block = (block / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        yield block


def _lengths(block: np.ndarray, dtype: str) -> np.ndarray:
    """Return the lengths [n] of rows once they are of ``dtype``; not finite where a number is
    not.
    """
    with np.errstate(over="ignore"):
        return np.linalg.norm(block.astype(dtype).astype(np.float64), axis=1)


def _usable(lengths: np.ndarray) -> np.ndarray:
    return np.isfinite(lengths) & (lengths > 0)


def _reason(length: float, dtype: str) -> str:
    return f"feature {'has no length' if length == 0 else 'is not finite'} as {dtype}"


def adopt_tsv(
    files: Sequence[Path], sources: Sequence[str], kind: str, out: Path, logit_scale: float = 100.0
) -> FeatureCache:
    """Copy feature TSVs (``key <tab> base64 of float32``) into the cache ``out-DIGEST`` and return
    it.

    DIGEST tells these files from others, so that features of another teacher are never taken for
    these. ``sources[i]`` is the name of the raw shard that ``files[i]`` belongs to. Rows that are
    not finite or have no length are quarantined; a row of another byte length than the first is an
    error, since it means another dtype or teacher. ``logit_scale`` is 100 in the released code
    (Training/utils/misc.py:12). Lengths are not measured.
    """
    vectors = open_tsvs(files)
    card = EncoderCard(f"{UNKNOWN} (DIME-FM feature TSV)", None, vectors[0].dim, logit_scale)
    head = Manifest(kind, "hdf5", "float32", card.dim, False, card, {"adopted": "dime-fm tsv"}, {})
    digest = sha256_keys(each.digest() for each in vectors)
    root = out.with_name(f"{out.name}-{digest[:12]}")
    shards = [
        Piece(name, ((each, 0, each.count),), "")
        for name, each in zip(sources, vectors, strict=True)
    ]
    with write_lock(root, shared=False):
        _write(shards, _writer(shards, head, root), normalize=False, quiet=True)
    return FeatureCache(root)

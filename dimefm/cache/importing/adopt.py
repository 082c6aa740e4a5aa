"""Adopting feature files that dimefm did not write: they are copied into a cache with a manifest.

Every row is read, checked and written into a sealed cache; from then on nothing is special about
it. What a file does not say (which encoder made it, from which source) the caller states, or it
stays unknown. Two things are measured: whether rows have unit length, and which rows are unusable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from dimefm import plugins
from dimefm.cache.importing.own_tsv import identity_of, own_shards
from dimefm.cache.importing.sources import Vectors, open_tsvs
from dimefm.cache.importing.vectors import ROW_NUMBERS
from dimefm.cache.manifest import UNKNOWN, EncoderCard, Manifest
from dimefm.cache.plan import QUARANTINE, read_plan, write_lock
from dimefm.cache.precision_loss import LossCount
from dimefm.cache.reader import FeatureCache
from dimefm.cache.skip_index import SkipIndex
from dimefm.cache.writer import Bad, CacheWriter
from dimefm.errors import CacheError
from dimefm.runtime.progress import Progress
from dimefm.runtime.text import first_few
from dimefm.storage.files import sha256_keys

RAW_ROWS = "raw rows"  # where keys come from
ROWS_PER_SHARD = 1_000_000  # as of raw files, see docs/cache-format.md
BLOCK = 16_384  # rows measured at once
UNIT_TOLERANCE = 1e-3  # how far from 1 the length of a unit row may be
ROW_PER_ROW = (
    "one feature row for each raw row, in the same order. Fix: name the files that were encoded"
)


class RawShard(Protocol):
    """What adoption needs of a shard of raw rows; :class:`dimefm.data.Shard` has it."""

    name: str

    def __len__(self) -> int: ...

    def keys(self) -> list[str]:
        """Return the keys of all rows in order."""
        ...

    def digest(self) -> str:
        """Return a digest of the content."""
        ...


class Span(NamedTuple):
    """Rows ``start`` to ``stop`` of one feature file."""

    vectors: Vectors
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """One source shard of the new cache.

    ``spans`` are the rows that make it up, in order. ``digest`` is of the source that the rows
    belong to. The keys are those of ``raw``, if it is given, else those of the files. ``bad`` are
    rows of the source that the files lack, ascending.
    """

    name: str
    spans: tuple[Span, ...]
    digest: str
    raw: RawShard | None = None
    bad: tuple[Bad, ...] = ()

    def __len__(self) -> int:
        return len(self.bad) + sum(span.stop - span.start for span in self.spans)

    def read(self) -> tuple[list[str], np.ndarray]:
        """Return (keys, rows [n, D] as the files have them).

        Raises CacheError when the files and the raw rows differ in a key.
        """
        file_keys: list[str] = []
        parts = []
        for span in self.spans:
            keys, rows = span.vectors.read(span.start, span.stop)
            file_keys += keys
            parts.append(rows)
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.raw is None:
            return file_keys, rows
        raw_keys = self.raw.keys()
        if all(span.vectors.named_by != ROW_NUMBERS for span in self.spans):
            self._compare_keys(raw_keys, file_keys)
        return raw_keys, rows

    def _compare_keys(self, raw_keys: list[str], file_keys: list[str]) -> None:
        """Raise CacheError unless the keys are equal, or a file's key is a path to the raw key."""
        for row, (raw_key, file_key) in enumerate(zip(raw_keys, file_keys, strict=True)):
            if file_key != raw_key and not file_key.endswith("/" + raw_key):
                raise CacheError(
                    f"{self.name}, row {row}: the raw row has key '{raw_key}', its vector in"
                    f" {self.spans[0].vectors.path} has '{file_key}'; these are other rows, or in"
                    " another order. Fix: name the rows that were encoded"
                )


def pieces(vectors: Sequence[Vectors], names: Sequence[str]) -> list[Piece]:
    """Return feature files as the shards of a cache, called ``names``.

    A mapped file of more than 1,000,000 rows is cut into ``NAME/00000``, ``NAME/00001``, ...
    """
    shards = []
    for file, name in zip(vectors, names, strict=True):
        digest = file.digest()
        if not file.mapped or file.count <= ROWS_PER_SHARD:
            whole = Span(file, 0, file.count)
            shards.append(Piece(name, (whole,), digest))
            continue
        for number, start in enumerate(range(0, file.count, ROWS_PER_SHARD)):
            stop = min(start + ROWS_PER_SHARD, file.count)
            part_digest = sha256_keys([digest, f"{start}-{stop}"])
            span = Span(file, start, stop)
            shards.append(Piece(f"{name}/{number:05d}", (span,), part_digest))
    return shards


def pieces_of(vectors: Sequence[Vectors], raw: Sequence[RawShard]) -> list[Piece]:
    """Return feature files as the shards ``raw`` of the images or texts that were encoded.

    Where there are as many files as shards, each file has the rows of its shard; else all rows in
    order are cut where the shards end. Raises CacheError when the counts do not agree.
    """
    if len(vectors) == len(raw):
        for file, shard in zip(vectors, raw, strict=True):
            if file.count != len(shard):
                raise CacheError(
                    f"{file.path}: {file.count} rows, but {shard.name} has {len(shard)};"
                    f" expected {ROW_PER_ROW}"
                )
    file_rows = sum(file.count for file in vectors)
    raw_rows = sum(len(shard) for shard in raw)
    if file_rows != raw_rows:
        raise CacheError(
            f"{vectors[0].path}: {file_rows} rows in {len(vectors)} feature files, but the"
            f" {len(raw)} raw shards have {raw_rows}; expected {ROW_PER_ROW}"
        )
    shards = []
    start = 0
    for shard in raw:
        stop = start + len(shard)
        spans = _spans(vectors, start, stop)
        shards.append(Piece(shard.name, tuple(spans), shard.digest(), shard))
        start = stop
    return shards


def _spans(vectors: Sequence[Vectors], start: int, stop: int) -> list[Span]:
    """Return rows ``start`` to ``stop``, counted over all files, as spans of the files.

    There is at least one span; it may be empty.
    """
    spans = []
    first = 0  # number of the file's first row
    for file in vectors:
        start_in_file = max(start - first, 0)
        stop_in_file = min(stop - first, file.count)
        if start_in_file < stop_in_file:
            spans.append(Span(file, start_in_file, stop_in_file))
        first += file.count
    return spans or [Span(vectors[0], 0, 0)]


def header(
    vectors: Sequence[Vectors], kind: str, card: EncoderCard, format: str, dtype: str | None = None
) -> Manifest:
    """Return the manifest, without shards, of ``vectors`` as the output of ``card``.

    Without ``dtype`` it is the files' own: float16 if all have it, else float32; always float32 in
    a format that wants it (tsv). Raises CacheError when the encoder has another dimension.
    """
    first = vectors[0]
    if card.dim != first.dim:
        raise CacheError(
            f"{first.path}: vectors of {first.dim} numbers, but the encoder {card.name}"
            f" makes {card.dim}. Fix: name the encoder that made them"
        )
    if dtype is None:
        dtype = _default_dtype(vectors, format)
    named_by = list(dict.fromkeys(file.named_by for file in vectors))
    files_digest = sha256_keys(file.digest() for file in vectors)
    how = {
        "adopted": first.form,
        "keys": first_few(named_by, 1),
        "files": files_digest[:16],
    }
    return Manifest(kind, format, dtype, card.dim, False, card, how, {})


def begun_dtype(out: str | Path, format: str) -> str | None:
    """Return the dtype of the cache in ``out``, which may be unfinished; None without one."""
    begun = read_plan(out)
    return begun.dtype if begun is not None and begun.format == format else None


def _default_dtype(vectors: Sequence[Vectors], format: str) -> str:
    """Return the dtype to store: float16 where the files and the format have it, else float32."""
    format_dtype = plugins.module("caches", format, CacheError).DEFAULT_DTYPE
    if format_dtype == "float16" and all(file.dtype == "float16" for file in vectors):
        return "float16"
    return "float32"


@dataclass(frozen=True)
class Adopted:
    """What an adoption did.

    ``lengths`` are the shortest and the longest row if they were measured in this call.
    ``already`` is whether the cache was finished before.
    """

    manifest: Manifest
    out: str
    lengths: tuple[float, float] | None = None
    already: bool = False

    def describe(self) -> str:
        """Return a human-readable summary of a few lines."""
        manifest = self.manifest
        card = manifest.encoder
        if self.already:
            return f"{self.out}: finished already, {manifest.rows:,} rows; nothing to do"
        bad = sum(len(shard.bad) for shard in manifest.shards)
        rows_in = manifest.rows + bad
        rows = f"{rows_in:,} rows in = {manifest.rows:,} rows out + {bad:,} quarantined"
        if bad:
            rows += f" (listed in {self.out}/{QUARANTINE})"
        weights = "weights unknown"
        if card.weights_sha256:
            weights = f"weights {card.weights_sha256[:12]}"
        unit = "not unit length (--normalize makes them so)"
        if manifest.normalized:
            unit = "unit length"
        measured = "as measured before"
        if self.lengths:
            shortest, longest = self.lengths
            measured = f"measured from {shortest:.4f} to {longest:.4f}"
        stored = f"{manifest.format} {manifest.dtype}[{manifest.dim}]"
        keys = manifest.how["keys"]
        if manifest.kind == "image" and keys != RAW_ROWS:
            keys += "; to train on it, --rows-of names the images"
        lines = [
            f"{self.out}: {rows}",
            f"  {manifest.how['adopted']} files, now {stored}",
            f"  keys: {keys}",
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
    """Write ``shards`` into the cache folder ``out``; an adoption that was interrupted is resumed.

    ``shards`` are of :func:`pieces` or :func:`pieces_of`, ``head`` is of :func:`header`. The
    manifest's ``normalized`` is whether the length of every row is within 1e-3 of 1, as measured
    before anything is written. ``normalize`` divides each row by its length. Rows that, in the
    dtype to store, are not finite or have length 0 are quarantined. Rows pass in blocks, so memory
    does not grow with a mapped file.

    Raises CacheError when no row can be used, or ``out`` holds a cache made otherwise.
    """
    how = dict(head.how)
    if normalize:
        how["normalize"] = True
    if shards[0].raw is not None:
        how["keys"] = RAW_ROWS
    head = dataclasses.replace(head, how=how)
    lengths = None
    begun = read_plan(out)
    if begun is not None:
        normalized = begun.normalized
    else:
        lengths = _measure(shards, head, normalize, quiet)
        normalized = all(abs(length - 1) <= UNIT_TOLERANCE for length in lengths)
    with write_lock(out, shared=False):
        writer = _open_writer(shards, dataclasses.replace(head, normalized=normalized), out)
        already = writer.finished is not None
        manifest = _write(shards, writer, normalize, quiet)
    return Adopted(manifest, str(out), lengths, already)


def _open_writer(shards: Sequence[Piece], head: Manifest, out: str | Path) -> CacheWriter:
    sources = [(shard.name, len(shard)) for shard in shards]
    digests = {shard.name: shard.digest for shard in shards}
    return CacheWriter(out, head, sources, digests)


def _measure(
    shards: Sequence[Piece], head: Manifest, normalize: bool, quiet: bool
) -> tuple[float, float]:
    """Return the shortest and the longest length of the usable rows.

    Raises CacheError when no row is usable.
    """
    shortest = np.inf
    longest = 0.0
    total = sum(len(shard) for shard in shards)
    loss = LossCount()
    with Progress(total, "measure", "row", quiet=quiet) as progress:
        for shard in shards:
            _, rows = shard.read()
            first = 0  # number of the block's first row
            for block in _blocks(rows, normalize):
                lengths = _lengths(block, head.dtype)
                usable = np.flatnonzero(_usable(lengths))
                usable_lengths = lengths[usable]
                shortest = usable_lengths.min(initial=shortest)
                longest = usable_lengths.max(initial=longest)
                if block.dtype != head.dtype:
                    stored = block[usable].astype(head.dtype)
                    loss.add(block[usable], stored, shard.name, first + usable)
                first += len(block)
                progress.update(len(block))
    if longest == 0:
        raise CacheError(
            f"{shards[0].name}: none of the {total} rows can be used as {head.dtype}, all are zero"
            " or not finite. Fix: look at what wrote them"
        )
    if loss.lossy:
        raise CacheError(
            f"{shards[0].name}: {loss.describe(head.dtype)}. Fix: use --dtype float32, or"
            " --normalize"
        )
    return float(shortest), float(longest)


def _write(shards: Sequence[Piece], writer: CacheWriter, normalize: bool, quiet: bool) -> Manifest:
    """Write every shard that is not finished yet, and seal the cache."""
    todo = [shard for shard in shards if shard.name not in writer]
    total = sum(len(shard) for shard in todo)
    with Progress(total, "write", "row", quiet=quiet) as progress:
        for shard in todo:
            _write_shard(shard, writer, normalize, progress)
    return writer.seal()


def _write_shard(shard: Piece, writer: CacheWriter, normalize: bool, progress: Progress) -> None:
    dtype = writer.header.dtype
    keys, rows = shard.read()
    first = 0  # number of the block's first row
    bad = list(shard.bad)
    skipped = SkipIndex.from_rows([row.row for row in bad])
    with writer.row_buffer(shard.name) as buffer:
        for block in _blocks(rows, normalize):
            lengths = _lengths(block, dtype)
            usable = _usable(lengths)
            for place in np.flatnonzero(~usable).tolist():
                reason = "has no length" if lengths[place] == 0 else "is not finite"
                stored = first + place
                row = int(skipped.to_source(np.array(stored)))
                bad.append(Bad(row, keys[stored], f"feature {reason} as {dtype}"))
            good_keys = [keys[first + place] for place in np.flatnonzero(usable)]
            buffer.add(good_keys, block[usable])
            first += len(block)
            progress.update(len(block))
        writer.write(shard.name, buffer.keys, buffer.rows(), bad)


def _blocks(rows: np.ndarray, normalize: bool) -> Iterator[np.ndarray]:
    """Yield rows in blocks: unchanged, or float32 of unit length; rows of length 0 stay zero."""
    for start in range(0, len(rows), BLOCK):
        block = np.asarray(rows[start : start + BLOCK])
        if normalize:
            lengths = np.linalg.norm(block.astype(np.float64), axis=1, keepdims=True)
            divisors = np.where(lengths > 0, lengths, 1)
            with np.errstate(invalid="ignore"):
                block = (block / divisors).astype(np.float32)
        yield block


def _lengths(block: np.ndarray, dtype: str) -> np.ndarray:
    """Return the lengths [n] of rows as ``dtype``; not finite where a number is not finite."""
    with np.errstate(over="ignore"):
        as_stored = block.astype(dtype)
        return np.linalg.norm(as_stored.astype(np.float64), axis=1)


def _usable(lengths: np.ndarray) -> np.ndarray:
    return np.isfinite(lengths) & (lengths > 0)


def adopt_tsv(
    files: Sequence[Path], sources: Sequence[str], kind: str, out: Path, logit_scale: float = 100.0
) -> FeatureCache:
    """Copy feature TSVs (``key <tab> base64 of float32``) into the cache ``out-DIGEST``; open it.

    DIGEST depends on the files' content, so that features of another teacher never share the cache.
    ``sources[i]`` is the name of the raw shard that ``files[i]`` belongs to. Rows that are not
    finite or have length 0 are quarantined. A row of another byte length than the first is an
    error, since it means another dtype or teacher. ``logit_scale`` is 100 in the released code
    (Training/utils/misc.py:12). Lengths are not measured.

    Files that are shards of a cache keep its teacher, settings and quarantined rows.
    """
    vectors = open_tsvs(files)
    own = own_shards(files, kind)
    digests = [file.digest() for file in vectors]
    if own:
        head = dataclasses.replace(own[0].cache.manifest, format="hdf5", shards=())
        head = dataclasses.replace(head, how={**head.how, "adopted": "dime-fm tsv"})
        digests.append(identity_of(own))
    else:
        card = EncoderCard(f"{UNKNOWN} (DIME-FM feature TSV)", None, vectors[0].dim, logit_scale)
        how = {"adopted": "dime-fm tsv"}
        head = Manifest(kind, "hdf5", "float32", card.dim, False, card, how, {})
    root = out.with_name(f"{out.name}-{sha256_keys(digests)[:12]}")
    shards = []
    for number, (name, file) in enumerate(zip(sources, vectors, strict=True)):
        whole = Span(file, 0, file.count)
        if own:
            info = own[number].info
            shards.append(Piece(name, (whole,), info.source_digest, bad=own[number].bad))
        else:
            shards.append(Piece(name, (whole,), ""))
    with write_lock(root, shared=False):
        writer = _open_writer(shards, head, root)
        _write(shards, writer, normalize=False, quiet=True)
    return FeatureCache(root)

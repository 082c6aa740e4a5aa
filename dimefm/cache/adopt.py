"""Taking up DIME-FM's own feature TSVs, which carry no word of who made them.

Every row is read and checked once and written into a sealed cache of ours; from there on nothing is special about it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimefm.cache.files import sampled_sha256, sha256_keys
from dimefm.cache.manifest import EncoderCard, Manifest
from dimefm.cache.reader import FeatureCache
from dimefm.cache.writer import Bad, CacheWriter
from dimefm.errors import CacheError

UNKNOWN = "unknown (DIME-FM feature TSV)"


def adopt_tsv(
    files: Sequence[Path], sources: Sequence[str], kind: str, out: Path, logit_scale: float = 100.0
) -> FeatureCache:
    """Copy feature TSVs (``key <tab> base64 of float32``) into the cache ``out-DIGEST`` and return it.

    DIGEST tells these files from others, so that features of another teacher are never taken for these.
    ``sources[i]`` is the name of the raw shard that ``files[i]`` belongs to. Rows that are not finite or have no length
    are quarantined; a row of another byte length than the first is an error, since it means another dtype or teacher.
    ``logit_scale`` is 100 in the released code (Training/utils/misc.py:12).
    """
    dim = _first_dim(files[0])
    card = EncoderCard(UNKNOWN, None, dim, logit_scale)
    header = Manifest(kind, "hdf5", "float32", dim, False, card, {"adopted": "dime-fm tsv"}, {})
    digest = sha256_keys(sampled_sha256(path) for path in files)
    root = out.with_name(f"{out.name}-{digest[:12]}")
    writer = CacheWriter(root, header, [(name, _lines(path)) for name, path in zip(sources, files, strict=True)])
    for name, path in zip(sources, files, strict=True):
        if name not in writer:
            keys, rows = _read(path, dim)
            _refuse_float16(path, rows)
            good = np.isfinite(rows).all(1) & (np.linalg.norm(rows, axis=1) > 0)
            bad = [Bad(int(i), keys[i], "feature is not finite or has no length") for i in np.flatnonzero(~good)]
            writer.write(name, [keys[i] for i in np.flatnonzero(good)], rows[good], bad)
    writer.seal()
    return FeatureCache(root)


def _first_dim(path: Path) -> int:
    with path.open("rb") as file:
        value = file.readline().rstrip(b"\n").partition(b"\t")[2]
    try:
        size = len(base64.b64decode(value, validate=True))
    except binascii.Error as error:
        raise CacheError(f"{path}, row 0: the second column is not base64 ({error}); is this a feature TSV?") from error
    if not size or size % 4:
        raise CacheError(f"{path}, row 0: {size} bytes, expected a multiple of 4 (float32); is this a feature TSV?")
    return size // 4


def _refuse_float16(path: Path, rows: np.ndarray) -> None:
    """Raise CacheError when the bytes make sense as float16 and not as float32: the file itself does not say."""
    halves = np.ascontiguousarray(rows).view(np.float16)
    if not len(rows) or not (np.abs(halves) < 256).all():
        return
    if 0 < np.median(np.abs(np.nan_to_num(rows))) < 1e-3 < np.median(np.abs(halves)):
        raise CacheError(
            f"{path}: as float32[{rows.shape[1]}] the values vanish, as float16[{halves.shape[1]}] they do not; features of "
            "DIME-FM are float32: write the file anew as float32, or extract with dimefm"
        )


def _lines(path: Path) -> int:
    """Return the number of rows: newlines, and one more for a last row without."""
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def _read(path: Path, dim: int) -> tuple[list[str], np.ndarray]:
    from dimefm.cache.formats import tsv

    try:
        return tsv.read(path, "float32", dim)
    except ValueError as error:
        raise CacheError(f"{path}, {error}; every row must be float32[{dim}] as in the first file") from error

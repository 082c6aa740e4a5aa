"""Caches to measure: made rows in every format, and the real CLIP features beside the checkout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest

BLOCK = 8192  # rows made at once


@dataclass(frozen=True)
class Sizes:
    """What is measured: ``rows`` of ``dim`` numbers, ``repeats`` rounds, under ``folder``;
    ``quick`` leaves out millions.
    """

    rows: int
    dim: int
    repeats: int
    folder: Path
    quick: bool


def header(
    format_: str, dim: int, dtype: str | None = None, kind: str = "image", scale: float = 100.0
) -> Manifest:
    """Return a manifest without shards, of an unknown encoder."""
    dtype = dtype or ("float32" if format_ == "tsv" else "float16")
    return Manifest(
        kind, format_, dtype, dim, True, EncoderCard("benchmark", None, dim, scale), {}, {}
    )


def made(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return rows of unit length, float16 [rows, dim]: random directions, the worst case for a
    compressor.
    """
    random, found = np.random.default_rng(seed), np.empty((rows, dim), dtype=np.float16)
    for start in range(0, rows, BLOCK):
        block = random.standard_normal((min(BLOCK, rows - start), dim), dtype=np.float32)
        found[start : start + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return found


def names(start: int, stop: int) -> list[str]:
    """Return keys as a folder of photographs has them."""
    return [f"photos/{number // 10_000:05d}/{number:012d}.jpg" for number in range(start, stop)]


def cut(rows: int, shards: int) -> list[tuple[str, int, int]]:
    """Return (source, start, stop) of shards that are equal but for the last."""
    step = -(-rows // shards)
    return [
        (f"part_{start // step:05d}.tar", start, min(start + step, rows))
        for start in range(0, rows, step)
    ]


def write(
    root: Path, head: Manifest, rows: np.ndarray, keys: Sequence[str], shards: int = 1
) -> Manifest:
    """Write ``rows`` whole shard by whole shard and seal the cache."""
    parts = cut(len(rows), shards)
    writer = CacheWriter(root, head, [(name, stop - start) for name, start, stop in parts])
    for name, start, stop in parts:
        writer.write(name, keys[start:stop], rows[start:stop])
    return writer.seal()


def spooled(
    root: Path,
    head: Manifest,
    rows: np.ndarray,
    keys: Sequence[str],
    shards: int,
    portion: int = 256,
) -> Manifest:
    """Write ``rows`` as an extraction does: portion by portion through the spool on disk."""
    parts = cut(len(rows), shards)
    writer = CacheWriter(root, head, [(name, stop - start) for name, start, stop in parts])
    for name, start, stop in parts:
        with writer.row_buffer(name) as spool:
            for a in range(start, stop, portion):
                b = min(a + portion, stop)
                spool.add(keys[a:b], rows[a:b])
            writer.write(name, spool.keys, spool.rows())
    return writer.seal()


@dataclass(frozen=True)
class Real:
    """One set of real features: ``rows`` float [n, dim] as they were found and their real keys."""

    name: str
    kind: str
    keys: list[str]
    rows: np.ndarray

    def save(self, root: Path, format_: str, dtype: str) -> FeatureCache:
        """Write a cache of one shard and open it."""
        head = header(format_, self.rows.shape[1], dtype, self.kind)
        write(root, head, self.rows.astype(dtype), self.keys)
        return FeatureCache(root)


def real(data: Path) -> dict[str, Real]:
    """Return the sets under ``data``/features: images, the pairs' two sides, and class names,
    OpenAI CLIP ViT-B/32.
    """
    photos, classes = (
        data / "features/flickr8k_clip_vitb32",
        data / "features/class_text_clip_vitb32",
    )
    paired = [
        line.split("\t")[0]
        for line in (photos / "paired.tsv").read_text(encoding="utf-8").splitlines()
    ]
    found = [
        Real(
            "images",
            "image",
            (photos / "image_keys.txt").read_text().split(),
            np.load(photos / "image_features.npy"),
        ),
        Real("paired images", "image", paired, np.load(photos / "paired_image_features.npy")),
        Real("paired texts", "text", paired, np.load(photos / "paired_text_features.npy")),
        Real("lvis", "text", _lines(classes / "lvis1203.txt"), np.load(classes / "lvis1203.npy")),
        Real("coco", "text", _lines(classes / "coco80.txt"), np.load(classes / "coco80.npy")),
    ]
    return {each.name: each for each in found}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()

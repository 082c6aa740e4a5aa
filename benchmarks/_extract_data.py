"""What the extraction benchmarks read: JPEG photos and sentences, from real sets beside the
checkout, else made.
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

LANDSCAPE, QUALITY = (
    (
        500,
        375,
    ),
    95,
)  # 57 kB a photo, what a camera's 500 x 375 has at quality 90: these were enlarged
SETS = ("caltech101/test", "caltech101/train", "scene15/test", "scene15/train")
CAPTIONS = "sentences/multi30k_en.parquet"
TARS = 4


@dataclass(frozen=True)
class Sizes:
    """How much is measured, under ``folder``.

    ``images`` photos, of which heavy towers see ``heavy`` in a round, ``batch`` at a time;
    ``sentences``, of which the slow peer sees ``slow``; ``shards`` of a finished cache; ``repeats``
    rounds. ``data`` is the folder of real sets or None.
    """

    images: int
    heavy: int
    batch: int
    sentences: int
    slow: int
    shards: int
    repeats: int
    folder: Path
    data: Path | None


@dataclass(frozen=True)
class Photos:
    """JPEG files: ``every`` folder, ``heavy`` and ``warm`` parts of it, the same as ``tars``, and
    ``note`` for people.
    """

    every: Path
    heavy: Path
    warm: Path
    tars: Path
    note: str

    def files(self, folder: Path) -> list[Path]:
        """Return the files of one of the folders in order."""
        return sorted(folder.glob("*.jpg"))


def real(data: Path) -> Path | None:
    """Return the folder of real sets if it is there."""
    return data if (data / CAPTIONS).is_file() else None


def photos(sizes: Sizes) -> Photos:
    """Write ``sizes.images`` JPEGs of 500 x 375 or 375 x 500 pixels, and their parts and tars as
    links and copies.
    """
    root = sizes.folder / "photos"
    made = Photos(*(root / name for name in ("every", "heavy", "warm", "tars")), _note(sizes))
    for folder in (made.every, made.heavy, made.warm, made.tars):
        folder.mkdir(parents=True)
    for number, picture in enumerate(itertools.islice(_pictures(sizes.data), sizes.images)):
        (made.every / f"{number:06d}.jpg").write_bytes(jpeg(picture))
    files = made.files(made.every)
    for folder, count in ((made.heavy, sizes.heavy), (made.warm, sizes.batch)):
        for file in files[:count]:
            os.link(file, folder / file.name)
    for number in range(TARS):
        tar_of(files[number::TARS], made.tars / f"{number}.tar")
    return made


def tar_of(files: list[Path], tar: Path) -> None:
    """Write files into a tar as webdataset has them."""
    with tarfile.open(tar, "w") as archive:
        for file in files:
            archive.add(file, file.name)


def jpeg(picture: Image.Image) -> bytes:
    """Return the picture cut and enlarged to the size of the benchmark, as a JPEG."""
    size = LANDSCAPE if picture.width >= picture.height else LANDSCAPE[::-1]
    file = io.BytesIO()
    ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=QUALITY
    )
    return file.getvalue()


def _note(sizes: Sizes) -> str:
    if sizes.data is None:
        return "photo-like images made of noise (no real ones at hand)"
    known = sum(len(_files_of(sizes.data / f"classification/{name}.parquet")) for name in SETS)
    again = f", the {known:,} of them repeated" if known < sizes.images else ""
    return (
        f"Caltech-101 and 15 Scenes, resized up to {LANDSCAPE[0]} x {LANDSCAPE[1]}, quality"
        f" {QUALITY}{again}"
    )


def _pictures(data: Path | None) -> Iterator[Image.Image]:
    """Yield the real pictures in one fixed random order, again and again; made ones where there are
    none.
    """
    if data is None:
        yield from (_made(number) for number in itertools.count())
    found = [file for name in SETS for file in _files_of(data / f"classification/{name}.parquet")]
    order = np.random.default_rng(7).permutation(len(found)).tolist()
    yield from (Image.open(io.BytesIO(found[number])) for number in itertools.cycle(order))


def _files_of(table: Path) -> list[bytes]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(table, columns=["image"])["image"].to_pylist()


def _made(number: int) -> Image.Image:
    """Return noise of six sizes, the coarser the stronger: an image that costs a decoder what a
    photo costs.
    """
    random, (width, height) = np.random.default_rng(number), LANDSCAPE
    total = np.zeros((height, width, 3), np.float32)
    for level in range(6):
        grid = random.integers(0, 256, (4 << level, 5 << level, 3), dtype=np.uint8)
        total += np.asarray(
            Image.fromarray(grid).resize(LANDSCAPE, Image.Resampling.BICUBIC), np.float32
        ) * 0.5 ** (level + 1)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def captions(data: Path | None, start: int, count: int) -> list[str]:
    """Return ``count`` sentences from number ``start`` on: descriptions of photos, made of words
    where there are none.
    """
    if data is None:
        return [_sentence(number) for number in range(start, start + count)]
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(data / CAPTIONS, columns=["text"])["text"]
    return column.slice(start, count).to_pylist()


def _sentence(number: int) -> str:
    words = (
        "a man woman dog child in on with the red blue green shirt street grass water plays runs"
        " stands jumping over near"
    )
    random = np.random.default_rng(number)
    return " ".join(random.choice(words.split(), random.integers(5, 20))) + f" {number}."


def written(sentences: list[str], path: Path) -> Path:
    """Write one sentence a line."""
    path.write_text(
        "".join(" ".join(sentence.split()) + "\n" for sentence in sentences), encoding="utf-8"
    )
    return path

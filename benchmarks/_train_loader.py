"""Loading from DIME-FM's own files: the training's batches beside the released loader's way, a new
reader for every row.

Both give the same: an image's view, decoded and cropped by the same code, and its feature in
float32; one thread each.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._cache_data import made
from benchmarks._dime_fm_tsv import Composite
from benchmarks._timing import Line, Work, interleaved
from dimefm.recipe import Recipe, read
from dimefm.train.inputs.cached_features import features_of
from dimefm.train.inputs.image_batches import Batches
from dimefm.train.inputs.sources import open_sources

DIM, PIXELS, SIDE, PICTURES = (
    512,
    224,
    128,
    16,
)  # of a feature; sides of a view and of the images; how many differ
BATCH, BATCHES, FEW = 64, 4, 12  # rows a batch and batches a round; rows of the slow way in a round
LARGE, AIM = 20_000, (">=", 20.0)  # rows from which on the goal holds
LOSSES = {"dime.vl": {"weight": 0.7}, "dime.pvl": {"weight": 0.3}}
PARTS = ("image.tsv", "image.feat.tsv", "text.feat.tsv")


def tsvs(folder: Path, rows: int, dim: int) -> tuple[str, ...]:
    """Write images, their features and as many of sentences, at most LARGE, as DIME-FM has them;
    return the files.
    """
    folder.mkdir(parents=True)
    features, pictures = (
        made(rows, dim).astype("<f4"),
        [_picture(number) for number in range(PICTURES)],
    )
    _write(folder / PARTS[0], [pictures[row % PICTURES] for row in range(rows)])
    _write(folder / PARTS[1], [row.tobytes() for row in features])
    _write(folder / PARTS[2], [row.tobytes() for row in features[:LARGE]])
    return tuple(str(folder / name) for name in PARTS)


def _picture(number: int) -> bytes:
    """Return a JPEG of coarse noise, SIDE pixels wide and high."""
    grid = np.random.default_rng(number).integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=90
    )
    return file.getvalue()


def _write(path: Path, values: Sequence[bytes]) -> None:
    """Write one TSV and the index of its lines."""
    offset, offsets = 0, []
    with path.open("wb") as file:
        for row, value in enumerate(values):
            offsets.append(offset)
            offset += file.write(b"%d\t%s\n" % (row, base64.b64encode(value)))
    path.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in offsets))


def recipe_of(files: Sequence[str], **settings: object) -> Recipe:
    """Return a recipe with DIME-FM's loss and free crops on files of DIME-FM's form, on the CPU."""
    given = {"losses": LOSSES, "crops": "free", "logit_scale": 100.0, "device": "cpu", **settings}
    return read(None, tsv_file_list=list(files), **given)


@dataclass(frozen=True)
class Ways:
    """The training's batches and the released loader's way on the same ``files``."""

    files: Sequence[str]
    batches: Batches

    @staticmethod
    def on(files: Sequence[str], out: Path, batch: int = BATCH) -> Ways:
        """Open the files; ``out`` takes what is adopted."""
        recipe = recipe_of(files, batch_size=batch)
        return Ways(files, Batches(open_sources(recipe, out), recipe, PIXELS, None))

    def ours(self, repeat: int) -> None:
        """Load BATCHES batches of images and features."""
        for number in range(BATCHES):
            self.batches(repeat * BATCHES + number)

    def our_features(self, repeat: int) -> None:
        """Deal and read the image features of BATCHES batches, no image."""
        size, sources = self.batches.recipe.batch_size, self.batches.sources
        for number in range(BATCHES):
            usable, epochs = self.batches.order.take((repeat * BATCHES + number) * size, size)
            features_of(sources.image_caches, sources.locate(usable, epochs * 0)[1])

    def released(self, rows: Sequence[int], collect: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (view, feature) of rows, each by two new readers."""
        images, features = (Composite(Path(file), collect) for file in self.files[:2])
        return [
            (self.batches.view(images.value(row), str(row), 0, row), features[row]) for row in rows
        ]

    def released_features(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return the features of rows, each by a new reader."""
        features = Composite(Path(self.files[1]))
        return [features[row] for row in rows]


def loader(folder: Path, sizes: Sequence[int], repeats: int) -> list[Line]:
    """Return rows/s of both ways at each number of rows, of all work and of the features alone, and
    how the ratio grows.

    Growth is that of the ratio without garbage collections: their cost is that of the objects in
    the process, at any size.
    """
    lines: list[Line] = []
    ratios = []
    for size in sizes:
        ways = Ways.on(tsvs(folder / "data", size, DIM), folder / "run", min(BATCH, size))
        found = _lines(ways, size, repeats)
        lines += found
        ratios.append(found[1].ratio or 0.0)
        shutil.rmtree(folder)
    what = f"the ratio without collections: with {sizes[-1]:,} rows, against with {sizes[0]:,}"
    return [*lines, Line("loader growth", what, ratios[-1], "x", ratios[0], (">=", 1.0))]


def _lines(ways: Ways, size: int, repeats: int) -> list[Line]:
    few = np.random.default_rng(0).integers(0, size, FEW).tolist()
    rows = BATCHES * ways.batches.recipe.batch_size
    works = {
        "ours": Work(ways.ours, rows),
        "released": Work(lambda _: ways.released(few, True), FEW),
        "released without gc": Work(lambda _: ways.released(few, False), FEW),
        "features": Work(ways.our_features, rows),
        "released features": Work(lambda _: ways.released_features(few), FEW),
    }
    seen = interleaved(works, repeats)
    what, aim = f"{size:,} rows", AIM if size >= LARGE else None
    return [
        Line(
            f"loader {size} / DIME-FM",
            f"{what}, image and feature: batches / a reader for each row",
            seen["ours"],
            against=seen["released"],
            goal=aim,
        ),
        Line(
            f"loader {size} / DIME-FM without gc",
            f"{what}, the same, its garbage collections left out",
            seen["ours"],
            against=seen["released without gc"],
        ),
        Line(
            f"loader {size} features / DIME-FM",
            f"{what}, the feature alone",
            seen["features"],
            against=seen["released features"],
        ),
    ]

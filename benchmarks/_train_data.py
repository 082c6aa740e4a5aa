"""What training's images cost: views a second by PIL, by libjpeg-turbo and from packed images;
packing; the share of a step.

    python -m benchmarks._train_data FOLDER [IMAGES] [STEPS]

prints the table alone; FOLDER, which is not there yet, gets the photos and the run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks._extract_data import Sizes, photos, real
from benchmarks._timing import Line, Work, interleaved, table
from dimefm.cache import CacheWriter, EncoderCard, Manifest
from dimefm.data import Rows, open_rows
from dimefm.data.images.decode import decode
from dimefm.data.images.random_crop import RandomCrop
from dimefm.data.packed.pack import Settings, pack
from dimefm.errors import DataError
from dimefm.recipe import Recipe, read
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.student_views import StudentTransform
from dimefm.train.trainer import train

PIXELS, DIM, WARM = 224, 512, 1  # side of a view, dimension of features, steps that are not counted
STUDENT, BATCH = "ViT-T-16", 64
TURBO, PACKED, SHARE = (">=", 1.5), (">=", 2.5), ("<=", 5.0)
View = Callable[[bytes, str, int, int], np.ndarray]


def by_pil(recipe: Recipe, size: int) -> View:
    """Return the recipe's free crops by PIL alone, from all pixels of the image."""
    augment = RandomCrop(recipe.crop_scale, recipe.crop_ratio, recipe.flip)

    def view(data: bytes, key: str, number: int, seed: int) -> np.ndarray:
        image = decode(data)
        factor = recipe.resize / min(image.size)
        shape = (round(image.width * factor), round(image.height * factor))
        image = image.resize(shape, Image.Resampling.BICUBIC)
        box, flip = augment.draw(*image.size, seed)
        found = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(ImageOps.mirror(found) if flip else found)

    return view


def all_views(rows: Rows, view: View, threads: int) -> Callable[[int], None]:
    """Return a run over all rows: each is read and one view of it made, in so many threads."""

    def one(number: int, repeat: int) -> None:
        row = rows[number]
        view(row.image or b"", row.key, 0, seed_of(repeat, number))

    def run(repeat: int) -> None:
        with ThreadPoolExecutor(threads, "loader", torch.set_num_threads, (1,)) as pool:
            for done in [pool.submit(one, number, repeat) for number in range(len(rows))]:
                done.result()

    return run


def views(originals: Rows, packed: Rows, repeats: int) -> list[Line]:
    """Return views/s at 224 pixels of one and of two threads: PIL on originals against the
    training's own way on both.
    """
    recipe, lines = read(None, crops="free"), []
    pil, ours = by_pil(recipe, PIXELS), StudentTransform.from_recipe(recipe, None, PIXELS)
    for threads, name in ((1, "one thread"), (2, "two threads")):
        ways = {"pil": (originals, pil), "turbo": (originals, ours), "packed": (packed, ours)}
        works = {
            way: Work(all_views(rows, view, threads), len(rows))
            for way, (rows, view) in ways.items()
        }
        rates = interleaved(works, repeats)
        what = f"views of {PIXELS} pixels, {name}"
        lines += [
            Line(
                f"views turbo / pil, {name}",
                f"{what}: originals / by PIL",
                rates["turbo"],
                "images/s",
                rates["pil"],
                TURBO,
            ),
            Line(
                f"views packed / pil, {name}",
                f"{what}: packed / by PIL",
                rates["packed"],
                "images/s",
                rates["pil"],
                PACKED,
            ),
        ]
    return lines


def several(originals: Rows, repeats: int, counts: Sequence[int] = (2, 4)) -> list[Line]:
    """Return images per second of CPU time whose views of one step are made together, against each
    view alone.
    """
    ours, images, lines = (
        StudentTransform.from_recipe(read(None, crops="free"), None, PIXELS),
        [row.image or b"" for row in originals],
        [],
    )

    def run(count: int, together: bool, repeat: int) -> None:
        for number, image in enumerate(images):
            shown = [(0, seed_of(repeat, number, view)) for view in range(count)]
            for part in [shown] if together else [[one] for one in shown]:
                ours.several(image, "", part)

    for count in counts:
        works = {
            way: Work(partial(run, count, way == "together"), len(images))
            for way in ("together", "alone")
        }
        rates = interleaved(works, repeats, time.process_time)
        what = f"{count} views of {PIXELS} pixels of an image, CPU time: together / each alone"
        lines.append(
            Line(
                f"{count} views together / alone",
                what,
                rates["together"],
                "images/s",
                rates["alone"],
            )
        )
    return lines


def differences(originals: Rows, packed: Rows, few: int = 100) -> list[Line]:
    """Return by how many grey levels views differ on average: ours from PIL's, and packed images'
    from the originals'.
    """
    recipe = read(None, crops="free")
    pil, ours = by_pil(recipe, PIXELS), StudentTransform.from_recipe(recipe, None, PIXELS)
    found: dict[str, list[float]] = {"pil": [], "packed": []}
    for number in range(min(few, len(originals))):
        whole, small = originals[number].image or b"", packed[number].image or b""
        view = ours(whole, "", 0, number).astype(np.int16)
        others = {"pil": pil(whole, "", 0, number), "packed": ours(small, "", 0, number)}
        for name, other in others.items():
            found[name].append(float(np.abs(view - other).mean()))
    names = {"pil": "by PIL", "packed": "of packed images"}
    return [
        Line(
            f"views difference {name}",
            f"views, difference from those {names[name]}",
            float(np.mean(values)),
            "levels",
        )
        for name, values in found.items()
    ]


def packing(originals: Rows, out: Path) -> list[Line]:
    """Pack the originals; return how fast that was and the bytes of an image before and after."""
    before = sum(len(row.image or b"") for row in originals) / len(originals)
    report = pack(originals, out, Settings(progress=False))
    after = report.bytes / report.rows
    return [
        Line("pack", "packing, all cores", report.rows / report.seconds, "images/s"),
        Line("pack bytes", "bytes of an image: packed / original", after, "bytes", before),
    ]


def share(
    packed: Path, folder: Path, steps: int, batch: int = BATCH, student: str = STUDENT
) -> list[Line]:
    """Train from packed images on features made of noise; return the percentage of the steps' time
    spent waiting for data.

    The first step, in which nothing is loaded ahead, is not counted.
    """
    rows = open_rows([packed])
    draw = np.random.default_rng(0)
    sources = {
        "image": [(shard.name, shard.keys()) for shard in rows.shards],
        "text": [("words", list(map(str, range(512))))],
    }
    for kind, shards in sources.items():
        header = Manifest(
            kind, "hdf5", "float32", DIM, True, EncoderCard("noise", None, DIM, 100.0), {}, {}
        )
        writer = CacheWriter(folder / kind, header, [(name, len(keys)) for name, keys in shards])
        for name, keys in shards:
            vectors = draw.standard_normal((len(keys), DIM)).astype(np.float32)
            writer.write(name, keys, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        writer.seal()
    recipe = read(
        None,
        images=[str(packed)],
        image_cache=str(folder / "image"),
        text_cache=str(folder / "text"),
        student=student,
        losses={"dime.vl": {"weight": 1.0}},
        crops="free",
        steps=WARM + steps,
        batch_size=batch,
        log_every=1,
        device="cpu",
    )
    lines = (
        (train(recipe, folder / "run", echo=lambda line: None) / "log.jsonl")
        .read_text()
        .splitlines()
    )
    logged = [json.loads(line) for line in lines][WARM:]
    seconds = [batch / line["rows_per_s"] for line in logged]
    waited = sum(line["data_share"] * second for line, second in zip(logged, seconds, strict=True))
    what = f"{student}, batches of {batch}, packed images"
    return [
        Line(
            "step data share",
            f"{what}: share of a step that waits for data",
            100 * waited / sum(seconds),
            "%",
            None,
            SHARE,
        ),
        Line(
            "step images/s", f"{what}: trained on", batch * len(logged) / sum(seconds), "images/s"
        ),
    ]


def data(sizes: Sizes, steps: int) -> list[Line]:
    """Write photos, pack them, and return all lines."""
    originals = open_rows([photos(sizes).every])
    if not len(originals):
        raise DataError(f"{sizes.folder}: no photos were made; ask for more than none")
    lines = packing(originals, sizes.folder / "packed")
    packed = open_rows([sizes.folder / "packed"])
    lines += (
        views(originals, packed, sizes.repeats)
        + several(originals, sizes.repeats)
        + differences(originals, packed)
    )
    return lines + share(sizes.folder / "packed", sizes.folder / "share", steps)


if __name__ == "__main__":
    _folder, _images, _steps = (
        Path(sys.argv[1]),
        *map(int, [*sys.argv[2:], *("400", "6")[len(sys.argv) - 2 :]]),
    )
    _folder.mkdir()
    _sizes = Sizes(
        _images, 1, 1, 0, 0, 0, 3, _folder, real(Path(__file__).parents[2] / "shared/data")
    )
    print(table([("images of training", data(_sizes, _steps))]))

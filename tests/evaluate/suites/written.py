"""Miniature folders in clip-benchmark's layout."""

import io

import numpy as np
from PIL import Image

from tests.evaluate.datasets import tar, write

CLASSES = 6


def photo(draw):
    file = io.BytesIO()
    pixels = draw.integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def npy(values, **options):
    file = io.BytesIO()
    np.save(file, np.array(values, **options), allow_pickle=True)
    return file.getvalue()


def folder(root, name, members, *, images=12, shards=2, classes=CLASSES, kind=None, seed=0):
    """Write ``images`` images into ``shards`` tars; ``members`` maps endings to functions of the
    number of an image.
    """
    draw = np.random.default_rng(seed)
    place = root / name
    per_shard = images // shards
    for shard in range(shards):
        content = {}
        for number in range(shard * per_shard, (shard + 1) * per_shard):
            content[f"s{number:07d}.png"] = photo(draw)
            for ending, make in members.items():
                content[f"s{number:07d}.{ending}"] = make(number)
        tar(place / "test" / f"{shard}.tar", content)
    write(place / "test/nshards.txt", f"{shards}\n")
    if kind != "retrieval":
        names = "".join(f"thing {number}\n" for number in range(classes))
        write(place / "classnames.txt", names)
        templates = "a photo of a {c}.\nan image of {c}\n"
        write(place / "zeroshot_classification_templates.txt", templates)
    if kind is not None:
        write(place / "dataset_type.txt", kind)
    return place


def label(number):
    return str(number % CLASSES).encode()


def marks(number):
    return npy([(number + step) % 3 == 0 for step in range(CLASSES)], dtype=np.int64)


def captions(number):
    return f"first words on {number}\nother words on {number}".encode()

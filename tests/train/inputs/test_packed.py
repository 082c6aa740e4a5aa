"""Training from packed images and the features of the originals: the same rows, the same views, the
same features.
"""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from dimefm.data import open_rows
from dimefm.data.packed.pack import Settings, pack
from dimefm.data.views.image_views import ViewPolicy
from dimefm.train.inputs.image_batches import Batches
from dimefm.train.inputs.sources import open_sources
from dimefm.train.trainer import train

SMALL = Settings(size=16, quality=100, progress=False)


@pytest.mark.parametrize("crops", ["free", "center", "replay"])
def test_batches_of_packed_images_are_those_of_the_originals(world, crops, tmp_path):
    world.write_images(broken={4})
    if crops == "replay":
        world.root.joinpath("images").rename(world.root / "plain")
        world.images(views=ViewPolicy(2), quarantined={8, 9})
    pack(open_rows([str(world.root / "image_*.tsv")]), tmp_path / "packed", SMALL)
    options = {"batch_size": 17, "crops": crops}
    loads = [
        Batches(open_sources(recipe, tmp_path), recipe, 16, None)
        for recipe in (
            world.recipe(**options),
            world.recipe(**options, images=[str(tmp_path / "packed")]),
        )
    ]
    for number in range(3):
        whole, found = (load(number) for load in loads)
        np.testing.assert_array_equal(found.same_modality[0], whole.same_modality[0])
        assert len(found) == len(whole)
        assert np.abs(found.pixels.numpy().astype(int) - whole.pixels.numpy()).max() <= 3
        assert [(row["source"], row["row"], row["reason"]) for row in found.bad] == [
            (row["source"], row["row"], row["reason"]) for row in whole.bad
        ]


@pytest.mark.parametrize("crops", ["free", "center", "replay"])
@pytest.mark.parametrize("resize", [0, 24])
def test_views_of_packed_images_are_the_same_parts_of_them(world, crops, resize, tmp_path):
    """Colours that change from edge to edge tell where a view was cut."""
    write_gradients(world)
    if crops == "replay":
        world.root.joinpath("images").rename(world.root / "plain")
        world.images(views=ViewPolicy(2))
    pack(
        open_rows([str(world.root / "image_*.tsv")]),
        tmp_path / "packed",
        dataclasses.replace(SMALL, size=48),
    )
    options = {"batch_size": 17, "crops": crops, "resize": resize}
    whole, found = (
        Batches(open_sources(recipe, tmp_path), recipe, 16, None)(1).pixels.numpy().astype(int)
        for recipe in (
            world.recipe(**options),
            world.recipe(**options, images=[str(tmp_path / "packed")]),
        )
    )
    assert np.abs(found - whole).max() <= 8 and np.abs(found - whole).mean() < 1.5


def write_gradients(world):
    """Write the image shards of a world anew: images of 120 x 90 pixels whose red and green tell x
    and y.
    """
    x, y = np.meshgrid(np.linspace(0, 255, 120), np.linspace(0, 255, 90))
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8)).save(file, "PNG")
    image, start = base64.b64encode(file.getvalue()).decode(), 0
    for name, rows in zip(world.names, world.shards, strict=True):
        (world.root / name).write_text(
            "".join(f"k{number}\t{image}\n" for number in range(start, start + rows))
        )
        start += rows


def test_a_run_trains_from_packed_images(world, tmp_path):
    pack(open_rows([str(world.root / "image_*.tsv")]), tmp_path / "packed", SMALL)
    out = train(
        world.recipe(images=[str(tmp_path / "packed")], steps=2),
        tmp_path / "run",
        echo=lambda line: None,
    )
    assert (out / "run.json").exists()

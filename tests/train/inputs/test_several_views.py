"""Several views of an image in a step are those that each would be alone, to the bit, from as few
decodings as can be.
"""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dimefm.data.images import decode as images
from dimefm.data.images.decode import jpeg_of, photo_of, photos_of
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import BadRow
from dimefm.recipe import read
from dimefm.train.inputs import student_views
from dimefm.train.inputs.student_views import StudentTransform

POLICY = ViewPolicy(6, seed=5, scale=(0.02, 1.0), ratio=(0.5, 2.0), flip=0.5)
RECIPES = (
    {"crops": "free"},
    {"crops": "free", "resize": 0},
    {"augment": "moco-v2"},
    {"crops": "center"},
    {"crops": "replay"},
)


def file_of(size, kind="jpeg", seed=0):
    """Return an image file of coarse colours: a JPEG, one that lies on its side, a packed one, or a
    PNG.
    """
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image, file, exif = (
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC),
        io.BytesIO(),
        Image.Exif(),
    )
    if kind == "packed":
        return jpeg_of(np.asarray(image), 90, (2 * size[0], 2 * size[1]))
    exif[0x0112] = 6 if kind == "turned" else 1
    image.save(file, "PNG" if kind == "png" else "JPEG", exif=exif)
    return file.getvalue()


@settings(max_examples=25)
@given(
    recipe=st.sampled_from(RECIPES),
    kind=st.sampled_from(["jpeg", "turned", "packed", "png"]),
    size=st.tuples(st.integers(20, 400), st.integers(20, 400)),
    shown=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**63)), min_size=1, max_size=5),
)
def test_they_are_what_each_is_alone(recipe, kind, size, shown):
    view, data = StudentTransform.from_recipe(read(None, **recipe), POLICY, 32), file_of(size, kind)
    together = view.several(data, "k", shown)
    assert len(together) == len(shown)
    for pixels, (number, seed) in zip(together, shown, strict=True):
        np.testing.assert_array_equal(pixels, view(data, "k", number, seed))


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_size_is_decoded_and_each_canvas_resized_once(recipe, monkeypatch):
    data, decoded, canvases = file_of((640, 480)), [], []
    decode, resize = images._turbo, student_views.resized
    monkeypatch.setattr(images, "_turbo", lambda data, at: decoded.append(at) or decode(data, at))
    monkeypatch.setattr(
        student_views, "resized", lambda *args: canvases.append(args[1]) or resize(*args)
    )
    view = StudentTransform.from_recipe(read(None, **recipe), POLICY, 32)
    view.several(data, "k", [(number, number) for number in range(6)])
    assert len(decoded) == len(set(decoded)) <= 4
    assert len(canvases) == len(set(canvases)) <= 1


def test_what_only_pil_reads_is_read_once(monkeypatch):
    data, read_by = file_of((300, 200), "png"), []
    monkeypatch.setattr(
        images,
        "upright",
        lambda image, upright=images.upright: read_by.append(image) or upright(image),
    )
    view = StudentTransform.from_recipe(read(None, crops="free", resize=0), None, 16)
    view.several(data, "k", [(0, seed) for seed in range(6)])
    assert len(read_by) == 1


def test_needs_that_one_size_meets_share_their_pixels():
    data = file_of((640, 480))
    needs = [(640, 480), (321, 1), (300, 200), (320, 240), (10, 10)]
    found = photos_of(data, lambda width, height: needs)
    assert [photo.pixels.shape[:2] for photo in found] == [
        (480, 640),
        (480, 640),
        (240, 320),
        (240, 320),
        (60, 80),
    ]
    assert found[0].pixels is found[1].pixels and found[2].pixels is found[3].pixels
    for photo, least in zip(found, needs, strict=True):
        alone = photo_of(data, lambda width, height, least=least: least)
        assert alone.size == photo.size == (640, 480)
        np.testing.assert_array_equal(alone.pixels, photo.pixels)


def test_an_image_that_gives_no_view_gives_none_of_several():
    view = StudentTransform.from_recipe(read(None, crops="free"), None, 32)
    with pytest.raises(BadRow, match="not an image"):
        view.several(b"nothing", "k", [(0, 1), (0, 2)])

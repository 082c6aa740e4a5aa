"""Views in training: those of the recipe, close to what PIL makes of the same crops, and the same
part of a packed image.
"""

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, v2

from dimefm.data.images.color_jitter import ColorJitter
from dimefm.data.images.decode import decode, jpeg_of, photos_of
from dimefm.data.images.random_crop import RandomCrop
from dimefm.data.images.resize import scaled, shorter_side
from dimefm.data.packed.pack import Settings, small
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import BadRow
from dimefm.models.open_clip import default_preprocess
from dimefm.models.preprocess import decoder
from dimefm.recipe import read
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.student_views import StudentTransform

CPU = torch.device("cpu")
POLICY = ViewPolicy(3, seed=5, scale=(0.2, 0.9), ratio=(0.5, 2.0), flip=0.5)
RECIPES = {
    "dime-fm": {"crops": "free"},
    "as it is": {"crops": "free", "resize": 0},
    "center": {"crops": "center"},
    "cached": {"crops": "replay"},
}


def smooth(size, seed=0):
    """Return an image of coarse colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def file_of(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **({"quality": 92} if format == "JPEG" else {}), **options)
    return file.getvalue()


def by_pil(recipe, data, key, view, seed, size):
    """Return the same view by PIL and torchvision alone, from all pixels."""
    image = decode(data)
    if recipe.crops == "center":
        return np.asarray(
            Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])(image)
        )
    if recipe.crops == "replay":
        (box, flip), how = POLICY.draw(key, view, *image.size), Image.Resampling.BICUBIC
    else:
        if recipe.resize:
            factor = recipe.resize / min(image.size)
            shape = tuple(max(1, round(side * factor)) for side in image.size)
            image = image.resize(shape, Image.Resampling.BICUBIC)
        box, flip = RandomCrop(recipe.crop_scale, recipe.crop_ratio, recipe.flip).draw(
            *image.size, seed
        )
        how = Image.Resampling.BILINEAR
    found = image.crop(box).resize((size, size), how)
    return np.asarray(ImageOps.mirror(found) if flip else found)


def viewer(size=64, **recipe):
    found = read(None, **recipe)
    return StudentTransform.from_recipe(found, POLICY if found.crops == "replay" else None, size)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [(200, 150), (150, 210), (40, 30), (90, 91), (300, 20)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_views_are_those_of_pil_within_a_few_grey_levels(name, size, format):
    recipe, data = read(None, **RECIPES[name]), file_of(smooth(size), format)
    for seed in range(6):
        found = StudentTransform.from_recipe(recipe, POLICY, 64)(data, f"k{seed}", seed % 3, seed)
        expected = by_pil(recipe, data, f"k{seed}", seed % 3, seed, 64)
        apart = np.abs(found.astype(int) - expected)
        assert found.shape == (64, 64, 3) and found.dtype == np.uint8
        assert apart.max() <= 4 and apart.mean() < 0.3


@pytest.mark.parametrize("name", RECIPES)
def test_of_a_large_jpeg_fewer_pixels_are_decoded_and_the_view_stays_close(
    shared_data, name, monkeypatch
):
    recipe, decoded = read(None, **RECIPES[name]), []
    photo = decode((shared_data / "odd_images/rgb.jpg").read_bytes()).resize(
        (1600, 1200), Image.Resampling.BICUBIC
    )
    data = file_of(photo)
    monkeypatch.setattr(
        "dimefm.train.inputs.student_views.photos_of",
        lambda data, needs: decoded.extend(found := photos_of(data, needs)) or found,
    )
    for seed in range(4):
        found = StudentTransform.from_recipe(recipe, POLICY, 64)(data, f"k{seed}", seed % 3, seed)
        assert (
            np.abs(found.astype(int) - by_pil(recipe, data, f"k{seed}", seed % 3, seed, 64)).mean()
            < 2
        )
    assert all(photo.size == (1600, 1200) for photo in decoded)
    assert min(photo.pixels.shape[0] for photo in decoded) <= 600


def test_a_view_at_the_teachers_size_has_the_teachers_pixels():
    plain = {**default_preprocess(48), "mean": (0, 0, 0), "std": (1, 1, 1)}
    turbo = decoder("turbo", plain)
    for number in range(6):
        data = file_of(smooth((120, 90), number))
        (theirs,) = turbo.views(turbo.open(data), lambda w, h: [POLICY.draw("k", 1, w, h)])
        np.testing.assert_array_equal(
            viewer(48, crops="replay")(data, "k", 1, number), theirs.permute(1, 2, 0)
        )


def marked(size, packed, position):
    """Return a JPEG of ``size`` and the same packed: gray that tells x and y, so that a view tells
    where it was cut.
    """
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, np.full_like(x, position)], -1).round().astype(np.uint8)
    small = Image.fromarray(pixels).resize(packed, Image.Resampling.BICUBIC)
    return file_of(Image.fromarray(pixels), "PNG"), jpeg_of(np.asarray(small), 100, size)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 1000)])
def test_a_view_of_a_packed_image_is_the_same_part_of_it(name, size):
    recipe, packed = read(None, **RECIPES[name]), shorter_side(size, 256)
    whole, small = marked(size, packed, 99)
    view = StudentTransform.from_recipe(recipe, POLICY, 32)
    for seed in range(12):
        a, b = (view(data, f"k{seed}", seed % 3, seed).astype(int) for data in (whole, small))
        assert np.abs(a - b)[2:-2, 2:-2].max() <= 4, (seed, np.abs(a - b).max())
        flip = view.crop_spec(size, f"k{seed}", seed % 3, seed).flip
        assert flip == (a[:, 0, 0].mean() > a[:, -1, 0].mean())


def test_a_teacher_sees_the_same_part_of_a_packed_image_too():
    whole, small = marked((500, 375), (341, 256), 99)
    for name in ("turbo", "pil"):
        read_by = decoder(name, default_preprocess(32))
        a, b = (
            read_by.finish(
                read_by.views(read_by.open(data), lambda w, h: [POLICY.draw("k", 0, w, h)])[0][
                    None
                ],
                CPU,
            )
            for data in (whole, small)
        )
        assert (a - b).abs()[..., 2:-2, 2:-2].max() < 0.08


def test_the_default_crops_of_a_packed_image_are_those_of_the_original_to_the_pixel():
    view = viewer(64, crops="free")
    for seed in range(20):
        cut = view.crop_spec((500, 375), "k", 0, seed)
        assert cut.size == (341, 256) and scaled(cut.box, cut.size, (341, 256)) == cut.box


@st.composite
def boxes(draw):
    """Draw a size and a box that lies in it and is not empty."""
    size = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    left, top = (draw(st.integers(0, length - 1)) for length in size)
    return size, (
        left,
        top,
        draw(st.integers(left + 1, size[0])),
        draw(st.integers(top + 1, size[1])),
    )


@settings(max_examples=60)
@given(boxes(), st.tuples(st.integers(1, 600), st.integers(1, 600)))
def test_a_scaled_box_lies_inside_is_not_empty_and_at_most_half_a_pixel_off(drawn, to):
    size, box = drawn
    found = scaled(box, size, to)
    assert 0 <= found[0] < found[2] <= to[0] and 0 <= found[1] < found[3] <= to[1]
    for axis in (0, 1):
        if found[axis + 2] - found[axis] > 1:
            exact = [edge * to[axis] / size[axis] for edge in box[axis::2]]
            assert all(abs(a - b) <= 0.5 for a, b in zip(found[axis::2], exact, strict=True))
    assert scaled(box, size, size) == box


def test_augmentations_set_the_crops_that_the_recipe_does_not_say_itself(tmp_path):
    assert read(None) == read(None, augment="dime-fm")
    clip_kd = read(None, augment="clip-kd")
    assert (clip_kd.crop_scale, clip_kd.flip, clip_kd.resize) == ((0.9, 1.0), 0.0, 0)
    assert read(None, augment="clip-kd", flip=0.5) == clip_kd.replace(flip=0.5)
    (tmp_path / "r.toml").write_text('augment = "moco-v2"\nresize = 128\n[small]\nflip = 0.0\n')
    from_file = read(tmp_path / "r.toml", small=True)
    assert (from_file.crop_scale, from_file.flip, from_file.resize) == ((0.2, 1.0), 0.0, 128)
    assert read(tmp_path / "r.toml", augment="clip-kd") == clip_kd, (
        "what is said last is said with all its crops"
    )
    assert read(tmp_path / "r.toml", crop_scale=(0.5, 0.6)).resize == 128
    again = tmp_path / "saved.toml"
    again.write_text(from_file.to_toml())
    assert read(again) == from_file


def test_clip_kds_crops_are_bicubic_and_large_and_never_mirrored():
    view = viewer(48, crops="free", augment="clip-kd")
    data = file_of(smooth((100, 100)), "PNG")
    for seed in range(10):
        cut = view.crop_spec((100, 100), "k", 0, seed)
        left, top, right, bottom = cut.box
        assert (
            (right - left) * (bottom - top) >= 0.88 * 100 * 100 and not cut.flip and not cut.canvas
        )
        expected = decode(data).crop(cut.box).resize((48, 48), Image.Resampling.BICUBIC)
        assert np.abs(view(data, "k", 0, seed).astype(int) - np.asarray(expected)).max() <= 2


def test_colours_are_torchvisions_in_the_drawn_order():
    pixels = np.asarray(smooth((32, 32)))
    jitter = ColorJitter(jitter=1, gray=0, blur=0)
    for seed in range(5):
        draw = np.random.default_rng(seed_of(seed, "colour"))
        draw.random(3)
        amounts = [*draw.uniform(0.6, 1.4, 3), draw.uniform(-0.1, 0.1)]
        image = Image.fromarray(pixels)
        for number in draw.permutation(4):
            image = [
                v2.functional.adjust_brightness,
                v2.functional.adjust_contrast,
                v2.functional.adjust_saturation,
                v2.functional.adjust_hue,
            ][number](image, amounts[number])
        np.testing.assert_array_equal(jitter(pixels, seed), image)


def test_colours_come_as_often_as_moco_has_them():
    pixels = np.asarray(smooth((8, 8)))
    views = [ColorJitter()(pixels, seed) for seed in range(600)]
    gray = np.mean([(view == view[..., :1]).all() for view in views])
    same = np.mean([(view == pixels).all() for view in views])
    assert 0.16 < gray < 0.24 and 0.05 < same < 0.11  # 0.2, and 0.2 x 0.8 x 0.5


def test_colours_lie_on_top_of_cached_crops():
    data = file_of(smooth((100, 80)))
    crops = {"crop_scale": POLICY.scale, "crop_ratio": POLICY.ratio, "flip": POLICY.flip}
    plain, coloured = (
        viewer(32, crops="replay", augment=name, **crops) for name in ("dime-fm", "moco-v2")
    )
    views = [coloured(data, "k", 1, seed) for seed in range(30)]
    assert len({view.tobytes() for view in views}) > 20
    for seed, view in enumerate(views):
        np.testing.assert_array_equal(view, ColorJitter()(plain(data, "k", 1, 0), seed))


@pytest.mark.parametrize("name", ["dime-fm", "clip-kd", "moco-v2"])
def test_a_view_is_pure_in_its_arguments(name):
    view, data, before = (
        viewer(24, crops="free", augment=name),
        file_of(smooth((60, 60))),
        np.random.get_state()[1].copy(),
    )
    views = [view(data, "k", 0, seed) for seed in range(8)]
    for seed, found in enumerate(views):
        np.testing.assert_array_equal(view(data, "other", 1, seed), found)
    assert len({found.tobytes() for found in views}) == 8
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("name", RECIPES)
def test_odd_images_are_shown_or_refused_as_expected_and_packed_alike(shared_data, name):
    view = StudentTransform.from_recipe(read(None, **RECIPES[name]), POLICY, 24)
    for entry in json.loads((shared_data / "odd_images/expect.json").read_text()):
        data = (shared_data / "odd_images" / entry["file"]).read_bytes()
        for again in (lambda data: data, lambda data: small(data, Settings(size=64))):
            if entry["expect"] == "ok":
                assert view(again(data), "k", 1, 7).shape == (24, 24, 3), entry
            else:
                with pytest.raises(BadRow):
                    view(again(data), "k", 1, 7)


@pytest.mark.parametrize("data", [b"", b"no image", file_of(smooth((60, 50)))[:-900]])
def test_what_is_no_image_is_a_bad_row(data):
    with pytest.raises(BadRow):
        viewer(24, crops="free")(data, "k", 0, 0)

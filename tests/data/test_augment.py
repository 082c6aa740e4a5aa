"""Views: a pure function of (image, size, seed); the box stays inside; the centre view is CLIP's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from dimefm.data.augment import Augment, center


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("augment", [Augment(), Augment(resize=48), Augment(scale=(0.3, 0.6), flip=0)])
def test_the_same_seed_gives_the_same_view_and_another_seed_another(augment):
    image = noise(60, 57)
    views = [augment(image, 24, seed) for seed in range(8)]
    assert all(view.shape == (24, 24, 3) and view.dtype == np.uint8 for view in views)
    for seed, view in enumerate(views):
        np.testing.assert_array_equal(augment(noise(60, 57), 24, seed), view)
    assert len({view.tobytes() for view in views}) == 8


def test_drawing_a_view_leaves_the_image_and_the_global_generators_alone():
    image, before = noise(30, 20), np.random.get_state()[1].copy()
    pixels = image.tobytes()
    Augment(resize=50)(image, 16, 3)
    assert image.tobytes() == pixels
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    low=st.floats(0.01, 1.0),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.2, 0.3), (5.0, 9.0)]),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_box_lies_inside_and_is_not_empty(width, height, low, ratio, seed):
    left, top, right, bottom = Augment(scale=(low, 1.0), ratio=ratio)._box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_boxes_have_the_asked_share_and_ratio():
    augment = Augment(scale=(0.2, 0.5), ratio=(0.5, 2.0))
    boxes = [augment._box(400, 300, np.random.default_rng(seed)) for seed in range(400)]
    shares = [(r - x) * (b - y) / 120_000 for x, y, r, b in boxes]
    ratios = [(r - x) / (b - y) for x, y, r, b in boxes]
    assert 0.19 < min(shares) < 0.23 and 0.47 < max(shares) < 0.51
    assert 0.49 < min(ratios) < 0.55 and 1.8 < max(ratios) < 2.04


@pytest.mark.parametrize(("flip", "expected"), [(0.0, (0, 0)), (1.0, (200, 200)), (0.5, (70, 130))])
def test_flips_come_as_often_as_asked(flip, expected):
    image = Image.fromarray(np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2))
    views = [Augment(flip=flip, scale=(0.8, 1.0))(image, 8, seed).astype(int) for seed in range(200)]
    assert expected[0] <= sum(view[0, 0, 0] > view[0, -1, 0] for view in views) <= expected[1]


def test_a_view_is_the_crop_alone_as_torchvision_cuts_it():
    image = noise(64, 64)
    draw = np.random.default_rng(5)
    augment = Augment(flip=0)
    box = augment._box(64, 64, draw)
    expected = image.crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(augment(image, 16, 5), expected)


SIZES = [(224, 224), (500, 375), (375, 500), (1500, 20), (32, 32), (1, 1), (65, 64), (97, 63), (31, 200)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_centre_view_equals_torchvisions_and_open_clips(shape, size):
    image = noise(*shape)
    reference = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])
    np.testing.assert_array_equal(center(image, size), np.asarray(reference(image)))
    plain = PreprocessCfg(size=size, mean=(0, 0, 0), std=(1, 1, 1))
    theirs = image_transform_v2(plain, is_train=False)(image).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(center(image, size) / np.float32(255), theirs, atol=1e-6)

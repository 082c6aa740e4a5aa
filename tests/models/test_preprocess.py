"""Decoders: "pil" is open_clip's transform to the bit, "turbo" is as good as it, and neither makes
a picture of rubbish.
"""

import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from torch.nn import functional as F

from dimefm.data.images import decode as images
from dimefm.data.images.decode import decode, photo_of
from dimefm.data.images.deep import shallow
from dimefm.data.images.limits import PIXELS, RATIO
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import BadRow, RecipeError
from dimefm.models.loading import load_encoder
from dimefm.models.open_clip import default_preprocess
from dimefm.models.preprocess import DECODERS, decoder

CPU = torch.device("cpu")
TEACHER = str(Path(__file__).parents[1] / "data" / "teacher")
PLAIN = default_preprocess(64)
REAL = ("classification/caltech101/test", "classification/scene15/test", "captions/fsac/test")
KINDS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "gray": {},
    "cmyk": {},
}


def pixels_of(data):
    """Return the pixels of an image at its own size."""
    return photo_of(data).pixels


def jpeg(kind, size, seed=0, **options):
    """Return a JPEG of coarse colours: ``kind`` says how it is stored."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    image = image.convert({"gray": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    return encoded(image, "JPEG", quality=90, **KINDS[kind], **options)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def real(shared_data, name, count):
    """Return ``count`` files of a real set, spread over it."""
    files = pq.read_table(shared_data / f"{name}.parquet")["image"]
    return files[:: len(files) // count][:count].to_pylist()


def theirs(preprocess):
    return image_transform_v2(PreprocessCfg(**preprocess), is_train=False)


@contextmanager
def rows_first():
    """Let PIL resize rows before columns, whatever its version would choose."""
    resize = Image.Image.resize

    def both(image, size, resample):
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    with mock.patch.object(Image.Image, "resize", both):
        yield


def levels(preprocess, image):
    """Return the pixels [3, H, W] that open_clip's transform makes of an image, in grey levels."""
    with rows_first():
        return theirs({**preprocess, "mean": (0, 0, 0), "std": (1, 1, 1)})(image).mul(255).round()


def same_pixels(found, expected):
    """One grey level apart, two in less than 1 of 1,000 values."""
    assert found.dtype == torch.uint8 and found.shape == expected.shape and found.is_contiguous()
    apart = (found - expected).abs()
    assert apart.max() <= 2 and (apart > 1).float().mean() < 1e-3


def outcome(read, data):
    """Return the pixels, or the reason why there are none."""
    try:
        return np.asarray(read(data)).tolist()
    except BadRow as error:
        return str(error)


@pytest.mark.parametrize("name", DECODERS)
def test_odd_images_are_read_or_refused_as_expected(shared_data, name):
    read = decoder(name, PLAIN)
    for entry in json.loads((shared_data / "odd_images/expect.json").read_text()):
        data = (shared_data / "odd_images" / entry["file"]).read_bytes()
        if entry["expect"] == "ok":
            assert read(data).shape == (3, 64, 64), entry
            assert read.views(read.open(data), lambda w, h: [((0, 0, w, h), True)])[0].shape == (
                3,
                64,
                64,
            ), entry
        else:
            with pytest.raises(BadRow):
                read(data)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [32, [48, 80]])
def test_pil_is_open_clips_transform_to_the_bit(shared_data, mode, size):
    preprocess = {**PLAIN, "resize_mode": mode, "size": size, "fill_color": 9}
    read, transform = decoder("pil", preprocess), theirs(preprocess)
    entries = json.loads((shared_data / "odd_images/expect.json").read_text())
    odd = [
        (shared_data / "odd_images" / entry["file"]).read_bytes()
        for entry in entries
        if entry["expect"] == "ok"
    ]
    for data in odd + [file for name in REAL for file in real(shared_data, name, 5)]:
        try:
            expected = transform(shallow(Image.open(io.BytesIO(data))))
        except (
            ValueError
        ):  # the ribbon, when its longer side becomes 32 pixels and nothing is left of the shorter
            with pytest.raises(BadRow, match="height and width must be > 0"):
                read(data)
            continue
        found = read(data)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert read.finish(found[None], CPU).data_ptr() == found.data_ptr()


def test_pil_is_the_transform_that_open_clip_makes_with_the_model(shared_data):
    _, _, transform = open_clip.create_model_and_transforms(
        "RN50", image_resize_mode="squash", force_image_size=96
    )
    read = decoder("pil", {**default_preprocess(96), "resize_mode": "squash"})
    for data in real(shared_data, REAL[0], 10):
        assert torch.equal(read(data), transform(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("encoder", [TEACHER, "ViT-S-32/random:0"], ids=["trained", "224 pixels"])
def test_the_embeddings_of_real_photos_are_those_of_open_clips_transform(shared_data, encoder):
    encoder = load_encoder(encoder, "cpu")
    preprocess = encoder.card.preprocess
    read, transform = decoder("turbo", preprocess), theirs(preprocess)
    for name in REAL:
        files = real(shared_data, name, 24)
        found = read.finish(torch.stack([read(data) for data in files]), CPU)
        expected = torch.stack([transform(Image.open(io.BytesIO(data))) for data in files])
        apart = (found - expected).abs() * 255 * torch.tensor(preprocess["std"]).view(-1, 1, 1)
        assert apart.max() < 2.01 and apart.mean((1, 2, 3)).max() < 0.01
        cosines = F.cosine_similarity(encoder.encode_image(found), encoder.encode_image(expected))
        assert cosines.min() >= 0.9999


SIDES = st.one_of(st.integers(1, 12), st.integers(1, 700), st.sampled_from([64, 224]))


@given(
    width=SIDES,
    height=SIDES,
    content=st.sampled_from(["noise", "black and white", "smooth"]),
    size=st.sampled_from([32, 64, 224, [48, 80]]),
    mode=st.sampled_from(["shortest", "squash", "longest"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.sampled_from([0, 114]),
)
@example(
    width=1, height=700, content="noise", size=64, mode="shortest", interpolation="bicubic", fill=0
)
@example(
    width=700,
    height=1,
    content="noise",
    size=[48, 80],
    mode="shortest",
    interpolation="bilinear",
    fill=0,
)
@example(
    width=64,
    height=64,
    content="black and white",
    size=64,
    mode="longest",
    interpolation="bicubic",
    fill=0,
)
@example(
    width=65,
    height=64,
    content="black and white",
    size=64,
    mode="shortest",
    interpolation="bicubic",
    fill=0,
)
def test_every_size_is_resized_and_cropped_as_open_clip_does(
    width, height, content, size, mode, interpolation, fill
):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(
        (pixels > 127).astype(np.uint8) * 255 if content == "black and white" else pixels
    )
    if content == "smooth":
        image = image.resize((width // 9 + 1, height // 9 + 1)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
    preprocess = {
        **PLAIN,
        "size": size,
        "resize_mode": mode,
        "interpolation": interpolation,
        "fill_color": fill,
    }
    found = decoder("turbo", preprocess)(encoded(image, "BMP"))
    try:
        expected = levels(preprocess, image)
    except ValueError:  # nothing is left of the shorter side, where turbo leaves one pixel
        assert mode == "longest" and max(width, height) > 32 * min(width, height)
    else:
        same_pixels(found, expected)


@given(
    kind=st.sampled_from(list(KINDS)),
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    seed=st.integers(0, 9),
)
def test_every_kind_of_jpeg_has_the_pixels_of_pil(kind, width, height, seed):
    data = jpeg(kind, (width, height), seed)
    found, expected = pixels_of(data), np.asarray(decode(data))
    assert found.flags.c_contiguous and found.flags.writeable and np.array_equal(found, expected)
    same_pixels(decoder("turbo", PLAIN)(data), levels(PLAIN, decode(data)))


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "progressive", "restarts", "gray"])
def test_libjpeg_turbo_is_taken_where_it_can_be(kind, monkeypatch):
    pytest.importorskip("simplejpeg")
    data = jpeg(kind, (33, 21))
    monkeypatch.setattr(images, "upright", None)
    assert pixels_of(data).shape == (21, 33, 3)


def test_without_libjpeg_turbo_pil_reads_the_same(monkeypatch):
    files = [jpeg(kind, (33, 21)) for kind in KINDS]
    before = [decoder("turbo", PLAIN)(data) for data in files]
    monkeypatch.setattr(images, "simplejpeg", None)
    assert all(
        torch.equal(decoder("turbo", PLAIN)(data), pixels)
        for data, pixels in zip(files, before, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_jpeg_is_read_or_refused_as_pil_does(kind):
    data = jpeg(kind, (61, 43))
    cuts = [*range(0, len(data), 37), *range(len(data) - 9, len(data))]
    results = [outcome(pixels_of, data[:cut]) for cut in cuts]
    assert results == [outcome(decode, data[:cut]) for cut in cuts]
    assert sum(isinstance(result, str) for result in results) > len(cuts) - 9


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_jpeg_is_read_or_refused_as_pil_does(kind):
    data, draw = jpeg(kind, (61, 43)), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in draw.integers(0, draw.choice([40, 700, len(data)]), draw.choice([1, 2, 6])):
            damaged[min(place, len(data) - 1)] = draw.integers(256)
        result = outcome(pixels_of, bytes(damaged))
        assert result == outcome(decode, bytes(damaged))
        refused += isinstance(result, str)
    assert 10 < refused < 140


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turbo_turns_as_exif_says_and_pil_does_not(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, flat = (jpeg("4:4:4", (50, 30), **options) for options in ({"exif": exif}, {}))
    same_pixels(decoder("turbo", PLAIN)(data), levels(PLAIN, decode(data)))
    assert torch.equal(decoder("pil", PLAIN)(data), decoder("pil", PLAIN)(flat))
    view = [((0, 0, 30, 20), False)]
    read = decoder("turbo", PLAIN)
    upright = read.views(read.open(encoded(decode(data))), lambda w, h: view)
    assert torch.equal(read.views(read.open(data), lambda w, h: view)[0], upright[0])


def test_views_are_those_of_the_policy_in_both_decoders():
    policy, squash = ViewPolicy(count=4, seed=3), {**PLAIN, "resize_mode": "squash"}
    for number, kind in enumerate(KINDS):
        data, key = jpeg(kind, (90, 71), number), f"image {number}"

        def draw(width, height, key=key):
            assert (width, height) == (90, 71)
            return [policy.draw(key, view, width, height) for view in range(4)]

        crops = [decode(data).crop(box) for box, _ in draw(90, 71)]
        crops = [
            ImageOps.mirror(crop) if flip else crop
            for crop, (_, flip) in zip(crops, draw(90, 71), strict=True)
        ]
        pil, turbo = decoder("pil", PLAIN), decoder("turbo", PLAIN)
        exact = pil.views(pil.open(data), draw)
        assert all(
            torch.equal(view, theirs(squash)(crop)) for view, crop in zip(exact, crops, strict=True)
        )
        for view, crop in zip(turbo.views(turbo.open(data), draw), crops, strict=True):
            same_pixels(view, levels(squash, crop))


def test_finished_pixels_are_open_clips_to_the_bit():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    read = decoder("turbo", PLAIN)
    found = read.finish(read(encoded(image))[None], CPU)
    assert found.dtype == torch.float32 and torch.equal(found[0], theirs(PLAIN)(image))


@pytest.mark.gpu
def test_the_device_normalises():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    read = decoder("turbo", PLAIN)
    batch = torch.stack([read(jpeg(kind, (90, 71))) for kind in KINDS])
    found = read.finish(batch, torch.device("cuda"))
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), read.finish(batch, CPU), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("size", "reason"), [((10_000, PIXELS // 10_000 + 1), "large"), ((1, RATIO + 1), "narrow")]
)
def test_bombs_and_ribbons_are_refused_before_they_are_unpacked(name, size, reason):
    data = bytearray(jpeg("4:2:0", (16, 16)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", size[1], size[0])
    with pytest.raises(BadRow, match=f"too {reason}"):
        decoder(name, PLAIN)(bytes(data))


@pytest.mark.parametrize("name", DECODERS)
def test_threads_share_a_decoder(name):
    read, files = decoder(name, PLAIN), [jpeg("4:2:0", (200, 150), seed) for seed in range(40)]
    alone = [read(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(read, files))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_an_unknown_decoder_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match="unknown decoder 'turbro': did you mean 'turbo'"):
        decoder("turbro", PLAIN)

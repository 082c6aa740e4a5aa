"""``dimefm.load``: what people have, images and sentences, becomes embeddings of length 1."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dimefm
from dimefm.errors import DataError, ModelError

TEACHER = Path(__file__).parents[1] / "data" / "teacher"


@pytest.fixture(scope="module")
def model():
    return dimefm.load(TEACHER, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three image files of different sizes and modes."""
    folder = tmp_path_factory.mktemp("photos")
    for name, mode, size in (("a.png", "RGB", (90, 60)), ("b.jpg", "RGB", (64, 64))):
        Image.effect_noise(size, 80).convert(mode).save(folder / name)
    Image.effect_noise((40, 70), 60).save(folder / "gray.png")
    return sorted(folder.iterdir())


def test_images_are_embeddings_of_open_clips_transform(model, photos):
    encoder = model.encoder
    pixels = torch.stack([encoder.preprocess(Image.open(path)) for path in photos])
    expected = encoder.encode_image(pixels).numpy()
    np.testing.assert_array_equal(model.encode_image(photos), expected)
    np.testing.assert_array_equal(
        model.encode_image([Image.open(path) for path in photos]), expected
    )
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)


def test_texts_are_embeddings_of_their_tokens(model):
    texts = ["a photo of a cat", "a dog"]
    tokens, _lengths = model.encoder.tokenize(texts)
    expected = model.encoder.encode_text(tokens).numpy()
    np.testing.assert_array_equal(model.encode_text(texts), expected)


def test_one_input_gives_one_embedding_and_none_gives_none(model, photos):
    assert model.encode_image(photos[0]).shape == (model.dim,)
    assert model.encode_image(str(photos[0])).shape == (model.dim,)
    assert model.encode_text("a cat").shape == (model.dim,)
    assert model.encode_image([]).shape == (0, model.dim)
    assert model.encode_text([]).shape == (0, model.dim)


def test_batches_change_nothing_but_rounding(model, photos):
    whole = model.encode_image(photos)
    np.testing.assert_allclose(model.encode_image(photos, batch_size=1), whole, atol=1e-5)


def test_an_image_that_cannot_be_read_is_named(model, photos, tmp_path):
    absent = tmp_path / "absent.jpg"
    with pytest.raises(DataError, match=r"absent\.jpg: cannot be read as an image \(No such file"):
        model.encode_image([photos[0], absent])
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    with pytest.raises(DataError, match=r"text\.jpg: cannot be read as an image"):
        model.encode_image(text)


def test_a_long_text_is_refused_or_truncated_when_asked(model):
    long = "word " * 300
    with pytest.raises(DataError, match="text 1: 302 tokens, expected at most"):
        model.encode_text(["short", long])
    cut = model.encode_text(long, truncate=True)
    np.testing.assert_array_equal(cut, model.encode_text("word " * 500, truncate=True))


def test_a_model_says_what_it_is_in_one_line(model):
    assert repr(model) == f"Model({str(TEACHER)!r}, dim={model.dim}, device='cpu')"
    assert model.logit_scale == model.encoder.card.logit_scale


def test_a_model_that_is_not_there_is_refused():
    with pytest.raises(ModelError):
        dimefm.load("ViT-B-32/nowhere.pt")

"""Folders of transformers give the rows, the tokens and the scale of their own classes."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

import dimefm
from dimefm.models.loading import load_encoder
from tests.models.conftest import refused
from tests.models.hf.folders import MAKERS, SIDE, TEXTS, edit

TOLERANCE = 1e-5
KINDS = sorted(MAKERS)


def rows_of(features):
    """Return unit rows of what a class of transformers returns in version 4 or 5."""
    rows = features if isinstance(features, torch.Tensor) else features.pooler_output
    return F.normalize(rows.detach(), dim=-1)


def own_image_rows(folder, model, pixels):
    """Return the rows of the model itself; SigLIP 2 takes the patches of its own processor."""
    if not isinstance(model, transformers.Siglip2Model):
        return rows_of(model.get_image_features(pixel_values=pixels))
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    images = [picture.permute(1, 2, 0).numpy() for picture in pixels]
    inputs = processor(
        images, do_resize=False, do_rescale=False, do_normalize=False, return_tensors="pt"
    )
    return rows_of(model.get_image_features(**inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_image_rows_are_those_of_the_model(folder_of, kind):
    folder, model = folder_of(kind)
    encoder = load_encoder(str(folder), "cpu")
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    rows = encoder.encode_image(pixels)
    assert rows.shape == (3, encoder.card.dim)
    assert (rows - own_image_rows(folder, model, pixels)).abs().max() < TOLERANCE
    assert (rows[0] - rows[1]).abs().max() > TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_text_rows_are_those_of_the_processor_and_the_model(folder_of, kind):
    folder, model = folder_of(kind)
    encoder = load_encoder(str(folder), "cpu")
    context = encoder.card.context_length
    processor = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = processor(
        TEXTS, padding="max_length", truncation=True, max_length=context, return_tensors="pt"
    )
    tokens, lengths = encoder.tokenize(TEXTS)
    assert torch.equal(tokens, inputs["input_ids"])
    assert [length > context for length in lengths] == [False, False, False, False, True]
    assert lengths[:4] == [len(processor(text)["input_ids"]) for text in TEXTS[:4]]

    masked = {"attention_mask": inputs["attention_mask"]}
    if kind in ("siglip", "siglip2"):  # which read the padding, as in training
        masked = {}
    wanted = rows_of(model.get_text_features(input_ids=inputs["input_ids"], **masked))
    assert (encoder.encode_text(tokens) - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_bias_are_those_of_the_model(folder_of, kind):
    folder, model = folder_of(kind)
    card = load_encoder(str(folder), "cpu").card
    if kind == "align":
        assert card.logit_scale == pytest.approx(1 / model.temperature.item())
    else:
        assert card.logit_scale == pytest.approx(model.logit_scale.exp().item())
    bias = getattr(model, "logit_bias", None)
    assert card.logit_bias == (None if bias is None else pytest.approx(bias.item()))
    assert len(card.weights_sha256) == 64


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_belongs_to_one_side(folder_of, kind):
    folder, model = folder_of(kind)
    encoder = load_encoder(str(folder), "cpu")
    whole = sum(weights.numel() for weights in model.parameters())
    assert encoder.image_parameters + encoder.text_parameters == whole
    assert encoder.image_parameters > 1000 and encoder.text_parameters > 1000


@pytest.mark.parametrize("size", [(SIDE, SIDE), (64, 64), (100, 50), (60, 90)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dual-encoder-timm"])
def test_pictures_are_prepared_as_the_processor_does(folder_of, kind, size):
    """Up to a gray level or two: the backend of transformers rounds otherwise."""
    folder, _ = folder_of(kind)
    encoder = load_encoder(str(folder), "cpu")
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    wanted = processor(picture, return_tensors="pt")["pixel_values"][0]
    found = encoder.preprocess(picture)
    levels = (
        (found - wanted).abs() * 255 * torch.tensor(encoder.card.preprocess["std"])[:, None, None]
    )
    assert levels.max() <= 2.01


@pytest.mark.parametrize(
    "sides",
    [
        {"size": {"shortest_edge": 40}, "do_center_crop": True},
        {"size": {"height": 44, "width": 44}, "do_center_crop": True},
    ],
)
def test_pictures_that_are_cropped_from_other_sides_are_prepared_as_the_processor_does(
    copy_of, sides
):
    folder = copy_of("clip")
    edit(folder, "preprocessor_config.json", crop_size={"height": SIDE, "width": SIDE}, **sides)
    encoder = load_encoder(str(folder), "cpu")
    assert encoder.card.preprocess["resize_to"] in (40, [44, 44])
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((80, 80), Image.Resampling.BICUBIC)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    wanted = processor(picture, return_tensors="pt")["pixel_values"][0]
    std = torch.tensor(encoder.card.preprocess["std"]).view(3, 1, 1)
    assert ((encoder.preprocess(picture) - wanted).abs() * 255 * std).max() <= 2.01


def test_a_model_is_loaded_for_inference(folder_of):
    folder, model = folder_of("siglip")
    loaded = dimefm.load(folder)
    picture = Image.new("RGB", (40, 40), (200, 30, 90))
    image, texts = loaded.encode_image(picture), loaded.encode_text(TEXTS[:2])
    assert image.shape == (loaded.dim,) and texts.shape == (2, loaded.dim)
    assert np.linalg.norm(image) == pytest.approx(1)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("safe", [True, False])
def test_all_layouts_of_weights_give_one_digest(folder_of, copy_of, shards, safe):
    folder, model = folder_of("siglip")
    place = copy_of("siglip")
    (place / "model.safetensors").unlink()
    if safe:
        model.save_pretrained(place, max_shard_size="60KB" if shards else "1GB")
    else:
        names = sorted(model.state_dict())
        parts = [names[::2], names[1::2]] if shards else [names]
        files = [f"pytorch_model-{number}.bin" for number in range(len(parts))]
        files = files if shards else ["pytorch_model.bin"]
        for file, part in zip(files, parts, strict=True):
            torch.save({name: model.state_dict()[name] for name in part}, place / file)
        index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        if shards:
            (place / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert len(list(place.glob("*.safetensors"))) == (0 if not safe else 1 if not shards else 3)
    ours, theirs = (load_encoder(str(path), "cpu").card for path in (place, folder))
    assert ours.identity() == theirs.identity()


def test_weights_of_half_precision_compute_in_full(folder_of, tmp_path):
    folder, model = folder_of("siglip")
    place = shutil.copytree(folder, tmp_path / "half")
    copy.deepcopy(model).half().save_pretrained(place)
    encoder = load_encoder(str(place), "cpu")
    assert {weights.dtype for weights in encoder.image_model.parameters()} == {torch.float32}


def test_a_folder_of_naflex_asks_for_a_preprocessing_and_takes_it(copy_of, tmp_path):
    place = copy_of("siglip2")
    transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(place)
    message = refused(str(place))
    assert "it keeps the aspect ratio" in message and "--preprocess FILE" in message
    stated = {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    chosen = tmp_path / "square.json"
    chosen.write_text(json.dumps(stated | {"interpolation": "bilinear"}))
    encoder = load_encoder(str(place), "cpu", preprocess=str(chosen))
    assert encoder.card.preprocess["size"] == SIDE
    assert encoder.card.preprocess["resize_mode"] == "squash"

    processor = transformers.AutoImageProcessor.from_pretrained(place)
    model = transformers.AutoModel.from_pretrained(place)
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    )
    wanted = rows_of(model.get_image_features(**processor(picture, return_tensors="pt")))
    assert (encoder.encode_image(encoder.preprocess(picture)[None]) - wanted).abs().max() < 1e-4

"""Encoders from the folders of finished runs: both towers, or one that borrows the other from its
teacher.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dimefm.cache import CacheWriter, Manifest
from dimefm.cache.manifest import encoder_mismatch
from dimefm.data import open_rows
from dimefm.models.loading import load_encoder
from dimefm.recipe import read
from dimefm.train.trainer import train
from tests.models.conftest import ARCH, SENTENCES, refused, same


def write_cache(root, kind, source, keys, card):
    """Write a cache ``root/kind`` of random unit vectors for rows of these keys."""
    rows = np.random.default_rng(0).normal(size=(len(keys), card.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    header = Manifest(kind, "hdf5", "float32", card.dim, True, card, {}, {})
    writer = CacheWriter(root / kind, header, [(source, len(keys))])
    writer.write(source, keys, rows)
    writer.seal()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, files):
    """Return a folder of runs: clip/ from pairs, tower/ and text/ distilled from the open_clip
    folder teacher/.
    """
    root = tmp_path_factory.mktemp("runs")
    photos, pairs, words = root / "photos", root / "pairs.csv", root / "words.txt"
    photos.mkdir()
    for n in range(6):
        Image.new("RGB", (40, 30), (40 * n, 9, 200)).save(photos / f"{n}.png")
    pairs.write_text(
        "filepath,title\n" + "".join(f"photos/{n}.png,picture {n}\n" for n in range(6))
    )
    words.write_text("".join(f"some words about {n}\n" for n in range(5)))
    shutil.copytree(files / "folder", root / "teacher")
    card = load_encoder(str(root / "teacher"), "cpu").card
    kept = root / "caches"
    write_cache(kept, "image", "photos", [f"{n}.png" for n in range(6)], card)
    write_cache(
        kept, "text", "words.txt", [row.key for row in open_rows([str(words)], "text")], card
    )
    caches = {
        "image_cache": str(root / "caches/image"),
        "text_cache": str(root / "caches/text"),
        "losses": {"dime.vl": {"weight": 1.0}},
    }
    clip = {
        "student": ARCH,
        "images": [str(pairs)],
        "text": "student",
        "losses": {"clip.contrastive": {"weight": 1.0}},
    }
    tower = {"student": "ConvNeXt-mini-64", "images": [str(photos)], "crops": "free", **caches}
    text = {"texts": [str(words)], "text": f"student:{ARCH}", **caches}
    for name, given in (("clip", clip), ("tower", tower), ("text", text)):
        recipe = read(None, steps=2, batch_size=4, resize=0, device="cpu", **given)
        train(recipe, root / name, echo=lambda line: None)
    return root


def test_a_run_folder_of_a_clip_is_also_an_open_clip_folder(trained):
    run = load_encoder(str(trained / "clip"), "cpu")
    record = json.loads((trained / "clip" / "run.json").read_text())
    assert record["kind"] == "clip"
    assert run.image_parameters == record["image_parameters"]
    (trained / "clip" / "run.json").rename(trained / "clip" / "other.json")
    try:
        plain = load_encoder(str(trained / "clip"), "cpu")
    finally:
        (trained / "clip" / "other.json").rename(trained / "clip" / "run.json")
    assert same(run, plain)
    assert plain.card == run.card


def test_a_run_folder_of_a_tower_takes_the_text_tower_of_its_teacher(trained, tiny_teacher):
    run = load_encoder(str(trained / "tower"), "cpu")
    tokens = tiny_teacher.tokenize(SENTENCES)[0]
    assert torch.equal(run.encode_text(tokens), tiny_teacher.encode_text(tokens))
    assert (
        run.card.dim
        == tiny_teacher.card.dim
        == run.encode_image(torch.randn(2, 3, 64, 64)).shape[1]
    )
    assert run.card.weights_sha256 != tiny_teacher.card.weights_sha256
    assert run.card.logit_scale == tiny_teacher.card.logit_scale
    record = json.loads((trained / "tower" / "run.json").read_text())
    assert run.image_parameters == record["image_parameters"] == record["parameters"]
    assert run.text_parameters == tiny_teacher.text_parameters
    weights = load_file(trained / "tower" / "image_tower.safetensors")
    assert all(name.startswith("visual.") for name in weights)


def test_a_run_folder_of_a_text_tower_takes_the_image_tower_of_its_teacher(trained, tiny_teacher):
    run = load_encoder(str(trained / "text"), "cpu")
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(run.encode_image(pixels), tiny_teacher.encode_image(pixels))
    assert run.image_parameters == tiny_teacher.image_parameters
    tokens = tiny_teacher.tokenize(SENTENCES)[0]
    assert not torch.allclose(run.encode_text(tokens), tiny_teacher.encode_text(tokens), atol=0.1)
    assert run.card.weights_sha256 != tiny_teacher.card.weights_sha256
    assert encoder_mismatch(tiny_teacher.card, run.card) == []


def test_two_towers_of_one_teacher_make_one_encoder(trained):
    image, text = (load_encoder(str(trained / name), "cpu") for name in ("tower", "text"))
    both = load_encoder(str(trained / "tower"), "cpu", text_model=str(trained / "text"))
    pixels, tokens = torch.randn(2, 3, 64, 64), text.tokenize(SENTENCES)[0]
    assert torch.equal(both.encode_image(pixels), image.encode_image(pixels))
    assert torch.equal(both.encode_text(tokens), text.encode_text(tokens))
    assert both.card.weights_sha256 not in (image.card.weights_sha256, text.card.weights_sha256)
    assert both.card.shared_towers == {}


def test_towers_of_different_teachers_make_none(trained, tmp_path):
    shutil.copytree(trained / "text", tmp_path / "text")
    record = json.loads((tmp_path / "text/run.json").read_text())
    record["teacher"]["weights_sha256"] = "0" * 64
    (tmp_path / "text/run.json").write_text(json.dumps(record))
    wrong = refused(str(trained / "tower"), text_model=str(tmp_path / "text"))
    assert "learned from different teachers (weights_sha256: '0000" in wrong


def test_the_text_tower_must_be_the_one_trained_against(trained, tiny_teacher):
    wrong = refused(str(trained / "tower"), text_model=f"{ARCH}/random:1")
    assert f"was distilled from weights {tiny_teacher.card.weights_sha256[:12]}" in wrong
    assert "--text-model" in wrong


def test_a_teacher_that_has_moved_is_named_anew(trained):
    before = load_encoder(str(trained / "tower"), "cpu")
    (trained / "teacher").rename(trained / "moved")
    try:
        gone = refused(str(trained / "tower"))
        assert str(trained / "teacher") in gone
        assert "--text-model" in gone
        found = load_encoder(str(trained / "tower"), "cpu", text_model=str(trained / "moved"))
    finally:
        (trained / "moved").rename(trained / "teacher")
    assert same(found, before)
    assert found.card == before.card


def test_a_run_folder_that_has_moved_still_loads(trained, tmp_path):
    shutil.copytree(trained / "tower", tmp_path / "elsewhere")
    found = load_encoder(str(tmp_path / "elsewhere"), "cpu")
    assert found.card.identity() == load_encoder(str(trained / "tower"), "cpu").card.identity()


def test_a_run_finds_a_teacher_that_was_named_by_a_relative_path(trained, tmp_path):
    for folder in ("tower", "teacher"):
        shutil.copytree(trained / folder, tmp_path / folder)
    record = json.loads((tmp_path / "tower" / "run.json").read_text())
    assert record["teacher_at"] == "../teacher"
    record["teacher"]["name"] = "some/where/else"
    (tmp_path / "tower" / "run.json").write_text(json.dumps(record))
    assert same(
        load_encoder(str(tmp_path / "tower"), "cpu"), load_encoder(str(trained / "tower"), "cpu")
    )


def test_a_tower_whose_weights_are_cut_short_is_refused(trained, tmp_path):
    shutil.copytree(trained / "tower", tmp_path / "cut")
    weights = tmp_path / "cut" / "image_tower.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "the weights do not load" in refused(str(tmp_path / "cut"))

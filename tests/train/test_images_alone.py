"""A student learns from images and their cached features alone by losses that need no sentences."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import dimefm
from dimefm.data import open_rows
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import ModelError, RecipeError
from dimefm.extract.verify import against_teacher
from dimefm.losses import Need, terms
from dimefm.losses._terms import resolve
from dimefm.models import timm_teacher
from dimefm.models.loading import load_encoder
from dimefm.recipe import read
from dimefm.train import online_eval
from dimefm.train.trainer import Trainer, train

TEACHER = "timm/test_vit/random:0"
ALONE = ["dime.pvl", "dime.udist", "clip_kd.fd"]


def quiet(line):
    """Take a line of progress and say nothing."""


def losses(*names):
    return {name: {"weight": 1.0} for name in names}


def needing(need):
    return {name for name in terms() if need in resolve(name, {}).needs}


def step_of(world, name, **over):
    """Return the values of a run's first step."""
    run = Trainer(world.recipe(**over), world.root / name, False, quiet)
    return run.step(0, iter([run.task.batches(0)]))


@pytest.mark.parametrize("name", ALONE)
def test_a_loss_without_sentences_is_the_same_without_a_text_cache(world, name):
    alone = step_of(world, "alone", losses=losses(name), text_cache=())
    beside = step_of(world, "beside", losses=losses(name))
    assert alone[name] == pytest.approx(beside[name], rel=1e-6)
    assert alone["grad_norm"] == pytest.approx(beside["grad_norm"], rel=1e-5)
    assert alone["grad_norm"] > 0


@pytest.mark.parametrize("name", sorted(needing(Need.SENTENCES)))
def test_a_loss_that_needs_sentences_is_refused_by_name(world, name):
    with pytest.raises(RecipeError) as error:
        train(world.recipe(losses=losses(name), text_cache=()), world.root / "run", echo=quiet)
    assert f"loss '{name}' needs sentences" in str(error.value)
    assert "--text-cache is not given" in str(error.value)
    assert not (world.root / "run").exists()


def test_every_loss_of_a_teacher_reads_sentences_or_says_that_it_does_not():
    """So that a new term is looked at: it is in one of the three."""
    of_teacher = needing(Need.TEACHER)
    assert of_teacher == {*ALONE, *needing(Need.SENTENCES), *(of_teacher & needing(Need.PAIRS))}


def test_a_run_without_texts_resumes_to_the_same_student(world):
    over = {"losses": losses(*ALONE), "text_cache": (), "steps": 4, "save_every": 2, "keep": 2}
    whole = train(world.recipe(**over), world.root / "whole", echo=quiet)
    record = json.loads((whole / "run.json").read_text())
    assert record["text_cache"] == []
    half = shutil.copytree(whole, world.root / "half")
    (half / "run.json").unlink()
    *_, newest = sorted((half / "checkpoints").glob("*4*"))
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    train(world.recipe(**over), half, resume=True, echo=quiet)
    ours, theirs = (
        (world.root / name / "image_tower.safetensors").read_bytes() for name in ("whole", "half")
    )
    assert ours == theirs


def test_several_views_and_several_teachers_work_without_texts(world):
    views = ViewPolicy(count=3, seed=1, scale=(0.5, 1.0), ratio=(1.0, 1.0), flip=0.5)
    caches = [world.root / name for name in ("first", "second")]
    for cache, teacher, dim in zip(caches, "ab", (8, 6), strict=True):
        world.images(cache.name, views=views, teacher=teacher, dim=dim)
    crops = {"crops": "replay", "crop_scale": [0.5, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.5}
    values = step_of(
        world,
        "run",
        losses=losses(*ALONE),
        image_cache=[str(cache) for cache in caches],
        text_cache=(),
        views_per_step=2,
        **crops,
    )
    assert all(np.isfinite(values[name]) and values[name] > 0 for name in ALONE)


def test_texts_per_step_without_texts_is_refused(world):
    recipe = world.recipe(losses=losses("dime.pvl"), text_cache=(), texts_per_step=5)
    with pytest.raises(RecipeError, match="texts_per_step is for a --text-cache"):
        Trainer(recipe, world.root / "run", False, quiet)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """Return a folder with photos/, cache/ of an image model of timm, and run/ of its student."""
    root = tmp_path_factory.mktemp("alone")
    (root / "photos").mkdir()
    draw = np.random.default_rng(0)
    for number in range(6):
        pixels = draw.integers(0, 256, (50, 40 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"photos/{number}.png")
    (root / "words.txt").write_text("a cat\na dog\n")
    photos = [str(root / "photos")]
    dimefm.extract(TEACHER, images=photos, out=str(root / "cache"), device="cpu")
    recipe = read(
        None,
        student="ResNet-mini-32",
        images=photos,
        image_cache=str(root / "cache/images"),
        losses=losses(*ALONE),
        crops="free",
        steps=1,
        batch_size=4,
        resize=0,
        device="cpu",
    )
    train(recipe, root / "run", echo=quiet)
    return root


def test_a_cache_of_an_image_model_is_its_own(distilled):
    cache = dimefm.FeatureCache(distilled / "cache/images")
    encoder = load_encoder(TEACHER, "cpu", may_download=False, recorded=cache.manifest.encoder)
    assert cache.manifest.encoder == encoder.card
    rows = open_rows([str(distilled / "photos")], "image")
    assert against_teacher(cache, encoder, rows, 6).min_cosine > 0.9999


def test_sentences_for_an_image_model_are_refused_before_anything_is_written(distilled, tmp_path):
    sources = {"images": [str(distilled / "photos")], "texts": [str(distilled / "words.txt")]}
    with pytest.raises(ModelError, match="encodes no sentences"):
        dimefm.extract(TEACHER, out=str(tmp_path / "cache"), device="cpu", **sources)
    assert not (tmp_path / "cache").exists()


def test_its_student_encodes_images_without_the_teacher(distilled, monkeypatch):
    def unneeded(*args):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(timm_teacher, "random", unneeded)
    model = dimefm.load(distilled / "run", device="cpu")
    assert model.encode_image(Image.new("RGB", (40, 40))).shape == (64,)
    with pytest.raises(ModelError, match="without a text tower, so it encodes no sentences"):
        model.encode_text("a cat")
    with pytest.raises(ModelError, match="encodes no sentences"):
        dimefm.evaluate(model, root=str(distilled))
    with pytest.raises(ModelError, match="encodes no sentences"):
        dimefm.export(str(distilled / "run"), to="open_clip", out=str(distilled / "out"))
    assert torch.is_tensor(next(model.encoder.image_model.parameters()))


def test_an_evaluation_during_training_is_refused(distilled):
    recipe = read(
        None, student="ResNet-mini-32", eval_root=str(distilled), losses=losses("dime.pvl")
    )
    card = dimefm.FeatureCache(distilled / "cache/images").manifest.encoder
    with pytest.raises(RecipeError, match="has no text tower. Fix: remove --eval-root"):
        online_eval._load_teacher(card, recipe, torch.device("cpu"))

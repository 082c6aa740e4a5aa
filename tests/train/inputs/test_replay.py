"""Views that a cache promises: the student sees the crops and flips that the teacher saw, or the
recipe is refused.
"""

import base64
import dataclasses
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cli import main
from dimefm.data import open_rows
from dimefm.data.views.image_views import ViewPolicy, row_keys
from dimefm.errors import CacheError, RecipeError
from dimefm.extract.extract import extract
from dimefm.extract.stages.base import Settings
from dimefm.extract.stages.images import Images
from dimefm.models import open_clip
from dimefm.recipe import Recipe, read
from dimefm.train.inputs.image_batches import Batches
from dimefm.train.inputs.sampler import Shuffled
from dimefm.train.inputs.sources import open_sources
from dimefm.train.trainer import Trainer, train

ROWS = 17
MANY = ViewPolicy(20, seed=3, scale=(0.1, 0.9), ratio=(0.6, 1.7), flip=0.4)
CROPS = {"crop_scale": MANY.scale, "crop_ratio": MANY.ratio, "flip": MANY.flip}

TEACHER = """
import json, sys
import torch
from types import SimpleNamespace
from dimefm.data import open_rows
from dimefm.data.views.image_views import ViewPolicy
from dimefm.models import open_clip
from dimefm.extract.stages.base import Settings
from dimefm.extract.stages.images import Images

drawn, draw = {}, ViewPolicy.draw
def record(self, key, view, width, height):
    drawn[f"{key}#{view}"] = draw(self, key, view, width, height)
    return drawn[f"{key}#{view}"]
ViewPolicy.draw = record

policy = ViewPolicy.from_manifest(json.loads(sys.argv[2]))
preprocess = open_clip.default_preprocess(8)
encoder = SimpleNamespace(image_preprocess=preprocess, device=torch.device("cpu"))
stage = Images(encoder, Settings(batch_size=64, views=policy))
for shard in open_rows([sys.argv[1]], "image").shards:
    index = stage.index(shard)
    for batch in stage.batches(index, range(len(index))):
        assert not batch.bad and batch.inputs.shape[1:] == (3, 8, 8)
print(json.dumps(drawn))
"""


def noise(number, low=6, high=60):
    """Return an image of noise whose size depends on ``number``."""
    draw = np.random.default_rng(number)
    width, height = draw.integers(low, high, 2)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_images(path, count):
    """Write a TSV of ``count`` images of noise with the keys k0, k1, ..."""
    lines = []
    for number in range(count):
        file = io.BytesIO()
        noise(number).save(file, "png")
        lines.append(f"k{number}\t{base64.b64encode(file.getvalue()).decode()}\n")
    path.write_text("".join(lines))


def write_cache(root, kind, name, keys, how):
    """Write a cache of unit vectors for rows of these keys."""
    header = Manifest(kind, "hdf5", "float32", 4, True, EncoderCard("t", "00", 4, 20.0), how, {})
    writer = CacheWriter(root, header, [(name, len(keys))])
    writer.write(
        name, keys, np.tile(np.eye(4, dtype=np.float32), (-(-len(keys) // 4), 1))[: len(keys)]
    )
    writer.seal()


@pytest.fixture
def noisy(tmp_path):
    """Return ``noisy(count)`` -> recipe options: images of noise, and caches that promise the views
    of ``MANY``.
    """

    def make(count):
        write_images(tmp_path / "many.tsv", count)
        keys = row_keys([f"k{n}" for n in range(count)], MANY)
        write_cache(tmp_path / "images", "image", "many.tsv", keys, {"views": MANY.how()})
        write_cache(tmp_path / "texts", "text", "words.txt", list("abcdefgh"), {})
        caches = {"image_cache": str(tmp_path / "images"), "text_cache": str(tmp_path / "texts")}
        return {"images": [str(tmp_path / "many.tsv")], **caches, **CROPS}

    return make


def test_ten_thousand_replays_in_another_process_and_resolution_without_one_mismatch(
    noisy, tmp_path, monkeypatch
):
    options = noisy(500)
    recipe = read(None, batch_size=500, **options)
    load = Batches(open_sources(recipe, tmp_path), recipe, 24, None)
    command = [sys.executable, "-c", TEACHER, *recipe.images, json.dumps({"views": MANY.how()})]
    teacher = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True
    )  # draws while the student does
    seen, draw = {}, ViewPolicy.draw

    def record(self, key, view, width, height):
        seen[f"{key}#{view}"] = draw(self, key, view, width, height)
        return seen[f"{key}#{view}"]

    monkeypatch.setattr(ViewPolicy, "draw", record)
    for epoch in range(MANY.count):
        assert load(epoch).pixels.shape == (500, 24, 24, 3)
        assert len(seen) == 500 * (epoch + 1)
    drawn = json.loads(teacher.communicate()[0])
    mismatches = [row for row, (box, flip) in seen.items() if [list(box), flip] != drawn[row]]
    assert (len(drawn), len(seen), mismatches) == (10_000, 10_000, [])


def test_at_one_size_teacher_and_student_see_the_same_pixels(noisy, tmp_path):
    recipe = read(None, batch_size=8, **noisy(8))
    sources = open_sources(recipe, tmp_path)
    plain = {**open_clip.default_preprocess(24), "mean": (0, 0, 0), "std": (1, 1, 1)}
    stage = Images(
        SimpleNamespace(image_preprocess=plain, device=torch.device("cpu")),
        Settings(views=MANY, decoder="turbo"),
    )
    (shard,) = sources.raw.shards
    index = stage.index(shard)
    (batch,) = stage.batches(index, range(len(index)))
    teacher = dict(zip(batch.keys, batch.inputs.permute(0, 2, 3, 1), strict=True))
    load = Batches(sources, recipe, 24, None)
    compared = 0
    for epoch in range(3):
        keys = [f"{sources.raw[int(raw)].key}#{epoch}" for raw in rows_of(sources, recipe, epoch)]
        for key, pixels in zip(keys, load(epoch).pixels, strict=True):
            assert torch.equal(pixels, teacher[key]), key
            compared += 1
    assert compared == 24


def rows_of(sources, recipe, number):
    """Return the raw rows of a batch."""
    order = Shuffled(len(sources), recipe.seed, "images")
    return sources.locate(order.take(number * recipe.batch_size, recipe.batch_size)[0])[0]


def test_an_epoch_shows_one_view_of_each_image_with_the_feature_of_that_view(world):
    policy = ViewPolicy(3)
    gone = {
        5,
        6,
        30,
        31,
        32,
    }  # two views of image 1 (which loses its third too), one of image 2, and image 10
    world.root.joinpath("images").rename(world.root / "plain")
    world.images(views=policy, quarantined=gone)
    left = sorted(set(range(ROWS)) - {1, 2, 10})
    for crops in ("replay", "free"):
        recipe = world.recipe(crops=crops, batch_size=len(left))
        load = Batches(open_sources(recipe, world.root), recipe, 16, None)
        for epoch in range(4):
            batch = load(epoch)
            numbers = world.numbers_of_pixels(batch.pixels)
            assert sorted(numbers) == left
            assert world.numbers_of_features(batch.same_modality[0]) == [
                n * 3 + epoch % 3 for n in numbers
            ]


def test_a_batch_that_crosses_an_epoch_changes_the_view_in_the_middle(world):
    world.root.joinpath("images").rename(world.root / "plain")
    world.images(views=ViewPolicy(2))
    recipe = world.recipe(crops="replay", batch_size=10)
    batch = Batches(open_sources(recipe, world.root), recipe, 16, None)(1)
    views = [number % 2 for number in world.numbers_of_features(batch.same_modality[0])]
    assert views == [0] * 7 + [1] * 3


def test_the_default_recipe_is_refused_over_the_centre_view(world):
    recipe = read(
        None,
        **{name: getattr(world.recipe(), name) for name in ("images", "image_cache", "text_cache")},
    )
    assert recipe.crops == "replay"
    with pytest.raises(RecipeError) as error:
        open_sources(recipe, world.root)
    line = str(error.value)
    assert (
        "asks for random crops (crop_scale (0.08, 1.0), crop_ratio (0.75, 1.33" in line
        and "flip 0.5)" in line
    )
    assert "images holds the centre view of each image" in line
    assert all(
        remedy in line
        for remedy in (
            "--crops free",
            "as DIME-FM does",
            "--crops center",
            "extract the images with --views",
        )
    )
    assert "\n" not in line


@pytest.mark.parametrize(
    ("over", "named"),
    [
        (
            {"crop_scale": (0.5, 1.0)},
            ["crop_scale: (0.5, 1.0) in the recipe, (0.08, 1.0) in the cache"],
        ),
        (
            {"crop_ratio": (1.0, 1.0)},
            ["crop_ratio: (1.0, 1.0) in the recipe, (0.75, 1.3333333333333333) in the cache"],
        ),
        (
            {"flip": 0.0, "crop_scale": (0.2, 1.0)},
            ["flip: 0.0 in the recipe, 0.5 in the cache", "crop_scale: (0.2, 1.0)"],
        ),
    ],
)
def test_a_recipe_of_other_crops_than_the_caches_is_refused_and_each_field_named(
    world, over, named
):
    world.root.joinpath("images").rename(world.root / "plain")
    world.images(views=ViewPolicy(2))
    with pytest.raises(RecipeError) as error:
        open_sources(world.recipe(crops="replay", **over), world.root)
    line = str(error.value)
    assert all(words in line for words in named)
    assert line.count(" in the recipe, ") == len(over)
    assert all(
        remedy in line
        for remedy in (
            "set the recipe to the cache's",
            "--crops free",
            "extract the images with --views",
        )
    )
    assert len(open_sources(world.recipe(crops="free", **over), world.root)) == ROWS


def test_the_centre_view_is_refused_over_a_cache_of_crops(world):
    world.root.joinpath("images").rename(world.root / "plain")
    world.images(views=ViewPolicy(2))
    with pytest.raises(
        RecipeError,
        match="holds 2 random crops of each image and not its centre. Fix: say --crops replay",
    ):
        open_sources(world.recipe(crops="center"), world.root)


def test_pairs_have_no_cache_and_need_no_flag(world):
    pairs = [str(world.pairs(["one", "two", "three"]))]
    found = []
    for crops in ("replay", "free"):
        recipe = world.clip_recipe(images=pairs, crops=crops, batch_size=3)
        load = Batches(
            open_sources(recipe, world.root),
            recipe,
            16,
            lambda sentences: torch.zeros(len(sentences), 1),
        )
        found.append(load(0).pixels)
    assert torch.equal(*found)
    assert Recipe().crops == "replay"


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """Images of noise, sentences, and a real encoder's features of two views of each, made by the
    command.
    """
    root = tmp_path_factory.mktemp("extracted")
    write_images(root / "many.tsv", 6)
    with (root / "many.tsv").open("a") as file:
        file.write(f"broken\t{base64.b64encode(b'no image').decode()}\n")
    (root / "words.txt").write_text("".join(f"sentence number {n}\n" for n in range(5)))
    words = [
        "extract-features",
        "--teacher",
        "ResNet-mini-64/random:0",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    words += [
        "--images",
        root / "many.tsv",
        "--texts",
        root / "words.txt",
        "--views",
        2,
        "--view-recipe",
        "scale=[0.1,0.6]",
    ]
    result = CliRunner().invoke(
        main,
        [
            str(word)
            for word in [
                *words,
                "seed=4",
                "--decoder",
                "turbo",
                "--batch-size",
                3,
                "--out",
                root / "cache",
            ]
        ],
    )
    assert result.exit_code == 0, result.output
    return root


def test_the_cache_states_its_views_and_quarantines_all_views_of_an_image(extracted):
    cache = FeatureCache(extracted / "cache/images")
    assert cache.manifest.how["views"] == ViewPolicy(2, seed=4, scale=(0.1, 0.6)).how()
    assert cache.manifest.views == 2
    (info,) = cache.manifest.shards
    assert (info.source_rows, info.rows, info.bad) == (14, 12, (12, 13))
    keys, _ = cache.read(info)
    assert keys == [f"k{n}#{view}" for n in range(6) for view in (0, 1)]
    listed = [
        json.loads(line)
        for line in (extracted / "cache/images/quarantine.jsonl").read_text().splitlines()
    ]
    assert [(bad["row"], bad["key"]) for bad in listed] == [(12, "broken#0"), (13, "broken#1")]
    assert FeatureCache(extracted / "cache/texts").manifest.how.get("views") is None


def test_every_teacher_row_in_training_is_the_encoding_of_the_view_that_the_student_saw(
    extracted, tiny_teacher, world, monkeypatch
):
    """The student has the teacher's size, so its pixels are encoded again by the teacher and
    compared.
    """
    student = json.loads(world.tiny.read_text())
    student["vision_cfg"]["image_size"] = 64
    world.tiny.write_text(json.dumps(student))
    caches = {
        "image_cache": str(extracted / "cache/images"),
        "text_cache": str(extracted / "cache/texts"),
    }
    recipe = world.recipe(
        images=[str(extracted / "many.tsv")],
        crops="replay",
        crop_scale=(0.1, 0.6),
        steps=5,
        **caches,
    )
    batches, backward = [], Trainer.backward
    monkeypatch.setattr(
        Trainer,
        "backward",
        lambda self, step, found: batches.extend(found) or backward(self, step, found),
    )
    train(recipe, world.root / "run", echo=lambda line: None)
    card = tiny_teacher.card.preprocess
    stored = torch.from_numpy(FeatureCache(extracted / "cache/images")[:])
    used = []
    for batch in batches:
        pixels = batch.pixels.permute(0, 3, 1, 2).float().div(255)
        pixels = (pixels - torch.tensor(card["mean"]).view(3, 1, 1)) / torch.tensor(
            card["std"]
        ).view(3, 1, 1)
        again = tiny_teacher.encode_image(pixels)
        torch.testing.assert_close(again, batch.same_modality[0], rtol=0, atol=1e-5)
        used += (again @ stored.T).argmax(1).tolist()
        torch.testing.assert_close(
            stored[used[-len(again) :]], batch.same_modality[0], rtol=0, atol=0
        )
    assert len(used) == 25
    assert set(used) == set(range(12))


def test_any_rows_of_a_cache_of_views_can_be_encoded_again(extracted, tiny_teacher):
    cache = FeatureCache(extracted / "cache/images")
    policy = ViewPolicy.from_manifest(cache.manifest.how)
    stage = Images(tiny_teacher, Settings(views=policy, batch_size=2, decoder="turbo"))
    (shard,) = open_rows([extracted / "many.tsv"], "image").shards
    found = list(stage.batches(stage.index(shard), [1, 2, 3, 7, 12]))
    assert [number for batch in found for number in batch.numbers] == [1, 2, 3, 7]
    assert [bad.row for batch in found for bad in batch.bad] == [12]
    again = torch.cat([stage.encode(batch.inputs) for batch in found if batch.inputs is not None])
    torch.testing.assert_close(again, torch.from_numpy(cache[[1, 2, 3, 7]]), rtol=0, atol=1e-5)


def test_other_views_do_not_go_on_with_a_half_finished_cache(extracted, tiny_teacher):
    rows = open_rows([extracted / "many.tsv"], "image")
    policy = dataclasses.replace(ViewPolicy(2, seed=4, scale=(0.1, 0.6)), seed=5)
    with pytest.raises(CacheError, match=r"views\.seed: 5 against 4"):
        extract(
            tiny_teacher,
            rows,
            "image",
            extracted / "cache/images",
            Settings(dtype="float32", progress=False, views=policy),
        )

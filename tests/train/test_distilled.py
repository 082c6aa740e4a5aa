"""Both towers learn from pairs and a teacher's cached features of them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dimefm.data import open_rows
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import CacheError, RecipeError
from dimefm.models.loading import load_encoder
from dimefm.train import checkpoint
from dimefm.train.trainer import Trainer, train


def quiet(line):
    """Take a line of progress and say nothing."""


def run_of(world, name="run", **over):
    return Trainer(world.distilled_recipe(**over), world.root / name, False, quiet)


def test_image_sentence_and_both_features_are_of_one_pair(world):
    run = run_of(world)
    for number in range(4):
        batch = run.task.batches(number)
        images = world.numbers_of_pixels(batch.pixels)
        assert (
            world.numbers_of_features(batch.same_modality[0])
            == world.numbers_of_features(batch.other_modality[0])
            == images
        )
        wanted = run.task.batches.sentences.tokenize([f"number {n}" for n in images])
        assert torch.equal(batch.tokens, wanted)


def test_pairs_that_lack_a_feature_of_either_kind_are_never_drawn(world):
    run = run_of(world, quarantined=((2, 5), (5, 7)), batch_size=8)
    seen = set()
    for number in range(5):
        batch = run.task.batches(number)
        seen |= set(world.numbers_of_features(batch.other_modality[0]))
        assert world.numbers_of_features(batch.same_modality[0]) == world.numbers_of_features(
            batch.other_modality[0]
        )
    assert len(run.sources) == 9
    assert seen == set(range(12)) - {2, 5, 7}


def test_a_row_that_cannot_be_read_takes_its_features_along(world):
    """The losses are those of the other rows alone."""
    run = run_of(world, batch_size=8)
    whole = run.task.batches(0)
    for number in world.numbers_of_features(whole.same_modality[0])[:3]:
        (world.root / f"{number}.png").write_bytes(b"no image")
    batch = run.task.batches(0)
    assert len(batch) == 5 and len(batch.bad) == 3 and len(batch.same_modality[0]) == 8
    seen = []
    run.objective = lambda ours, theirs, parts, progress: (
        seen.append((ours, theirs)) or {"total": ours.image.sum()}
    )
    run.backward(0, [batch])
    ours, theirs = seen[0]
    kept = world.numbers_of_pixels(batch.pixels)
    assert world.numbers_of_features(theirs.image) == world.numbers_of_features(theirs.text) == kept
    assert ours.image.shape == ours.text.shape == (5, 8)


def test_views_of_images_go_with_the_one_row_of_a_sentence(world):
    views = ViewPolicy(count=3, seed=1, scale=(0.5, 1.0), ratio=(1.0, 1.0), flip=0.5)
    recipe = {"crops": "replay", "crop_scale": [0.5, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.5}
    run = run_of(world, views=views, batch_size=12, **recipe)
    for epoch in range(4):
        batch = run.task.batches(epoch)
        images = world.numbers_of_pixels(batch.pixels)
        assert world.numbers_of_features(batch.other_modality[0]) == images
        assert world.numbers_of_features(batch.same_modality[0]) == [
            3 * n + epoch % 3 for n in images
        ]


def test_learnt_parts_learn_are_kept_and_are_no_part_of_the_result(world):
    recipe = world.distilled_recipe(steps=6, save_every=3, keep=9, lr=3e-3)
    out = train(recipe, world.root / "run", echo=quiet)
    first, last = (load_file(folder / checkpoint.MODEL) for folder in checkpoint.checkpoints(out))
    loss_modules = [name for name in first if name.startswith("loss_modules.")]
    assert {name.split(".")[2] for name in loss_modules} == {
        "image_projection",
        "text_projection",
        "cross_scale",
    }
    assert all(not torch.equal(first[name], last[name]) for name in loss_modules)
    assert not [
        name for name in load_file(out / "open_clip_model.safetensors") if "loss_modules" in name
    ]
    assert load_encoder(str(out), "cpu").card.dim == 8
    assert json.loads((out / "run.json").read_text())["teacher"]["dim"] == 6
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["clip_kd.fd"] < lines[0]["clip_kd.fd"]
    assert lines[-1]["cosine"] > lines[0]["cosine"]
    assert lines[-1]["text_cosine"] > lines[0]["text_cosine"]


def test_a_resumed_run_is_the_run_bit_for_bit(world):
    recipe = world.distilled_recipe(steps=6, save_every=3, keep=9, ema=0.9)
    whole, half = train(recipe, world.root / "whole", echo=quiet), world.root / "half"
    shutil.copytree(checkpoint.checkpoints(whole)[0], half / "checkpoints/00000003")
    for name in ("recipe.toml", "log.jsonl"):
        shutil.copy(whole / name, half / name)
    train(recipe, half, resume=True, echo=quiet)
    folders = [checkpoint.checkpoints(run)[-1] for run in (whole, half)]
    assert [folder.name for folder in folders] == ["00000006"] * 2
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.AVERAGE):
        a, b = (load_file(folder / file) for folder in folders)
        assert any("loss_modules." in name for name in a)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_parts_are_drawn_from_the_seed(world):
    states = [
        run_of(world, name, seed=seed).student.loss_modules.state_dict()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    name = "0.image_projection.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_the_total_follows_the_schedule(world):
    losses = {"clip_kd.fd": {"weight": 10, "schedule": "linear"}, "clip_kd.crd": {"weight": 1.0}}
    out = train(world.distilled_recipe(losses, steps=5), world.root / "run", echo=quiet)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    weights = [(line["total"] - line["clip_kd.crd"]) / line["clip_kd.fd"] for line in lines]
    np.testing.assert_allclose(weights, [10, 7.5, 5, 2.5, 0], atol=1e-4)


def test_the_bias_of_a_siglip_learns(world):
    config = json.loads(world.tiny.read_text()) | {"custom_text": True, "init_logit_bias": -10.0}
    (world.root / "siglip.json").write_text(json.dumps(config))
    losses = {"siglip.sigmoid": {"weight": 1.0}, "open_clip.distill": {"weight": 1.0}}
    recipe = world.distilled_recipe(
        losses, student=str(world.root / "siglip.json"), steps=2, lr=1e-2
    )
    out = train(recipe, world.root / "run", echo=quiet)
    assert load_file(out / "open_clip_model.safetensors")["logit_bias"] != -10


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"text_cache": ()}, "--text-cache is not given"),
        (
            {"image_cache": (), "losses": {"clip.contrastive": {"weight": 1.0}}},
            "--image-cache is not given",
        ),
        ({"projection": "linear"}, "projection = 'linear' is for one tower"),
        ({"texts_per_step": 5}, "a pair has its own"),
        ({"captions": "label"}, "--captions label makes sentences that no --text-cache holds"),
        (
            {"losses": {"siglip.sigmoid": {"weight": 1.0}}},
            "needs bias, which this student does not have",
        ),
        (
            {"losses": {"dime.pvl": {"weight": 1.0}}},
            "have 8 and 6 dimensions. Fix: leave it out, or give a --student of 6",
        ),
        ({"image_cache": (), "text_cache": ()}, "needs teacher, which these sources do not have"),
    ],
)
def test_recipes_that_cannot_be_are_refused(world, over, words):
    with pytest.raises(RecipeError, match=words):
        run_of(world, **over)


def test_a_split_divides_images_and_sentences_alike(world):
    """A table without keys names an image and its sentence by the image's file, so that a split by
    key never tears pairs apart.
    """
    world.distilled_recipe()
    table = world.root / "paired.csv"
    table.write_text(
        "".join(line.partition(",")[2] + "\n" for line in table.read_text().splitlines())
    )
    [images] = open_rows([str(table)], "image").shards
    [texts] = open_rows([str(table)], "text").shards
    assert images.keys() == texts.keys()
    assert len(set(images.keys())) == 12


def test_features_of_other_pairs_are_refused(world):
    recipe = world.distilled_recipe(count=12)
    table = world.root / "paired.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(CacheError, match="the raw row has key 'k11', its feature row in"):
        Trainer(recipe, world.root / "run", False, quiet)


def test_an_image_tower_learns_by_the_terms_that_need_no_pairs(world):
    """From two teachers of unpaired images and sentences; each has learnt parts of its own."""
    names = (
        "clip_kd.crd",
        "clip_kd.cross_kd",
        "clip_kd.fd",
        "tinyclip.affinity",
        "open_clip.distill",
    )
    recipe = world.recipe(
        losses={name: {"weight": 1.0} for name in names}, lr=3e-3, **world.second_teacher()
    )
    out = train(recipe, world.root / "run", echo=quiet)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(lines[-1][name] < lines[0][name] for name in ("total", "clip_kd.fd"))
    assert "text_cosine" not in lines[-1]
    kept = load_file(checkpoint.checkpoints(out)[-1] / checkpoint.MODEL)
    assert {name for name in kept if "loss_modules" in name} == {
        f"loss_modules.{n}.cross_scale.value" for n in (0, 1)
    }
    with pytest.raises(RecipeError, match="'clip_kd.icl' needs pairs"):
        Trainer(
            world.recipe(losses={"clip_kd.icl": {"weight": 1.0}}), world.root / "icl", False, quiet
        )


def test_a_text_tower_learns_from_the_images_of_its_sentences(world):
    names = ("clip_kd.icl", "clip_kd.fd", "clip_kd.afd", "clip_kd.gd")
    recipe = world.text_recipe(per_row=2, losses={name: {"weight": 1.0} for name in names}, lr=3e-3)
    out = train(recipe, world.root / "run", echo=quiet)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["clip_kd.fd"] < lines[0]["clip_kd.fd"]
    assert json.loads((out / "run.json").read_text())["kind"] == "text-tower"

"""Several teachers over the same rows: each row meets its own features, and the loss is the mean
over teachers.
"""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from dimefm.cache import CacheWriter, FeatureCache
from dimefm.cache.writer import Bad
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import CacheError, RecipeError
from dimefm.losses import Features
from dimefm.recipe import read
from dimefm.train.inputs.image_batches import Batches
from dimefm.train.inputs.sources import open_sources
from dimefm.train.trainer import Trainer, train

ROWS, TEXTS = 17, 9


def quiet(line):
    """Take a line of progress and say nothing."""


def run(world, name, **over):
    return Trainer(world.recipe(**over), world.root / name, False, quiet)


def test_rows_that_one_teacher_lacks_are_left_out_and_the_others_keep_their_own_features(world):
    for folder in ("images", "texts"):
        (world.root / folder).rename(world.root / f"whole_{folder}")
    world.images(quarantined={0, 3, 12})
    world.texts(quarantined={1, 8})
    both = world.second_teacher(images={3, 4, 16}, texts={0, 1})
    left = sorted(set(range(ROWS)) - {0, 3, 4, 12, 16})
    recipe = world.recipe(**both, batch_size=len(left), texts_per_step=6)
    load = Batches(open_sources(recipe, world.root), recipe, 16, None)
    for number in range(3):
        batch = load(number)
        numbers = world.numbers_of_pixels(batch.pixels)
        assert sorted(numbers) == left
        assert [world.numbers_of_features(rows) for rows in batch.same_modality] == [
            numbers,
            numbers,
        ]
        assert [rows.shape[1] for rows in batch.same_modality] == [8, 6]
        first, second = (world.numbers_of_features(rows) for rows in batch.other_modality)
        assert first == second
        assert sorted(first) == [2, 3, 4, 5, 6, 7]


def test_views_of_two_teachers_are_the_same_view(world):
    (world.root / "images").rename(world.root / "plain")
    policy = ViewPolicy(2)
    world.images(views=policy, quarantined={7})
    both = world.second_teacher()
    (world.root / "images_b").rename(world.root / "plain_b")
    world.images("images_b", views=policy, quarantined={20, 21}, teacher="b", dim=6, scale=35.0)
    recipe = world.recipe(**both, crops="replay", batch_size=15)
    load = Batches(open_sources(recipe, world.root), recipe, 16, None)
    for epoch in range(2):
        batch = load(epoch)
        expected = [2 * number + epoch for number in world.numbers_of_pixels(batch.pixels)]
        assert [world.numbers_of_features(rows) for rows in batch.same_modality] == [
            expected,
            expected,
        ]
        assert set(range(ROWS)) - {n // 2 for n in expected} == {3, 10}


def test_the_loss_is_the_mean_of_the_two_single_ones(world):
    both = world.second_teacher()
    two, one = run(world, "two", **both), run(world, "one")
    other = run(
        world, "other", image_cache=both["image_cache"][1:], text_cache=both["text_cache"][1:]
    )
    model, head = two.student.model, two.student.heads[0]
    other.student.model = torch.nn.Sequential(model)
    other.student.model.encode_image = lambda pixels: head(model.encode_image(pixels))
    for number in range(2):
        found, single, second = (
            each.backward(number, [each.task.batches(number)])[0] for each in (two, one, other)
        )
        assert (
            found.keys()
            == single.keys()
            == {"total", "dime.vl", "dime.pvl", "cosine", "logit_scale"}
        )
        for name, value in found.items():
            torch.testing.assert_close(value, (single[name] + second[name]) / 2)
        assert abs(single["total"] - second["total"]) > 1e-3


def test_each_teacher_has_its_own_logit_scale_unless_the_recipe_states_one(world):
    both = world.second_teacher()
    for name, over, scales in (
        ("own", {}, [20.0, 35.0]),
        ("stated", {"logit_scale": 50.0}, [50.0, 50.0]),
    ):
        ours = run(world, name, **both, **over)
        teachers = [Features.from_rows(torch.eye(dim), torch.eye(dim), 1.0) for dim in (8, 6)]
        found = ours.student.features(ours.student(torch.zeros(2, 16, 16, 3), None), teachers)
        assert [features.image.shape[1] for features in found] == [8, 6]
        assert [
            teacher.logit_scale
            for teacher in ours._teacher_features([ours.task.batches(0)], torch.arange(5))
        ] == scales


def test_the_head_learns_is_kept_in_checkpoints_and_left_out_of_the_finished_tower(world):
    both = world.second_teacher()
    before, again = (run(world, name, **both).student.state_dict() for name in ("before", "again"))
    assert torch.equal(before["heads.0.weight"], again["heads.0.weight"])
    assert before["heads.0.weight"].shape == (6, 8)
    out = train(world.recipe(**both, steps=3, save_every=3), world.root / "run", echo=quiet)
    kept = load_file(out / "checkpoints/00000003/model.safetensors")
    assert not torch.equal(kept["heads.0.weight"], before["heads.0.weight"])
    assert "heads.0.weight/exp_avg" in load_file(out / "checkpoints/00000003/optimizer.safetensors")
    assert not any("head" in name for name in load_file(out / "image_tower.safetensors"))
    record = json.loads((out / "run.json").read_text())
    assert record["teacher"]["name"] == "teacher-a"
    assert [(teacher["name"], teacher["dim"]) for teacher in record["teachers"]] == [
        ("teacher-a", 8),
        ("teacher-b", 6),
    ]
    for kind in ("image", "text"):
        roots = [world.root / f"{kind}s", world.root / f"{kind}s_b"]
        assert record[f"{kind}_cache"] == [
            FeatureCache(root).manifest.fingerprint for root in roots
        ]


def test_one_teacher_has_no_head_and_the_weights_of_a_run_of_its_own(world):
    one = run(world, "one").student.state_dict()
    assert not any(name.startswith("heads") for name in one)
    two = run(world, "two", **world.second_teacher()).student.state_dict()
    assert all(torch.equal(two[name], value) for name, value in one.items())


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"text_cache": ["texts"]},
            "--image-cache names 2 caches and --text-cache 1. Fix: name one of each",
        ),
        (
            {"text_cache": ["texts_b", "texts"]},
            (
                "images and .*texts_b were made by different teachers .*dim: 8 against 6.*. Fix:"
                " name both kinds in the same order"
            ),
        ),
        (
            {"image_cache": ["images", "texts_b"]},
            "texts_b: holds text features, image features are needed",
        ),
    ],
)
def test_caches_that_do_not_pair_up_are_refused(world, over, message):
    both = world.second_teacher()
    over = {
        name: [str(world.root / folder) for folder in folders] for name, folders in over.items()
    }
    with pytest.raises((RecipeError, CacheError), match=message) as error:
        open_sources(world.recipe(**{**both, **over}), world.root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("views", "field"),
    [(None, "views: a table of .* against None"), (ViewPolicy(3), r"views\.count: 2 against 3"),
     (ViewPolicy(2, seed=1), r"views\.seed: 0 against 1")],
)  # fmt: skip
def test_image_caches_of_other_views_are_refused(world, views, field):
    both = world.second_teacher()
    for folder in ("images", "images_b"):
        (world.root / folder).rename(world.root / f"plain_{folder}")
    world.images(views=ViewPolicy(2))
    world.images("images_b", views=views, teacher="b", dim=6, scale=35.0)
    with pytest.raises(
        CacheError,
        match=f"images and .*images_b hold different views .*{field}.*extract one of them again",
    ):
        open_sources(world.recipe(**both), world.root)


def rewrite(world, folder, shards, digest=None):
    """Write a text cache anew over shards {name: keys}, None for a bad row, by the same teacher."""
    manifest = FeatureCache(world.root / folder).manifest
    (world.root / folder).rename(world.root / f"{folder}_before")
    digests = dict.fromkeys(shards, digest) if digest else {}
    counts = [(name, len(keys)) for name, keys in shards.items()]
    writer = CacheWriter(
        world.root / folder, dataclasses.replace(manifest, shards=()), counts, digests
    )
    for name, keys in shards.items():
        bad = [Bad(row, "", "is bad") for row, key in enumerate(keys) if key is None]
        good = [key for key in keys if key is not None]
        writer.write(name, good, torch.eye(manifest.dim).repeat(2, 1)[: len(good)].numpy(), bad)
    writer.seal()


KEYS = [f"k{n}" for n in range(TEXTS)]


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"other.txt": KEYS}, "texts_b has a shard of source other.txt, .*texts has none"),
        (
            {"sentences.txt": KEYS, "zz.txt": ["x"]},
            "texts_b has a shard of source zz.txt, .*texts has none",
        ),
        (
            {"sentences.txt": KEYS[:-1]},
            "shard sentences.txt has source_rows 9 in one, 8 in the other",
        ),
        (
            {"sentences.txt": KEYS[::-1]},
            "shard sentences.txt has keys_sha256 .* in one, .* in the other",
        ),
        (
            {"sentences.txt": [None, *KEYS[:-1]]},
            "row 1 of shard sentences.txt has key 'k1' in one, 'k0' in the other",
        ),
    ],
)
def test_text_caches_of_other_sentences_are_refused(world, shards, message):
    both = world.second_teacher()
    rewrite(world, "texts_b", shards)
    with pytest.raises(CacheError, match=message) as error:
        open_sources(world.recipe(**both), world.root)
    assert "\n" not in str(error.value)


def test_text_caches_of_another_content_are_refused_where_it_is_known(world):
    both = world.second_teacher()
    rewrite(world, "texts_b", {"sentences.txt": KEYS}, "b" * 64)
    assert len(open_sources(world.recipe(**both), world.root).text_rows) == TEXTS
    rewrite(world, "texts", {"sentences.txt": KEYS}, "a" * 64)
    with pytest.raises(
        CacheError, match="shard sentences.txt has source_digest a+ in one, b+ in the other"
    ):
        open_sources(world.recipe(**both), world.root)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_teachers_without_one_good_row_in_common_are_refused(world, kind):
    rows = {"image": ROWS, "text": TEXTS}[kind]
    (world.root / f"{kind}s").rename(world.root / "whole")
    (world.images if kind == "image" else world.texts)(quarantined=set(range(0, rows, 2)))
    both = world.second_teacher(**{f"{kind}s": set(range(1, rows, 2))})
    with pytest.raises(CacheError, match=f"{kind}s and .*{kind}s_b have no good row in common"):
        open_sources(world.recipe(**both), world.root)


def test_a_plain_string_is_a_cache_of_one_teacher(tmp_path):
    (tmp_path / "r.toml").write_text('image_cache = "a"\ntext_cache = ["b", "c"]\n')
    recipe = read(tmp_path / "r.toml")
    assert (recipe.image_cache, recipe.text_cache) == (("a",), ("b", "c"))

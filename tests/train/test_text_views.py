"""Caches of several sentences a row: a text tower sees the one of the feature, and unpaired
training uses all of them.
"""

import json

import pytest

from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError
from dimefm.train.trainer import Trainer
from tests.train.test_text_tower import TEXTS, numbers_of_tokens, quiet

CAPTIONS = TextPolicy.parse(3, {})
EDA = TextPolicy.parse(3, {"augment": "eda", "deletion": 1.0})


def run(world, recipe):
    return Trainer(recipe, world.root / "run", resume=False, echo=quiet)


def several(world, policy, **over):
    """Return a recipe of a text tower whose rows have two sentences each, and ``policy.count``
    views of them.
    """
    recipe = world.text_recipe(text_cache=str(world.root / "several"), **over)
    lines = [
        f"k{n}\t{json.dumps({'captions': [f'row {n}', f'row {n} again 1']})}\n"
        for n in range(TEXTS)
    ]
    (world.root / "sentences.tsv").write_text("".join(lines))
    world.cache("several", "text", [("sentences.tsv", TEXTS)], views=policy)
    return recipe


def test_a_text_tower_sees_the_sentences_of_the_features_the_next_one_each_epoch(world):
    load, found = run(world, several(world, CAPTIONS, batch_size=3)).task.batches, []
    for number in range(3 * CAPTIONS.count):
        batch = load(number)
        rows = world.numbers_of_features(batch.same_modality[0])
        assert [row % 3 for row in rows] == [number // 3] * 3
        told = numbers_of_tokens(batch.tokens)
        assert told == [(row // 3, 1 if row % 3 == 1 else None) for row in rows]
        found += rows
    assert sorted(found) == list(range(TEXTS * CAPTIONS.count))


def test_a_text_tower_sees_variants_as_the_policy_draws_them(world):
    ours = run(world, several(world, EDA))
    for number in range(4):
        batch = ours.task.batches(number)
        told = [
            ours.task.batches.tokenize([EDA.draw(f"k{row // 3}", row % 3, (f"row {row // 3}",))])[
                0
            ].tolist()
            for row in world.numbers_of_features(batch.same_modality[0])
        ]
        assert batch.tokens.tolist() == told


def test_unpaired_sentences_are_all_views_of_all_rows(world):
    world.texts("several", views=CAPTIONS, quarantined=(4, 20))
    ours = run(world, world.recipe(text_cache=str(world.root / "several"), texts_per_step=5))
    assert len(ours.sources.text_rows) == 25
    seen = [
        n
        for number in range(5)
        for n in world.numbers_of_features(ours.task.batches(number).other_modality[0])
    ]
    assert sorted(seen) == sorted(set(range(27)) - {4, 20})


def test_teachers_with_other_sentences_are_refused(world):
    both = world.second_teacher()
    world.texts("texts_a3", views=EDA)
    for name, policy in (
        ("texts_b3", TextPolicy.parse(3, {"augment": "eda", "seed": 1})),
        ("texts_b1", None),
    ):
        world.texts(name, views=policy, teacher="b", dim=6, scale=35.0)
        recipe = world.recipe(
            **{**both, "text_cache": [str(world.root / "texts_a3"), str(world.root / name)]}
        )
        with pytest.raises(
            CacheError,
            match="texts_a3 and .* hold different sentences .*text views.*--text-views and",
        ):
            run(world, recipe)

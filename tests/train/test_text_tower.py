"""A text tower learns from sentences whose features, or whose images' features, are their own."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dimefm.cache import FeatureCache
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import DataError, DimefmError
from dimefm.extract.stages.base import Settings
from dimefm.extract.stages.images import Images
from dimefm.models import open_clip
from dimefm.models.loading import load_encoder
from dimefm.storage.files import write_text
from dimefm.train.inputs.text_batches import drop_words
from dimefm.train.trainer import Trainer, train

TEXTS = 9


def quiet(line):
    """Take a line of progress and say nothing."""


def run(world, recipe, name="run"):
    return Trainer(recipe, world.root / name, resume=False, echo=quiet)


TOKENIZER = open_clip.tokenizer_of("ViT-B-32")


def numbers_of_tokens(tokens):
    """Return (row, place) that tokens of ``row N`` or ``row N again J`` tell."""
    decoded = [TOKENIZER.decode(row[row > 0].tolist()) for row in tokens]
    found = [re.search(r"row ([\d ]+?) (?:again (\d) )?<end", text) for text in decoded]
    return [(int(match[1].replace(" ", "")), match[2] and int(match[2])) for match in found]


def test_the_features_of_a_sentence_are_its_own_and_images_are_drawn_by_themselves(world):
    load = run(world, world.text_recipe()).task.batches
    sentences, images = [], []
    for number in range(9):
        batch = load(number)
        assert batch.pixels is None
        assert [row for row, _ in numbers_of_tokens(batch.tokens)] == world.numbers_of_features(
            batch.same_modality[0]
        )
        assert (len(batch), len(batch.other_modality[0])) == (5, 7)
        sentences += world.numbers_of_features(batch.same_modality[0])
        images += world.numbers_of_features(batch.other_modality[0])
    assert sorted(sentences) == sorted(5 * list(range(TEXTS)))
    assert set(images) == set(range(sum(world.shards)))


def test_features_of_several_teachers_belong_to_the_same_sentence(world):
    world.text_recipe()
    world.images("images_b", teacher="b", dim=6)
    world.cache("tsv_b", "text", [("sentences.tsv", TEXTS)], quarantined=(2, 3), teacher="b", dim=6)
    names = {"image_cache": ("images", "images_b"), "text_cache": ("tsv", "tsv_b")}
    both = {
        field: [str(world.root / folder) for folder in folders] for field, folders in names.items()
    }
    ours = run(world, world.text_recipe(**both))
    assert len(ours.sources) == TEXTS - 2
    for number in range(4):
        batch = ours.task.batches(number)
        rows = [row for row, _ in numbers_of_tokens(batch.tokens)]
        assert [world.numbers_of_features(own) for own in batch.same_modality] == [rows, rows]
        assert not {2, 3} & set(rows)


def test_of_pairs_each_image_has_one_of_its_sentences_and_both_sides_are_the_image(world):
    load = run(world, world.text_recipe(per_row=3)).task.batches
    met = set()
    for number in range(150):
        batch = load(number)
        pairs = numbers_of_tokens(batch.tokens)
        assert [row for row, _ in pairs] == world.numbers_of_features(batch.same_modality[0])
        assert batch.other_modality is None
        met |= set(pairs)
    assert met == {(row, place) for row in range(sum(world.shards)) for place in range(3)}


def test_an_epoch_of_pairs_shows_each_image_with_a_sentence_once(world):
    recipe = world.text_recipe(per_row=2)
    lines = (world.root / "captions.tsv").read_text().splitlines()
    write_text(
        world.root / "captions.tsv",
        "\n".join(line for line in lines if not line.startswith("k3#")) + "\n",
    )
    ours = run(world, recipe)
    assert len(ours.sources) == sum(world.shards) - 1
    shown = [
        row
        for number in range(16)
        for row, _ in numbers_of_tokens(ours.task.batches(number).tokens)
    ]
    assert all(shown.count(row) == 5 for row in range(sum(world.shards)) if row != 3)
    assert 3 not in shown


def test_a_row_with_several_sentences_of_its_own_shows_all_of_them(world):
    rows = [
        {"key": f"k{n}", "captions": [f"row {n} again {j}" for j in range(3)]} for n in range(17)
    ]
    path = world.root / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = run(world, world.text_recipe(per_row=1, texts=[str(path)])).task.batches
    met = {pair for number in range(150) for pair in numbers_of_tokens(load(number).tokens)}
    assert met == {(row, place) for row in range(17) for place in range(3)}


@pytest.mark.parametrize("per_row", [0, 2])
def test_batches_are_pure_functions_of_seed_and_number(world, per_row):
    load, again = (
        run(world, world.text_recipe(per_row), name).task.batches for name in ("one", "two")
    )
    other = run(world, world.text_recipe(per_row, seed=1), "other").task.batches
    first = [load(number) for number in range(4)]
    for number in (3, 0, 2, 1):
        batch = again(number)
        assert torch.equal(batch.tokens, first[number].tokens)
        assert all(
            map(
                torch.equal,
                batch.same_modality + (batch.other_modality or ()),
                first[number].same_modality + (first[number].other_modality or ()),
            )
        )
    assert not torch.equal(other(0).tokens, first[0].tokens)


@pytest.mark.parametrize("per_row", [0, 1])
def test_empty_sentences_are_left_out_with_their_features_and_listed(world, per_row):
    recipe = world.text_recipe(per_row, batch_size=9 if per_row == 0 else 17)
    (source,) = map(Path, recipe.texts)
    write_text(source, re.sub(r"(?m)^(k[25](?:#0)?\t).*$", r"\1 ", source.read_text()))
    batch = run(world, recipe).task.batches(0)
    rows = [row for row, _ in numbers_of_tokens(batch.tokens)]
    assert rows == world.numbers_of_features(batch.same_modality[0][batch.places])
    assert sorted(bad["row"] for bad in batch.bad) == [2, 5]
    assert {bad["reason"] for bad in batch.bad} == {"sentence is empty"}


def test_a_batch_of_empty_sentences_alone_ends_the_run(world):
    recipe = world.text_recipe()
    write_text(world.root / "sentences.tsv", "".join(f"k{n}\t \n" for n in range(TEXTS)))
    with pytest.raises(
        DataError, match="step 1: none of its 5 rows can be read; the first: .*sentence is empty"
    ):
        train(recipe, world.root / "run", echo=quiet)


def test_trained_on_pairs_it_comes_near_the_image_of_a_sentence(world):
    long = {
        "steps": 300,
        "batch_size": 17,
        "lr": 1e-2,
        "warmup": 1.0,
        "logit_scale": 300.0,
        "log_every": 50,
    }
    out = train(world.text_recipe(per_row=2, **long), world.root / "run", echo=quiet)
    tower = load_tower(out)
    sentences = [f"row {n} again 0" for n in range(17)]
    rows = tower.encode_text(tower.tokenize(sentences)[0])
    images = torch.from_numpy(FeatureCache(world.root / "images")[np.arange(17)])
    found = (F.normalize(images) @ rows.T).argmax(0)
    assert np.corrcoef(found, np.arange(17))[0, 1] > 0.8


def load_tower(out):
    """Load a run whose teacher is not at hand: its sentences need no teacher."""
    return load_encoder(str(out), "cpu")


@pytest.mark.parametrize("per_row", [0, 2])
def test_a_finished_run_encodes_what_the_student_did(world, per_row):
    ours = run(world, world.text_recipe(per_row))
    ours.loop()
    out = ours.finish()
    tower = load_tower(out)
    tokens = tower.tokenize(
        [
            "row 3",
            (
                "a sentence that is longer than the sixteen tokens which this small tower can ever"
                " read"
            ),
        ]
    )[0]
    with torch.no_grad():
        expected = F.normalize(ours.student.eval().sentences(tokens), dim=-1)
    assert torch.equal(tower.encode_text(tokens), expected)
    assert (
        tower.card.shared_towers["image"]
        == FeatureCache(world.root / "images").manifest.encoder.identity()
    )
    record = json.loads((out / "run.json").read_text())
    assert record["kind"] == "text-tower"
    assert record["rows"] == (sum(world.shards) if per_row else TEXTS)
    assert record["text_parameters"] == record["parameters"] == tower.text_parameters
    assert tower.card.context_length == 16
    with pytest.raises(
        DimefmError, match=r"was distilled from 'teacher-a' and needs its other tower.*--text-model"
    ):
        tower.encode_image(torch.zeros(1, 3, 16, 16))


def views_of(world):
    world.images("crops", views=ViewPolicy(2, (0.5, 1.0), (0.75, 4 / 3), 0.5, 0))
    return {"image_cache": str(world.root / "crops")}


REFUSALS = {
    "no texts": (0, {"texts": ()}, "no sentences are given. Fix: name them with --texts"),
    "images beside": (
        0,
        {"images": ("a",)},
        "leave --images out, and train the image tower in a run of its own",
    ),
    "texts for an image tower": (
        0,
        {"text": "teacher"},
        "texts is for training a text tower (--text student:NAME)",
    ),
    "no images": (0, {"image_cache": ()}, "--image-cache is not given"),
    "pairs without pairs": (
        0,
        {"losses": {"clip.contrastive": {"weight": 1.0}}},
        "'clip.contrastive' needs pairs",
    ),
    "texts a step of pairs": (1, {"texts_per_step": 3}, "texts_per_step is for a --text-cache"),
    "no text tower": (1, {"text": "student:dime-Swin-X"}, "unknown architecture 'dime-Swin-X'"),
    "swapped": (0, {"image_cache": "texts"}, "holds text features, image features are needed"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_before_the_first_step(world, case):
    per_row, over, message = REFUSALS[case]
    if over.get("image_cache"):
        over = {"image_cache": str(world.root / over["image_cache"])}
    with pytest.raises(DimefmError, match=re.escape(message)):
        run(world, world.text_recipe(per_row, **over))


def test_sentences_of_other_images_are_refused(world):
    recipe = world.text_recipe(per_row=1)
    write_text(world.root / "captions.tsv", "x0\tone\nx1\ttwo\n")
    with pytest.raises(
        DimefmError, match=r"holds no image with the key of a sentence \('x0' in .* against 'k0'\)"
    ):
        run(world, recipe)


def test_crops_of_images_are_refused(world):
    with pytest.raises(
        DimefmError,
        match="holds 2 random crops of each image; a text tower learns against the center crop",
    ):
        run(world, world.text_recipe(per_row=1, **views_of(world)))


def test_two_teachers_need_text_caches(world):
    world.images("images_b", teacher="b", dim=6)
    both = [str(world.root / name) for name in ("images", "images_b")]
    with pytest.raises(DimefmError, match="--image-cache names 2 caches and --text-cache none"):
        run(world, world.text_recipe(per_row=1, image_cache=both))


def test_a_tower_without_text_is_refused(world):
    path = world.root / "blind.json"
    path.write_text(
        json.dumps(
            {
                "embed_dim": 8,
                "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8},
            }
        )
    )
    with pytest.raises(DimefmError, match="has no text tower"):
        run(world, world.text_recipe(per_row=1, text=f"student:{path}"))


@pytest.mark.parametrize("text_cfg", [{"width": -3}, {"layers": 1, "width": 10, "heads": 3}])
def test_an_impossible_tower_is_refused(world, text_cfg):
    config = json.loads(world.tiny.read_text()) | {"text_cfg": text_cfg}
    path = world.root / "broken.json"
    path.write_text(json.dumps(config))
    with pytest.raises(
        DimefmError,
        match=r"text tower cannot be built|cannot encode a sentence|expected greater than",
    ):
        run(world, world.text_recipe(per_row=1, text=f"student:{path}"))


@given(st.lists(st.text("ab", min_size=1), min_size=1), st.floats(0, 0.99), st.integers(0, 2**62))
def test_a_thinned_sentence_keeps_the_order_and_at_least_one_of_its_words(words, share, seed):
    sentence = " ".join(words)
    found = drop_words(sentence, share, seed)
    left = iter(words)
    assert found
    assert all(word in left for word in found.split())
    assert found == drop_words(sentence, share, seed)


def test_the_share_of_words_left_out_is_as_asked():
    words = " ".join(map(str, range(1000)))
    kept = [len(drop_words(words, 0.3, seed).split()) for seed in range(20)]
    assert abs(np.mean(kept) - 700) < 15
    assert drop_words(words, 0.0, 1) == words


def test_words_are_left_out_anew_each_time(world):
    load = run(world, world.text_recipe(per_row=1, word_dropout=0.5, batch_size=17)).task.batches
    lengths = [(load(number).tokens > 0).sum(1) for number in range(2)]
    assert len(set(lengths[0].tolist())) > 1
    assert not torch.equal(*lengths)


def test_images_of_a_teacher_that_nobody_knows_how_to_prepare_are_refused(world):
    tower = load_tower(train(world.text_recipe(per_row=1, steps=1), world.root / "run", echo=quiet))
    with pytest.raises(
        DimefmError,
        match="how its teacher prepares images is not known, .* encode images with the teacher",
    ):
        Images(tower, Settings())

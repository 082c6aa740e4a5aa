"""Batches: pure functions of (seed, number), whose images, features and sentences belong
together.
"""

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dimefm.errors import DataError, RecipeError
from dimefm.models import open_clip
from dimefm.models.preprocess import decoder
from dimefm.recipe import read
from dimefm.train.distributed import DistributedContext
from dimefm.train.inputs.image_batches import Batches, prefetch
from dimefm.train.inputs.sources import open_sources
from dimefm.train.inputs.student_views import StudentTransform
from dimefm.train.student import Student
from dimefm.train.trainer import train

ROWS, TEXTS = 17, 9


def batches(world, recipe, tokenizer=None, size=16):
    return Batches(open_sources(recipe, world.root / "out"), recipe, size, tokenizer)


def words(sentences):
    """A tokenizer that keeps what it was given: one row of code points a sentence."""
    return torch.tensor([[ord(c) for c in s.ljust(60)[:60]] for s in sentences])


def sentences_of(tokens):
    return ["".join(map(chr, row)).rstrip() for row in tokens.tolist()]


def equal(ours, theirs):
    ours, theirs = (
        (batch.pixels, *batch.same_modality, *batch.other_modality, batch.tokens, batch.bad)
        for batch in (ours, theirs)
    )
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_a_batch_is_a_pure_function_of_seed_and_number(world):
    load = batches(world, world.recipe())
    first = [load(number) for number in range(5)]
    again = batches(world, world.recipe())
    assert all(equal(again(number), first[number]) for number in (4, 0, 2, 3, 1))
    other = batches(world, world.recipe(seed=1))
    assert not equal(other(0), first[0])


@pytest.mark.parametrize("workers", [1, 4])
def test_threads_do_not_change_the_batches_or_their_order(world, workers):
    load = batches(world, world.recipe())
    found = list(prefetch(load, iter(range(8)), workers))
    assert all(equal(batch, load(number)) for number, batch in enumerate(found))
    assert len(found) == 8


def test_every_image_meets_its_own_feature_and_every_row_comes_once_an_epoch(world):
    load = batches(world, world.recipe(batch_size=ROWS))
    for number in range(2):
        batch = load(number)
        pixels = world.numbers_of_pixels(batch.pixels)
        assert pixels == world.numbers_of_features(batch.same_modality[0])
        assert sorted(pixels) == list(range(ROWS))


def test_rows_that_extraction_quarantined_are_left_out_on_both_sides(world, make_world):
    root = world.root / "holes"
    root.mkdir()
    holes = make_world(root)
    gone = {0, 3, 4, 9, 10, 16}
    for folder in ("images",):
        (root / folder).rename(root / "whole")
    holes.cache(
        "images", "image", list(zip(holes.names, holes.shards, strict=True)), quarantined=gone
    )
    load = batches(holes, holes.recipe(batch_size=ROWS - len(gone)))
    for number in range(2):
        batch = load(number)
        assert holes.numbers_of_pixels(batch.pixels) == holes.numbers_of_features(
            batch.same_modality[0]
        )
        assert set(holes.numbers_of_pixels(batch.pixels)) == set(range(ROWS)) - gone
        assert batch.bad == []


def test_rows_that_have_become_unreadable_are_left_out_and_recorded(world):
    world.write_images(broken={2, 12})
    batch = batches(world, world.recipe(batch_size=ROWS))(0)
    assert world.numbers_of_pixels(batch.pixels) == world.numbers_of_features(
        batch.same_modality[0][batch.places]
    )
    assert set(world.numbers_of_pixels(batch.pixels)) == set(range(ROWS)) - {2, 12}
    assert sorted((bad["source"], bad["row"]) for bad in batch.bad) == [
        ("image_0.tsv", 2),
        ("image_1.tsv", 2),
    ]
    assert all("not an image" in bad["reason"] for bad in batch.bad)


def test_a_run_lists_the_rows_that_it_left_out(world):
    world.write_images(broken={2})
    out = train(
        world.recipe(batch_size=ROWS, steps=2, log_every=2),
        world.root / "run",
        echo=lambda line: None,
    )
    listed = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    assert [(row["source"], row["row"]) for row in listed] == [("image_0.tsv", 2)] * 2
    assert json.loads((out / "log.jsonl").read_text())["bad_rows"] == 2


def test_a_batch_without_one_readable_row_is_an_error(world):
    world.write_images(broken=set(range(ROWS)))
    with pytest.raises(
        DataError, match="step 1: none of its 5 rows can be read; the first: .*not an image"
    ):
        train(world.recipe(), world.root / "run", echo=lambda line: None)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_share_the_places_of_a_batch_and_see_the_same_features(world, size):
    world.write_images(broken={4})
    recipe = world.recipe(batch_size=ROWS)
    whole = batches(world, recipe)(1)
    parts = [
        Batches(
            open_sources(recipe, world.root),
            recipe,
            16,
            None,
            DistributedContext(rank, size).places(ROWS),
        )
        for rank in range(size)
    ]
    found = [part(1) for part in parts]
    assert np.array_equal(np.concatenate([batch.places for batch in found]), whole.places)
    assert torch.equal(torch.cat([batch.pixels for batch in found]), whole.pixels)
    assert [row for batch in found for row in batch.bad] == whole.bad
    assert all(
        torch.equal(batch.same_modality[0], whole.same_modality[0])
        and torch.equal(batch.other_modality[0], whole.other_modality[0])
        for batch in found
    )
    assert max(len(batch) for batch in found) - min(len(batch) for batch in found) <= 2


@pytest.mark.parametrize(("asked", "rows"), [(None, 5), (2, 2), (TEXTS, TEXTS), (20, 20)])
def test_texts_per_step(world, asked, rows):
    batch = batches(world, world.recipe(texts_per_step=asked))(1)
    assert batch.other_modality[0].shape == (rows, 8)
    assert batch.pixels.shape == (5, 16, 16, 3)


def test_sentences_are_dealt_without_replacement(world):
    load = batches(world, world.recipe(batch_size=3, texts_per_step=3))
    texts = [world.numbers_of_features(load(number).other_modality[0]) for number in range(3)]
    assert sorted(sum(texts, [])) == list(range(TEXTS))


def test_sentences_and_images_are_dealt_independently(world):
    """With equal counts a shared order would pair row i with row i for ever."""
    (world.root / "texts").rename(world.root / "few")
    world.cache("texts", "text", [("sentences.txt", ROWS)])
    batch = batches(world, world.recipe(batch_size=ROWS))(0)
    assert sorted(world.numbers_of_features(batch.other_modality[0])) == list(range(ROWS))
    assert world.numbers_of_features(batch.other_modality[0]) != world.numbers_of_pixels(
        batch.pixels
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.sampled_from([16, 32, 33]),
    seed=st.integers(0, 99),
)
@example(width=35, height=32, size=32, seed=0)  # half a pixel on each side
@example(width=32, height=39, size=32, seed=0)
def test_the_centre_view_equals_the_preprocessing_of_evaluation(width, height, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file, preprocess = io.BytesIO(), open_clip.default_preprocess(size)
    Image.fromarray(pixels).save(file, "PNG")
    ours = StudentTransform.from_recipe(read(None, crops="center"), None, size)(
        file.getvalue(), "", 0, 0
    )
    seen = Student(Seen(), preprocess).images(torch.from_numpy(ours.copy())[None])["image"][0]
    turbo = decoder("turbo", preprocess)
    expected = turbo.finish(turbo(file.getvalue())[None], torch.device("cpu"))[0]
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


class Seen(torch.nn.Module):
    """A model that gives back what it was shown."""

    def encode_image(self, pixels):
        return pixels


def test_the_centre_view_is_what_a_recipe_gets(world):
    recipe = world.recipe(crops="center", batch_size=1)
    pixels = batches(world, recipe)(0).pixels
    row = open_sources(recipe, world.root).raw[world.numbers_of_pixels(pixels)[0]]
    np.testing.assert_array_equal(
        pixels[0], StudentTransform.from_recipe(recipe, None, 16)(row.image, row.key, 0, 0)
    )


def test_texts_per_step_of_pairs_are_refused(world):
    recipe = world.clip_recipe(
        images=[str(world.pairs(["a", "b", "c", "d"]))], batch_size=4, texts_per_step=2
    )
    with pytest.raises(RecipeError, match="a pair has its own sentence. Fix: remove it"):
        open_sources(recipe, world.root)


def test_pairs_keep_their_sentences(world):
    captions = [f"picture of number {n}" for n in range(8)]
    recipe = world.clip_recipe(images=[str(world.pairs(captions))], batch_size=8)
    batch = batches(world, recipe, words)(0)
    assert sentences_of(batch.tokens) == [
        captions[n] for n in world.numbers_of_pixels(batch.pixels)
    ]
    assert batch.same_modality == batch.other_modality == ()


def test_a_pair_without_a_sentence_is_left_out_and_recorded(world):
    captions = ["one", "  ", "three", "four"]
    recipe = world.clip_recipe(images=[str(world.pairs(captions))], batch_size=4)
    batch = batches(world, recipe, words)(0)
    assert sorted(sentences_of(batch.tokens)) == ["four", "one", "three"]
    assert [bad["row"] for bad in batch.bad] == [1]


def labelled(world, labels):
    """Write images with class numbers as Parquet beside class names and templates; return the
    file.
    """
    import io

    images = []
    for number in range(len(labels)):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (number, 255 - number, 7)).save(file, "png")
        images.append(file.getvalue())
    folder = world.root / "shapes"
    folder.mkdir()
    (folder / "classnames.txt").write_text("red square\nblue disc\ngreen star\n")
    (folder / "templates.txt").write_text("a photo of a {}.\nthe {c}.\n")
    pq.write_table(pa.table({"image": images, "label": labels}), folder / "train.parquet")
    return folder / "train.parquet"


def test_labels_become_prompts_of_their_class(world):
    labels, names = [0, 1, 2, 2, 1, 0, 1], ["red square", "blue disc", "green star"]
    recipe = world.clip_recipe(
        images=[str(labelled(world, labels))], captions="label", batch_size=len(labels)
    )
    load = batches(world, recipe, words)
    seen = set()
    for number in range(4):
        batch = load(number)
        for sentence, row in zip(
            sentences_of(batch.tokens), world.numbers_of_pixels(batch.pixels), strict=True
        ):
            assert sentence in (f"a photo of a {names[labels[row]]}.", f"the {names[labels[row]]}.")
            seen.add(sentence)
    assert len(seen) == 6


def test_labels_are_not_used_unless_asked_for(world):
    recipe = world.clip_recipe(images=[str(labelled(world, [0, 1]))], captions="text", batch_size=2)
    assert [bad["reason"] for bad in batches(world, recipe, words)(0).bad] == [
        "has no sentence to pair its image with"
    ] * 2


def test_a_value_that_is_not_base64_is_a_bad_row(world):
    lines = (world.root / "image_0.tsv").read_text().splitlines()
    lines[1] = "k1\t!!!"
    (world.root / "image_0.tsv").write_text("\n".join(lines) + "\n")
    assert base64.b64decode(lines[0].split("\t")[1])
    batch = batches(world, world.recipe(batch_size=ROWS))(0)
    assert [(bad["row"], "base64" in bad["reason"]) for bad in batch.bad] == [(1, True)]

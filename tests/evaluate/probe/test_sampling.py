"""Subsets and splits equal the toolkit's, image by image."""

import re
from pathlib import Path

import numpy as np
import pytest

from dimefm.errors import DataError
from dimefm.evaluate.probe.sampling import sample_few_shot_subset, split_train_val

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "elevater_golden.npz")
SUBSETS = [key for key in GOLDEN.files if re.fullmatch(r"fs_m[cl]_\dshot_seed\d", key)]
KINDS = {"mc": "one label an image", "ml": "several"}


@pytest.mark.parametrize("key", SUBSETS)
def test_subsets_equal_the_toolkit(key):
    _, kind, shots, seed = key.split("_")
    found = sample_few_shot_subset(GOLDEN[f"fs_{kind}_labels"], int(shots[0]), int(seed[-1]))
    assert found.tolist() == GOLDEN[key].tolist()


def test_all_subsets_are_compared():
    assert len(SUBSETS) == 18


@pytest.mark.parametrize("kind", KINDS)
def test_splits_equal_the_toolkit(kind):
    train, val = split_train_val(GOLDEN[f"fs_{kind}_labels"])
    assert train.tolist() == GOLDEN[f"split_{kind}_train"].tolist()
    assert val.tolist() == GOLDEN[f"split_{kind}_val"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_takes_every_image_once(kind):
    labels = GOLDEN[f"fs_{kind}_labels"]
    both = np.concatenate(split_train_val(labels))
    assert sorted(both) == list(range(len(labels)))


def test_a_class_with_few_images_gives_all_of_them():
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    taken = sample_few_shot_subset(labels, 3, seed=0)
    assert np.bincount(labels[taken]).tolist() == [3, 1, 2]


def test_images_without_a_label_are_not_taken():
    labels = np.array([[0, 0], [1, 0], [0, 0], [0, 1]])
    assert sorted(sample_few_shot_subset(labels, 1, seed=0)) == [1, 3]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sample_few_shot_subset(np.zeros(3, int), 0, 0), "0 images per class"),
        (lambda: sample_few_shot_subset(np.zeros(0, int), 5, 0), r"found shape \(0,\)"),
        (lambda: split_train_val(np.zeros((0, 4), int)), r"found shape \(0, 4\)"),
    ],
)
def test_refuses_what_cannot_be_sampled(call, words):
    with pytest.raises(DataError, match=words):
        call()

"""Iris and COCO indices over zips and files: labels by name, and no path that leads outside."""

import json
import pickle
import zipfile

import numpy as np
import pytest

from dimefm.errors import BadRow, DataError
from dimefm.evaluate.benchmark import load
from dimefm.evaluate.datasets.layouts import find
from tests.evaluate.datasets import SHUFFLED, USUAL, image, level, only, truth, write


def vision_datasets(folder, names, lines=None):
    """Write an Iris index of one image per name, the first half in a zip, the rest as files."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as file:
        for i in range(5):
            file.writestr(f"in/{i}.png", image(10 * i))
    for i in range(5, len(names)):
        write(folder / f"out/{i} b.png", image(10 * i))
    paths = [f"images.zip@in/{i}.png" if i < 5 else f"out/{i} b.png" for i in range(len(names))]
    lines = lines or [f"{path} {i}" for i, path in enumerate(paths)]
    write(folder / "test_images.txt", "\n".join(lines))
    write(folder / "labels.txt", "\n".join(names))
    return paths


@pytest.mark.parametrize("place", ["classification/cifar_10_20211007", "cifar-10_20211007"])
def test_iris_index_maps_by_its_label_names(tmp_path, place):
    paths = vision_datasets(tmp_path / place, SHUFFLED)
    dataset = only(tmp_path)
    rows, labels, _ = dataset.rows()
    assert dataset.layout == "vision-datasets" and dataset.benchmark.name == "cifar-10"
    assert rows.shards[0].keys() == paths
    assert [row.label for row in rows] == labels.tolist()
    truth(pickle.loads(pickle.dumps(rows)), labels, USUAL)


def test_iris_label_names_that_the_card_words_otherwise_stand_by_their_number(tmp_path):
    names = [f"sign {i}" for i in range(43)]
    vision_datasets(tmp_path / "gtsrb", names)
    assert only(tmp_path).rows()[1].tolist() == list(range(43))
    write(tmp_path / "gtsrb/labels.txt", "\n".join(["stop", *names[1:]]))
    with pytest.raises(DataError, match="42 class names are not among the 43 known"):
        find(tmp_path)


def test_multi_label_iris(tmp_path):
    folder = tmp_path / "voc2007_20211007"
    vision_datasets(
        folder,
        load("voc-2007-classification").classes,
        ["images.zip@in/0.png 0,19", "images.zip@in/1.png 4"],
    )
    _, labels, _ = only(tmp_path).rows()
    assert [np.flatnonzero(row).tolist() for row in labels] == [[0, 19], [4]]


def test_coco_index(tmp_path):
    folder = tmp_path / "cifar10"
    vision_datasets(folder, SHUFFLED)
    (folder / "test_images.txt").unlink()
    index = {
        "images": [
            {"id": 7 + i, "file_name": f"in/{i}.png", "zip_file": "images.zip"} for i in range(3)
        ],
        "annotations": [{"image_id": 7 + i, "category_id": 9 - i} for i in range(3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(SHUFFLED)],
    }
    write(folder / "test_meta.json", json.dumps(index))
    rows, labels, _ = only(tmp_path).rows()
    truth(rows, labels, [USUAL[9], USUAL[8], USUAL[7]])
    write(folder / "test_meta.json", json.dumps({"images": [{}]}))
    with pytest.raises(DataError, match="not a COCO index"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["images.zip@in/0.png 0", "no label here"], "line 2: expected '<path> <label"),
        (["images.zip@in/0.png 0,1"], "has 2 labels, cifar-10 has one"),
        (["images.zip@in/0.png 10"], "label 10 lies outside"),
        (["absent.zip@in/0.png 0"], "absent.zip, which is not in"),
        (["../../secret.zip@in/0.png 0"], "leads outside"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, lines, words):
    vision_datasets(tmp_path / "cifar10", SHUFFLED, lines)
    with pytest.raises(DataError, match=words):
        find(tmp_path)


def test_unreadable_rows_of_an_index_are_bad_rows(tmp_path):
    lines = ["images.zip@in/absent.png 0", "absent.png 1", "images.zip@in/1.png 2"]
    vision_datasets(tmp_path / "cifar10", SHUFFLED, lines)
    rows, labels, _ = only(tmp_path).rows()
    assert len(rows) == len(labels) == 3
    for i, words in enumerate(["has no member in/absent.png", "cannot be read"]):
        with pytest.raises(BadRow, match=words):
            rows[i]
    assert level(rows[2]) == 10


def test_a_path_in_an_index_may_not_leave_the_dataset(tmp_path):
    write(tmp_path / "secret.png", image(0))
    vision_datasets(tmp_path / "root/cifar10", SHUFFLED, ["../../secret.png 0"])
    rows, _, _ = only(tmp_path / "root").rows()
    with pytest.raises(DataError, match="leads outside"):
        rows[0]

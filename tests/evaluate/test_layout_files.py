"""Class folders, Parquet and tars: real small images get their labels by name, or by number where
there is no name.
"""

import io

import numpy as np
import pytest

from dimefm.errors import DataError
from dimefm.evaluate.datasets.layouts import find
from tests.evaluate.datasets import (
    CIFAR,
    SHUFFLED,
    USUAL,
    image,
    level,
    only,
    parquet,
    tar,
    truth,
    write,
)


@pytest.mark.parametrize("inside", ["test/", ""])
def test_image_folders_map_by_name(tmp_path, inside):
    for i, name in enumerate(SHUFFLED):
        write(tmp_path / f"cifar10/{inside}{name}/x{i}.png", image(10 * i))
    dataset = only(tmp_path)
    rows, labels, names = dataset.rows()
    assert dataset.layout == "imagefolder" and names == list(CIFAR) and labels.dtype == np.int64
    truth(rows, labels, USUAL)
    assert dataset.note.startswith("10 of 10000 test images: split differs")
    assert ("every image is taken" in dataset.note) == (inside == "")


def test_number_folders_sort_as_numbers(tmp_path):
    for i in (0, 1, 2, 10, 42):
        write(tmp_path / f"gtsrb/test/{i}/x.png", image(i))
    rows, labels, _ = only(tmp_path).rows()
    assert {level(row): int(label) for row, label in zip(rows, labels, strict=True)} == {
        i: i for i in (0, 1, 2, 10, 42)
    }
    assert "by number" in only(tmp_path).note


def test_number_folders_may_count_from_one(tmp_path):
    for i in (1, 2, 102):
        write(tmp_path / f"flowers/test/{i}/x.png", image(i))
    rows, labels, _ = only(tmp_path).rows()
    assert {level(row): int(label) for row, label in zip(rows, labels, strict=True)} == {
        1: 0,
        2: 1,
        102: 101,
    }


def test_unknown_class_folders_are_named(tmp_path):
    write(tmp_path / "cifar10/test/cat/x.png", image(0))
    write(tmp_path / "cifar10/test/zebra/x.png", image(0))
    with pytest.raises(
        DataError, match="1 class names are not among the 10 known: 'zebra'.*classnames.txt"
    ):
        find(tmp_path)


def test_two_folders_of_one_class_are_refused(tmp_path):
    for name in ("car", "automobile"):
        write(tmp_path / f"cifar10/test/{name}/x.png", image(0))
    with pytest.raises(DataError, match="not the only name of its class"):
        find(tmp_path)


def test_an_image_outside_the_class_folders_is_refused(tmp_path):
    write(tmp_path / "cifar10/test/cat/x.png", image(0))
    write(tmp_path / "cifar10/test/stray.png", image(0))
    with pytest.raises(DataError, match="stray.png: an image outside"):
        find(tmp_path)


def test_class_folders_without_splits_are_no_training_set(tmp_path):
    write(tmp_path / "cifar10/cat/x.png", image(0))
    with pytest.raises(DataError, match="no train split.*splits found: test"):
        only(tmp_path).rows("train")


@pytest.mark.parametrize(
    "place", ["test.parquet", "test-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]
)
def test_hugging_face_parquet_maps_by_its_names(tmp_path, place):
    images = [{"bytes": image(10 * i), "path": f"{i}.png"} for i in range(10)]
    parquet(tmp_path / "cifar10" / place, {"image": images, "label": list(range(10))}, SHUFFLED)
    dataset = only(tmp_path)
    rows, labels, _ = dataset.rows()
    assert dataset.layout == "parquet"
    truth(rows, labels, USUAL)


def test_parquet_numbers_are_lines_of_classnames(tmp_path):
    parquet(
        tmp_path / "cifar10/test.parquet",
        {"key": ["a", "b"], "image": [image(0), image(10)], "label": [1, 0]},
    )
    assert "by number in the card's order" in only(tmp_path).note
    assert only(tmp_path).rows()[2] == list(CIFAR)
    write(tmp_path / "cifar10/classnames.txt", "\n".join(SHUFFLED) + "\n")
    rows, labels, names = only(tmp_path).rows()
    assert (
        names == SHUFFLED and labels.tolist() == [1, 0] and [row.key for row in rows] == ["a", "b"]
    )
    assert "by number" not in only(tmp_path).note


def test_own_names_may_rename_hugging_face_classes_in_their_order(tmp_path):
    columns = {"image": [image(0), image(10)], "label": [1, 0]}
    parquet(tmp_path / "pond/test.parquet", columns, ["n01", "n02"])
    write(tmp_path / "pond/classnames.txt", "frog\nnewt")
    assert only(tmp_path, names=["pond"]).rows()[1].tolist() == [1, 0]
    parquet(tmp_path / "pond/test.parquet", columns, ["n01", "frog"])
    with pytest.raises(DataError, match="'n01'"):
        find(tmp_path, ["pond"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([-1, 0], "label -1 lies outside 0..9"),
        ([10, 0], "label 10"),
        ([None, 0], "row 0.*found None"),
        ([0.5, 1.0], "0.5"),
    ],
)
def test_parquet_labels_out_of_range_are_refused(tmp_path, labels, words):
    parquet(tmp_path / "cifar10/test.parquet", {"image": [image(0)] * 2, "label": labels})
    with pytest.raises(DataError, match=words):
        find(tmp_path)


def test_parquet_without_labels_names_what_it_has(tmp_path):
    parquet(tmp_path / "cifar10/test.parquet", {"image": [image(0)], "caption": ["x"]})
    with pytest.raises(DataError, match="no label column; expected label.*found.*caption"):
        find(tmp_path)


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_files_that_programs_leave_are_no_shards(tmp_path, ending):
    if ending == "tar":
        tar(tmp_path / "cifar10/test/0.tar", {"a.png": image(0), "a.cls": b"1"})
    else:
        parquet(tmp_path / "cifar10/test/0.parquet", {"image": [image(0)], "label": [1]})
    write(tmp_path / f"cifar10/test/._0.{ending}", b"\0\5\x16\7")
    assert only(tmp_path).rows()[1].tolist() == [1]


def test_files_of_one_split_have_their_labels_in_one_column(tmp_path):
    parquet(tmp_path / "cifar10/test-0.parquet", {"image": [image(0)], "label": [1]})
    parquet(tmp_path / "cifar10/test-1.parquet", {"image": [image(0)], "cls": [1]})
    with pytest.raises(DataError, match="test-1.parquet: labels are in column 'cls'"):
        find(tmp_path)


@pytest.mark.parametrize("place", ["test.tar", "test-0.tar", "test/0.tar"])
def test_tar_labels_may_be_names(tmp_path, place):
    members = {}
    for i, name in enumerate(SHUFFLED):
        members |= {f"{i}.jpg": image(10 * i + 4, "jpg"), f"{i}.cls": name.encode()}
    tar(tmp_path / "wds_cifar10" / place, members)
    dataset = only(tmp_path)
    rows, labels, _ = dataset.rows()
    assert dataset.layout == "webdataset"
    truth(rows, labels, USUAL)


def test_tars_stand_in_the_order_of_their_numbers(tmp_path):
    for i in (0, 2, 10):
        tar(
            tmp_path / f"cifar10/test/{i}.tar",
            {f"k{i}.png": image(i), f"k{i}.cls": str(i % 10).encode()},
        )
    rows, labels, _ = only(tmp_path).rows()
    assert [row.key for row in rows] == ["k0", "k2", "k10"] and labels.tolist() == [0, 2, 0]


def test_multi_label_tar(tmp_path):
    marks = np.zeros((2, 20), dtype=np.int64)
    marks[0, [3, 7]] = marks[1, 19] = 1
    members = {}
    for i, row in enumerate(marks):
        file = io.BytesIO()
        np.save(file, row)
        members |= {f"{i}.jpg": image(0, "jpg"), f"{i}.npy": file.getvalue()}
    tar(tmp_path / "voc2007/test.tar", members)
    rows, labels, names = only(tmp_path).rows()
    np.testing.assert_array_equal(labels, marks)
    assert len(rows) == 2 and len(names) == 20
    assert "3 of 20 classes" in only(tmp_path).note


def test_pickled_labels_are_never_loaded(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([object()]), allow_pickle=True)
    tar(tmp_path / "voc2007/test.tar", {"a.jpg": image(0), "a.npy": file.getvalue()})
    with pytest.raises(DataError, match="a.npy: not a plain .npy array"):
        find(tmp_path)


def test_tar_without_a_label_names_the_key(tmp_path):
    tar(tmp_path / "cifar10/test.tar", {"a.png": image(0), "a.cls": b"1", "b.png": image(0)})
    with pytest.raises(DataError, match="b has no .cls label; found: png"):
        find(tmp_path)

"""Every layout, with real small images whose class order is shuffled, so that only matching by name can be right."""

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dimefm.errors import BadRow, DataError
from dimefm.eval.benchmark import for_folder, load, prompts, suite
from dimefm.eval.layouts import LAYOUTS, Dataset, find

CIFAR = load("cifar-10").classes
SHUFFLED = ["truck", "Cat", "air_plane", "ship", "bird", "deer", "DOG", "frog", "horse", "car"]
SHARED = (Path(__file__).parents[2] / "../shared/data").resolve()


def image(value, kind="png"):
    """Return an encoded image whose gray level tells which row it is."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "JPEG" if kind == "jpg" else kind.upper())
    return file.getvalue()


def level(row):
    return Image.open(io.BytesIO(row.image)).getpixel((4, 4))[0]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))


def parquet(path, columns, names=None, column="label"):
    table = pa.table(columns)
    if names is not None:
        feature = {"names": names, "_type": "ClassLabel"}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {column: feature}}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def only(root, **options):
    datasets, _ = find(root, **options)
    (dataset,) = datasets
    return dataset


def truth(rows, labels, expected):
    """Check that the image with gray level 10 * i has class name ``expected[i]``, whatever order the rows come in."""
    found = {level(row) // 10: CIFAR[label] for row, label in zip(rows, labels, strict=True)}
    assert found == dict(enumerate(expected))


USUAL = ["truck", "cat", "airplane", "ship", "bird", "deer", "dog", "frog", "horse", "automobile"]


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
    assert {level(row): int(label) for row, label in zip(rows, labels, strict=True)} == {i: i for i in (0, 1, 2, 10, 42)}
    assert "by number" in only(tmp_path).note


def test_number_folders_may_count_from_one(tmp_path):
    for i in (1, 2, 102):
        write(tmp_path / f"flowers/test/{i}/x.png", image(i))
    rows, labels, _ = only(tmp_path).rows()
    assert {level(row): int(label) for row, label in zip(rows, labels, strict=True)} == {1: 0, 2: 1, 102: 101}


def test_unknown_class_folders_are_named(tmp_path):
    write(tmp_path / "cifar10/test/cat/x.png", image(0))
    write(tmp_path / "cifar10/test/zebra/x.png", image(0))
    with pytest.raises(DataError, match="1 class names are not among the 10 known: 'zebra'.*classnames.txt"):
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


@pytest.mark.parametrize("place", ["test.parquet", "test-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"])
def test_hugging_face_parquet_maps_by_its_names(tmp_path, place):
    images = [{"bytes": image(10 * i), "path": f"{i}.png"} for i in range(10)]
    parquet(tmp_path / "cifar10" / place, {"image": images, "label": list(range(10))}, SHUFFLED)
    dataset = only(tmp_path)
    rows, labels, _ = dataset.rows()
    assert dataset.layout == "parquet"
    truth(rows, labels, USUAL)


def test_parquet_numbers_are_lines_of_classnames(tmp_path):
    parquet(tmp_path / "cifar10/test.parquet", {"key": ["a", "b"], "image": [image(0), image(10)], "label": [1, 0]})
    assert "by number in the card's order" in only(tmp_path).note
    assert only(tmp_path).rows()[2] == list(CIFAR)
    write(tmp_path / "cifar10/classnames.txt", "\n".join(SHUFFLED) + "\n")
    rows, labels, names = only(tmp_path).rows()
    assert names == SHUFFLED and labels.tolist() == [1, 0] and [row.key for row in rows] == ["a", "b"]
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
        tar(tmp_path / f"cifar10/test/{i}.tar", {f"k{i}.png": image(i), f"k{i}.cls": str(i % 10).encode()})
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
    vision_datasets(folder, load("voc-2007-classification").classes, ["images.zip@in/0.png 0,19", "images.zip@in/1.png 4"])
    _, labels, _ = only(tmp_path).rows()
    assert [np.flatnonzero(row).tolist() for row in labels] == [[0, 19], [4]]


def test_coco_index(tmp_path):
    folder = tmp_path / "cifar10"
    vision_datasets(folder, SHUFFLED)
    (folder / "test_images.txt").unlink()
    index = {
        "images": [{"id": 7 + i, "file_name": f"in/{i}.png", "zip_file": "images.zip"} for i in range(3)],
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


def test_links_out_of_the_root_are_refused(tmp_path):
    parquet(tmp_path / "elsewhere/test.parquet", {"image": [image(0)], "label": [0]})
    (tmp_path / "one").mkdir()
    (tmp_path / "one/cifar10").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "two/cifar10").mkdir(parents=True)
    (tmp_path / "two/cifar10/test.parquet").symlink_to(tmp_path / "elsewhere/test.parquet")
    for root in ("one", "two"):
        with pytest.raises(DataError, match=f"leads outside {tmp_path / root}; put the dataset itself there"):
            find(tmp_path / root)


def test_a_set_that_cannot_be_read_may_be_left_out_with_its_reason(tmp_path):
    write(tmp_path / "cifar10/test/cat/x.png", image(0))
    write(tmp_path / "dtd/test/zebra skin/x.png", image(0))
    failed = []
    datasets, missing = find(tmp_path, on_failure=lambda *each: failed.append(each))
    assert [dataset.benchmark.name for dataset in datasets] == ["cifar-10"]
    assert len(missing) == 18 and "dtd" not in missing
    ((name, error),) = failed
    assert name == "dtd" and "'zebra skin'" in str(error)
    with pytest.raises(DataError, match="zebra skin"):
        find(tmp_path)


def test_missing_sets_are_listed_and_folders_without_a_card_are_left(tmp_path):
    write(tmp_path / "cifar10/test/cat/x.png", image(0))
    write(tmp_path / "holiday/test/cat/x.png", image(0))
    datasets, missing = find(tmp_path)
    assert [dataset.benchmark.name for dataset in datasets] == ["cifar-10"]
    assert missing == [name for name in suite() if name != "cifar-10"]
    assert find(tmp_path, ["mnist", "CIFAR_10"])[1] == ["mnist"]


def test_a_folder_of_ones_own_needs_class_names(tmp_path):
    write(tmp_path / "holiday/test/sea side/x.png", image(0))
    with pytest.raises(DataError, match="there is no classnames.txt; rename the folder, or add"):
        find(tmp_path, ["holiday"])
    write(tmp_path / "holiday/classnames.txt", "mountains\nsea-side\n")
    dataset = only(tmp_path, names=["holiday"])
    assert dataset.rows()[1].tolist() == [1]
    assert dataset.benchmark.metric == "accuracy" and dataset.note == "no card: 2 classes, 1 test images"
    assert prompts(dataset.benchmark) == [["a photo of a mountains."], ["a photo of a sea-side."]]
    write(tmp_path / "holiday/zeroshot_classification_templates.txt", "my {c}, again\nour {}")
    assert prompts(for_folder(tmp_path / "holiday"))[0] == ["my mountains, again", "our mountains"]
    write(tmp_path / "holiday/templates.txt", "no place")
    with pytest.raises(DataError, match="'no place' has no place for the class name"):
        find(tmp_path, ["holiday"])


@pytest.mark.parametrize(
    ("text", "words"), [(b"a\n\nb", "line 2: blank"), (b"", "line 1: blank"), (b"\xff\xfe", "not UTF-8")]
)
def test_bad_class_files_are_refused(tmp_path, text, words):
    write(tmp_path / "holiday/classnames.txt", text)
    with pytest.raises(DataError, match=words):
        for_folder(tmp_path / "holiday")


def test_unknown_names_and_layouts_get_a_suggestion(tmp_path):
    with pytest.raises(DataError, match="did you mean 'cifar-10'"):
        find(tmp_path, ["cifar-1O"])
    with pytest.raises(DataError, match="did you mean 'parquet'"):
        find(tmp_path, layout="parket")
    with pytest.raises(DataError, match="no such folder"):
        find(tmp_path / "absent")


def test_two_copies_of_one_set_must_be_told_apart(tmp_path):
    for i, name in enumerate(("cifar10", "cifar-10_20211007")):
        write(tmp_path / name / "test/cat/x.png", image(10 * i))
    with pytest.raises(DataError, match="cifar-10 is here 2 times"):
        find(tmp_path)
    assert only(tmp_path, names=["cifar10"]).folder.name == "cifar10"


def test_a_missing_split_says_what_was_looked_for(tmp_path):
    write(tmp_path / "cifar10/train/cat/x.png", image(0))
    dataset = only(tmp_path)
    assert dataset.note == "no test split" and len(dataset.rows("train")[0]) == 1
    with pytest.raises(DataError, match="no test split.*looked for test/<class>/<image>; splits found: train"):
        dataset.rows()
    with pytest.raises(DataError, match="did you mean 'test'"):
        dataset.rows("tset")
    (tmp_path / "mnist").mkdir()
    with pytest.raises(DataError, match="no dataset in a known layout; looked for vision-datasets.*found nothing"):
        find(tmp_path)


def test_class_folders_without_splits_are_no_training_set(tmp_path):
    write(tmp_path / "cifar10/cat/x.png", image(0))
    with pytest.raises(DataError, match="no train split.*splits found: test"):
        only(tmp_path).rows("train")


def test_the_layout_can_be_chosen(tmp_path):
    write(tmp_path / "cifar10/test/cat/x.png", image(0))
    parquet(tmp_path / "cifar10/test.parquet", {"image": [image(0)] * 2, "label": [0, 1]})
    sizes = {name: len(only(tmp_path, layout=name).rows()[0]) for name in ("parquet", "imagefolder")}
    assert sizes == {"parquet": 2, "imagefolder": 1}
    assert only(tmp_path).layout == "parquet" and set(sizes) < set(LAYOUTS)


def test_a_dataset_may_be_made_by_hand(tmp_path):
    write(tmp_path / "x/test/cat/x.png", image(0))
    rows, labels, _ = Dataset(load("cifar-10"), tmp_path / "x", "imagefolder").rows()
    assert len(rows) == 1 and CIFAR[labels[0]] == "cat"


@pytest.mark.skipif(not (SHARED / "classification").is_dir(), reason=f"no real data in {SHARED}")
def test_the_real_data():
    datasets, missing = find(SHARED)
    notes = {dataset.benchmark.name: dataset.note for dataset in datasets}
    assert notes == {
        "caltech-101": "101 of 102 classes; 909 of 6084 test images: split differs",
        "cifar-10": "",
        "mnist": "2000 of 10000 test images: split differs",
    }
    assert len(missing) == 17
    own, _ = find(SHARED / "classification", ["scene15", "sign_digits"])
    assert [(dataset.layout, len(dataset.rows("train")[0])) for dataset in own] == [
        ("parquet", 225),
        ("webdataset", 400),
    ]
    rows, labels, names = own[1].rows()
    assert {int(row.key.split("_")[0]) for row, label in zip(rows, labels, strict=True) if names[label] == "eight"} == {8}

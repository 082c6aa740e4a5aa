"""Which sets a folder holds, in which layout and split: found, missing, told apart, or refused."""

from pathlib import Path

import pytest

from dimefm.errors import DataError
from dimefm.evaluate.benchmark import for_folder, load, prompts, suite
from dimefm.evaluate.datasets.layouts import LAYOUTS, Dataset, find
from tests.evaluate.datasets import CIFAR, image, only, parquet, write

SHARED = (Path(__file__).parents[2] / "../shared/data").resolve()


def test_missing_sets_are_listed_and_folders_without_a_card_are_left(tmp_path):
    write(tmp_path / "cifar10/test/cat/x.png", image(0))
    write(tmp_path / "holiday/test/cat/x.png", image(0))
    datasets, missing = find(tmp_path)
    assert [dataset.benchmark.name for dataset in datasets] == ["cifar-10"]
    assert missing == [name for name in suite() if name != "cifar-10"]
    assert find(tmp_path, ["mnist", "CIFAR_10"])[1] == ["mnist"]


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


def test_a_folder_of_ones_own_needs_class_names(tmp_path):
    parquet(tmp_path / "table/test.parquet", {"image": [image(0)], "label": [0]})
    with pytest.raises(
        DataError, match="there is no classnames.txt. Fix: rename the folder, or add"
    ):
        find(tmp_path, ["table"])
    write(tmp_path / "holiday/test/sea side/x.png", image(0))
    write(tmp_path / "holiday/classnames.txt", "mountains\nsea-side\n")
    dataset = only(tmp_path, names=["holiday"])
    assert dataset.rows()[1].tolist() == [1]
    assert (
        dataset.benchmark.metric == "accuracy"
        and dataset.note == "no card: 2 classes, 1 test images"
    )
    assert prompts(dataset.benchmark) == [["a photo of a mountains."], ["a photo of a sea-side."]]
    write(tmp_path / "holiday/zeroshot_classification_templates.txt", "my {c}, again\nour {}")
    assert prompts(for_folder(tmp_path / "holiday"))[0] == ["my mountains, again", "our mountains"]
    write(tmp_path / "holiday/templates.txt", "no place")
    with pytest.raises(DataError, match="'no place' has no place for the class name"):
        find(tmp_path, ["holiday"])


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"a\n\nb", "line 2: blank"), (b"", "line 1: blank"), (b"\xff\xfe", "not UTF-8")],
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
    with pytest.raises(
        DataError, match="no test split.*looked for test/<class>/<image>; splits found: train"
    ):
        dataset.rows()
    with pytest.raises(DataError, match="did you mean 'test'"):
        dataset.rows("tset")
    (tmp_path / "mnist").mkdir()
    with pytest.raises(
        DataError, match="no dataset in a known layout; looked for vision-datasets.*found nothing"
    ):
        find(tmp_path)


def test_links_out_of_the_root_are_refused(tmp_path):
    parquet(tmp_path / "elsewhere/test.parquet", {"image": [image(0)], "label": [0]})
    (tmp_path / "root/cifar10").mkdir(parents=True)
    (tmp_path / "root/cifar10/test.parquet").symlink_to(tmp_path / "elsewhere/test.parquet")
    with pytest.raises(
        DataError, match=f"leads outside {tmp_path / 'root'}. Fix: put the files themselves there"
    ):
        find(tmp_path / "root")


def test_the_layout_can_be_chosen(tmp_path):
    write(tmp_path / "cifar10/test/cat/x.png", image(0))
    parquet(tmp_path / "cifar10/test.parquet", {"image": [image(0)] * 2, "label": [0, 1]})
    sizes = {
        name: len(only(tmp_path, layout=name).rows()[0]) for name in ("parquet", "imagefolder")
    }
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
    assert {
        int(row.key.split("_")[0])
        for row, label in zip(rows, labels, strict=True)
        if names[label] == "eight"
    } == {8}

"""A folder that is one dataset of one's own: what counts as a class, a split and an image, and what
is refused in one line.
"""

import io
import shutil

import numpy as np
import pytest

from dimefm.errors import DataError
from dimefm.evaluate.benchmark import Benchmark
from dimefm.evaluate.confusions import WrongPair, most_confused, terminal_table
from dimefm.evaluate.datasets.own_folder import Choices, open_folder
from dimefm.evaluate.metrics import METRICS, with_unreadable_as_wrong
from dimefm.evaluate.predictions import Predictions
from tests.evaluate.datasets import image, parquet, tar, write


def holdout(root, classes=("cat", "dog"), *, below="", images=2):
    """Write ``images`` images for each class into a folder, and return it."""
    for number, name in enumerate(classes):
        for row in range(images):
            write(root / below / name / f"{row}.png", image(10 * number + row))
    return root


def names_of(dataset):
    """Return the class name of each image that is scored."""
    _, labels, names = dataset.rows()
    return [names[label] for label in labels]


@pytest.mark.parametrize("below", ["", "test", "val", "valid", "validation"])
def test_class_folders_may_lie_in_a_split(tmp_path, below):
    dataset = open_folder(holdout(tmp_path / "sets", ("sea_side", "dog"), below=below))
    assert names_of(dataset) == ["dog", "dog", "sea side", "sea side"]
    assert dataset.note.startswith("2 classes, 4 images")
    assert ("val split" in dataset.note) == below.startswith("val")


def test_the_test_split_is_scored_before_the_validation_split(tmp_path):
    for below, images in (("train", 5), ("val", 3), ("test", 1)):
        holdout(tmp_path, below=below, images=images)
    assert len(open_folder(tmp_path).rows()[0]) == 2
    assert len(open_folder(tmp_path, Choices(split="train")).rows()[0]) == 10
    shutil.rmtree(tmp_path / "test")
    assert len(open_folder(tmp_path).rows()[0]) == 6


def test_classes_may_be_called_like_splits(tmp_path):
    dataset = open_folder(holdout(tmp_path, ("train", "bus", "test")))
    assert names_of(dataset) == ["bus", "bus", "test", "test", "train", "train"]


def test_the_folder_may_be_called_like_a_card(tmp_path):
    dataset = open_folder(holdout(tmp_path / "cifar-10", ("waffle", "cone")))
    assert dataset.card is None and dataset.benchmark.metric == "accuracy"
    assert dataset.benchmark.classes == ("cone", "waffle")
    assert dataset.benchmark.templates == ("a photo of a {}.",)


def test_the_working_folder_has_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(holdout(tmp_path / "mine"))
    assert open_folder(".").benchmark.name == "mine"


@pytest.mark.parametrize("file", ["test.parquet", "test-00000-of-00001.parquet", "photos.parquet"])
@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([1, 0, 1], ["cat", "dog"], ["dog", "cat", "dog"]),
        (["dog", "cat", "dog"], None, ["dog", "cat", "dog"]),
    ],
)
def test_a_table_states_its_class_names(tmp_path, file, labels, names, expected):
    rows = {"image": [image(0), image(1), image(2)], "label": labels}
    parquet(tmp_path / file, rows, names)
    assert names_of(open_folder(tmp_path)) == expected


@pytest.mark.parametrize("file", ["test.tar", "test/00000.tar", "photos.tar"])
@pytest.mark.parametrize(
    ("marks", "classnames"), [(("dog", "cat"), None), (("1", "0"), "cat\ndog\n")]
)
def test_tars_have_labels_by_name_or_by_line(tmp_path, file, marks, classnames):
    members = {}
    for number, mark in enumerate(marks):
        members[f"{number}.png"] = image(number)
        members[f"{number}.cls"] = mark.encode()
    tar(tmp_path / file, members)
    if classnames:
        write(tmp_path / "classnames.txt", classnames)
    assert names_of(open_folder(tmp_path)) == ["dog", "cat"]


def test_an_index_states_its_class_names(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.png", image(number))
    write(tmp_path / "test.txt", "0.png 1\n1.png 0\n")
    write(tmp_path / "labels.txt", "cat\ndog\n")
    assert names_of(open_folder(tmp_path)) == ["dog", "cat"]


@pytest.mark.parametrize("by_number", [False, True])
def test_class_names_may_be_given(tmp_path, by_number):
    folders = ("0", "1") if by_number else ("Sea-Side", "DOG")
    holdout(tmp_path / "data", folders)
    write(tmp_path / "names.txt", "sea side\ndog\nowl\n")
    dataset = open_folder(tmp_path / "data", Choices(classnames=tmp_path / "names.txt"))
    assert sorted(names_of(dataset)) == ["dog", "dog", "sea side", "sea side"]
    assert "1 classes without images: owl" in dataset.note
    assert "card" not in dataset.note


def test_templates_are_given_before_those_next_to_the_data(tmp_path):
    holdout(tmp_path)
    write(tmp_path / "templates.txt", "beside {}\n")
    write(tmp_path / "given", "given {c}\nagain {}\n")
    templates = [
        open_folder(tmp_path, choices).benchmark.templates
        for choices in (
            None,
            Choices(templates_file=tmp_path / "given"),
            Choices(templates=("one {}", "two {}")),
        )
    ]
    assert templates == [("beside {}",), ("given {}", "again {}"), ("one {}", "two {}")]


@pytest.mark.parametrize(
    "litter",
    [
        ".DS_Store",
        "Thumbs.db",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "cat/._0.png",
        "__MACOSX/cat/._0.png",
        ".hidden/0.png",
        "cat/desktop.ini",
        ".ipynb_checkpoints/0.png",
        "@eaDir/0.png",
    ],
)
@pytest.mark.parametrize("below", ["", "test"])
def test_hidden_files_are_no_images_and_hidden_folders_no_classes(tmp_path, below, litter):
    holdout(tmp_path, below=below)
    write(tmp_path / below / litter, image(99))
    dataset = open_folder(tmp_path)
    assert dataset.benchmark.classes == ("cat", "dog")
    assert names_of(dataset) == ["cat", "cat", "dog", "dog"]
    assert "left out: 1 hidden or of other programs" in dataset.note


def test_folders_and_classes_without_images_are_named(tmp_path):
    holdout(tmp_path, below="test")
    (tmp_path / "test/owl").mkdir()
    write(tmp_path / "train/newt/0.png", image(0))
    note = open_folder(tmp_path).note
    assert "class folders without images: owl" in note
    assert "1 classes without images: newt" in note


def no_folder(root):
    pass


def a_file(root):
    write(root, "x")


def empty(root):
    root.mkdir()


def only_litter(root):
    write(root / ".DS_Store", "x")
    write(root / "__MACOSX/cat/._0.png", image(0))


def only_empty_classes(root):
    (root / "test/cat").mkdir(parents=True)


def no_images(root):
    write(root / "cat.csv", "a,b")


def one_class(root):
    holdout(root, ("cat",))


def images_without_classes(root):
    write(root / "0.png", image(0))


def a_stray_image(root):
    write(holdout(root) / "stray.png", image(0))


def only_training(root):
    holdout(root, below="train")


def an_unknown_class(root):
    write(holdout(root) / "classnames.txt", "cat\nbird\n")


def two_folders_of_a_class(root):
    write(holdout(root, ("sea side", "sea_side", "dog")) / "classnames.txt", "sea side\ndog\n")


def a_class_twice(root):
    write(holdout(root) / "classnames.txt", "cat\ndog\ncat\n")


def a_blank_class(root):
    write(holdout(root) / "classnames.txt", "cat\n\ndog\n")


def labels_without_names(root):
    parquet(root / "test.parquet", {"image": [image(0)] * 2, "label": [0, 1]})


def no_rows(root):
    parquet(root / "test.parquet", {"image": [image(0)] * 0, "label": ["x"] * 0})


def no_rows_but_classes(root):
    no_rows(root)
    write(root / "classnames.txt", "cat\ndog\n")


def no_label_column(root):
    parquet(root / "test.parquet", {"image": [image(0)], "width": [8]})


def several_labels(root):
    parquet(root / "test.parquet", {"image": [image(0)] * 2, "label": [[0, 1], [1]]})
    write(root / "classnames.txt", "cat\ndog\n")


def several_labels_of_an_index(root):
    write(root / "0.png", image(0))
    write(root / "test.txt", "0.png 0,1\n")
    write(root / "labels.txt", "cat\ndog\n")


def several_labels_of_tars(root):
    marks = io.BytesIO()
    np.save(marks, np.array([1, 1]))
    tar(root / "test.tar", {"0.png": image(0), "0.npy": marks.getvalue()})
    write(root / "classnames.txt", "cat\ndog\n")


def a_label_too_high(root):
    parquet(root / "test.parquet", {"image": [image(0)] * 2, "label": [0, 2]})
    write(root / "classnames.txt", "cat\ndog\n")


def no_label(root):
    parquet(root / "test.parquet", {"image": [image(0)] * 2, "label": [0, None]})
    write(root / "classnames.txt", "cat\ndog\n")


@pytest.mark.parametrize(
    ("write_data", "words"),
    [
        (no_folder, "there is no such folder"),
        (a_file, "there is no such folder"),
        (empty, "an empty folder; expected class folders"),
        (only_litter, "an empty folder; expected class folders"),
        (only_empty_classes, r"no class folder holds an image \(cat\)"),
        (no_images, "no dataset; expected CLASS/IMAGE.*found cat.csv"),
        (one_class, r"one class \('cat'\), where two are needed"),
        (images_without_classes, "no dataset; expected CLASS/IMAGE.*found 0.png"),
        (a_stray_image, "stray.png: an image outside the class folders"),
        (only_training, "no test or val split; splits found: train.*--split train"),
        (an_unknown_class, "1 class names are not among the 2 known: 'dog'"),
        (two_folders_of_a_class, "is not the only name of its class"),
        (a_class_twice, "'cat' may be any of the classes 0, 2"),
        (a_blank_class, "line 2: blank"),
        (labels_without_names, "its labels are numbers, and no classnames.txt says"),
        (no_rows, "no image in test.parquet"),
        (no_rows_but_classes, "no image in test.parquet"),
        (no_label_column, "no label column"),
        (several_labels, "expects one class number, found"),
        (several_labels_of_an_index, "0.png has 2 labels"),
        (several_labels_of_tars, "0 has no .cls label; found: png, npy"),
        (a_label_too_high, "label 2 lies outside 0..1"),
        (no_label, "expects one class number, found None"),
    ],
)
def test_what_is_no_dataset_is_one_line(tmp_path, write_data, words):
    write_data(tmp_path / "data")
    with pytest.raises(DataError, match=words) as caught:
        open_folder(tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message and len(message) <= 500
    assert "Fix: " in message


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (Choices(split="tset"), "unknown split 'tset': did you mean 'test'"),
        (Choices(split="train"), "no train split; splits found: test"),
        (Choices(layout="parket"), "unknown layout 'parket': did you mean 'parquet'"),
        (Choices(layout="parquet"), "no dataset"),
        (Choices(metric="acuracy"), "unknown metric 'acuracy': did you mean 'accuracy'"),
        (Choices(metric="map_11_point"), "has several labels an image, class folders one"),
        (Choices(templates=("no place",)), "'no place' has no place for the class name"),
    ],
)
def test_choices_that_do_not_fit_are_refused(tmp_path, choices, words):
    with pytest.raises(DataError, match=words):
        open_folder(holdout(tmp_path), choices)


def test_files_that_are_named_must_exist(tmp_path):
    holdout(tmp_path)
    for choices in (Choices(classnames=tmp_path / "a"), Choices(templates_file=tmp_path / "a")):
        with pytest.raises(DataError, match="/a: there is no such file"):
            open_folder(tmp_path, choices)


def test_roc_auc_needs_two_classes(tmp_path):
    holdout(tmp_path, ("a", "b", "c"))
    with pytest.raises(DataError, match="roc_auc expected 2 classes, found 3"):
        open_folder(tmp_path, Choices(metric="roc_auc"))


def test_several_labels_are_read_when_the_metric_is_for_them(tmp_path):
    several_labels_of_an_index(tmp_path)
    dataset = open_folder(tmp_path, Choices(metric="map_11_point"))
    assert dataset.rows()[1].tolist() == [[1, 1]]


def predictions(labels, guesses, readable, n_classes=3):
    """Return predictions whose most probable classes are ``guesses``."""
    benchmark = Benchmark(
        "mine", "mine", (), "accuracy", tuple("abc"[:n_classes]), ("{}",), None, None
    )
    probabilities = np.eye(n_classes)[guesses]
    return Predictions(benchmark, None, np.array(labels), probabilities, np.array(readable))


def test_the_most_frequent_wrong_pairs_stand_first():
    found = predictions([0, 0, 0, 1, 2, 2, 1], [1, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5])
    pairs = most_confused(found)
    assert pairs == [
        WrongPair("a", "b", 2, 3),
        WrongPair("c", "a", 1, 2),
        WrongPair("c", "b", 1, 2),
    ]
    assert most_confused(found, most=1) == pairs[:1]
    assert terminal_table(pairs)[2].split() == ["a", "b", "2", "3"]


def test_no_wrong_image_makes_no_pair():
    assert most_confused(predictions([0, 1, 2], [0, 1, 2], [0, 1, 2])) == []


@pytest.mark.parametrize("metric", METRICS)
def test_unreadable_images_as_wrong_answers(metric):
    labels = np.array([0, 0, 1, 1, 1, 1])
    readable = np.array([0, 2, 3, 4])
    scores = np.eye(3)[[0, 1, 1, 0]]  # of the images that can be read, one is wrong
    value = with_unreadable_as_wrong(metric, scores, labels, readable)
    expected = {"accuracy": 3 / 6, "mean_per_class": (1 / 2 + 2 / 4) / 2}
    assert value == expected.get(metric)


def test_a_class_whose_images_are_all_unreadable_counts_as_wrong():
    labels = np.array([0, 0, 1])
    scores = np.eye(2)[[0, 0]]
    assert METRICS["mean_per_class"](scores, labels[:2]) == 1
    assert with_unreadable_as_wrong("mean_per_class", scores, labels, np.array([0, 1])) == 0.5

"""Bad datasets in every layout: each fault is one line or a count, and nothing is lost silently."""

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.evaluate.benchmark import load, suite
from dimefm.evaluate.datasets.layouts import LAYOUTS, find
from dimefm.evaluate.datasets.split_sizes import SplitSize, differences, split_sizes
from tests.evaluate.datasets import image, parquet, tar, write

MODEL = "ResNet-mini-64/random:0"
DAMAGED = b"\x89PNG\r\n\x1a\nand nothing more"

# split sizes of the validation part (spec/dime_fm_elevater.md, 3.1); the other sets have none
VAL = {
    "country211": 10550,
    "dtd": 1880,
    "eurosat_clip": 5000,
    "fer-2013": 3589,
    "fgvc-aircraft-2013b-variants102": 3333,
    "gtsrb": 12569,
    "kitti-distance": 423,
    "oxford-flower-102": 1020,
    "patch-camelyon": 32768,
    "rendered-sst2": 827,
    "resisc45_clip": 3150,
    "voc-2007-classification": 2510,
}


def write_split(layout, folder, samples, split="test"):
    """Write (class name, encoded image) samples as one split of a layout."""
    names = sorted({name for name, _ in samples})
    images = [content for _, content in samples]
    labels = [names.index(name) for name, _ in samples]
    if layout == "imagefolder":
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number, (name, content) in enumerate(samples):
            write(folder / split / name / f"{number}.png", content)
    elif layout == "parquet":
        parquet(folder / f"{split}.parquet", {"image": images, "label": labels}, names)
    elif layout == "webdataset":
        members = {}
        for number, (name, content) in enumerate(samples):
            members[f"{number}.png"] = content
            members[f"{number}.cls"] = name.encode()
        tar(folder / f"{split}.tar", members)
    else:
        lines = []
        for number, (content, label) in enumerate(zip(images, labels, strict=True)):
            write(folder / f"{split}-{number}.png", content)
            lines.append(f"{split}-{number}.png {label}\n")
        write(folder / f"{split}.txt", "".join(lines))
        write(folder / "labels.txt", "".join(f"{name}\n" for name in names))


def samples_of(*names):
    """Return two samples for each class name."""
    numbered = enumerate([*names, *names])
    return [(name, image(10 * number)) for number, name in numbered]


def elevater(root, *more):
    words = ["--model", MODEL, "--device", "cpu", "--root", root, "--out", root.parent / "out"]
    return CliRunner().invoke(main, ["eval", "elevater", *map(str, [*words, *more])])


def scored(root):
    """Return what ``scores.json`` says of the one dataset, and what was printed."""
    done = elevater(root)
    assert done.exit_code == 0, done.output
    [entry] = json.loads((root.parent / "out/scores.json").read_text())["scores"]
    return entry, " ".join(done.stdout.split())


def refusal(root):
    """Return the one line with which an evaluation ends."""
    done = elevater(root)
    assert done.exit_code == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and lines[0] == done.stderr.rstrip("\n").split("\n")[-1]
    assert len(lines[0]) <= 500 + len("Error: ") and "Traceback" not in done.output
    assert not (root.parent / "out/scores.json").exists()
    return lines[0]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "sets"


OF_ANY_CLASSES = [name for name in LAYOUTS if name != "imagenet-val"]
every_layout = pytest.mark.parametrize("layout", OF_ANY_CLASSES)


@every_layout
def test_missing_classes_are_counted(root, layout):
    write_split(layout, root / "cifar-10", samples_of("dog", "cat"))
    entry, said = scored(root)
    assert entry["images"] == 4
    assert "2 of 10 classes; 4 of 10000 test images: split differs" in said


@every_layout
def test_an_extra_class_is_named(root, layout):
    write_split(layout, root / "cifar-10", samples_of("dog", "zebra skin"))
    assert "1 class names are not among the 10 known: 'zebra skin'" in refusal(root)


@every_layout
def test_two_names_of_one_class_are_refused(root, layout):
    write_split(layout, root / "cifar-10", samples_of("Dog", "DOG"))
    assert "is not the only name of its class" in refusal(root)


@every_layout
def test_unreadable_images_are_counted_and_both_scores_told(root, layout):
    samples = samples_of("dog", "cat")
    samples[2] = (samples[2][0], DAMAGED)
    write_split(layout, root / "cifar-10", samples)
    entry, said = scored(root)
    assert (entry["images"], entry["unreadable"]) == (3, 1)
    assert entry["unreadable_as_wrong"] == pytest.approx(entry["value"] * 3 / 4)
    assert "1 unreadable images left out of 4; as wrong answers they make it" in said
    report = (root.parent / "out/report.md").read_text()
    assert "1 unreadable images left out of 4" in report


@every_layout
def test_a_set_without_a_readable_image_fails(root, layout):
    write_split(layout, root / "cifar-10", [("dog", DAMAGED), ("cat", DAMAGED)])
    line = refusal(root)
    assert "cifar-10" in line and "Fix: " in line


@every_layout
def test_an_empty_split_fails(root, layout):
    write_split(layout, root / "cifar-10", samples_of("dog", "cat"), "train")
    write_split(layout, root / "cifar-10", [], "test")
    line = refusal(root)
    assert "cifar-10" in line and "Fix: " in line


@pytest.mark.parametrize("layout", ["parquet", "webdataset", "vision-datasets"])
def test_several_labels_in_place_of_one_fail(root, layout):
    folder = root / "cifar-10"
    if layout == "parquet":
        parquet(folder / "test.parquet", {"image": [image(0)] * 2, "label": [[0, 1], [1]]})
    elif layout == "webdataset":
        marks = io.BytesIO()
        np.save(marks, np.eye(10)[3] + np.eye(10)[4])
        tar(folder / "test.tar", {"0.png": image(0), "0.npy": marks.getvalue()})
    else:
        write(folder / "0.png", image(0))
        write(folder / "test.txt", "0.png 0,1\n")
    line = refusal(root)
    assert "cifar-10" in line and "Fix: " in line


@pytest.mark.parametrize("layout", ["parquet", "webdataset", "imagefolder"])
def test_one_label_in_place_of_several_fails(root, layout):
    write_split(layout, root / "voc2007", samples_of("dog", "cat"))
    line = refusal(root)
    assert "voc2007" in line and "Fix: " in line


@every_layout
@pytest.mark.parametrize(
    "litter", [".DS_Store", "Thumbs.db", "__MACOSX/._0.png", "test/.DS_Store", "._test.parquet"]
)
def test_hidden_files_change_nothing(root, layout, litter):
    write_split(layout, root / "cifar-10", samples_of("dog", "cat"))
    write(root / "cifar-10" / litter, b"litter")
    write(root / litter, b"litter")
    datasets, _ = find(root)
    assert [len(dataset.rows()[0]) for dataset in datasets] == [4]


@pytest.mark.parametrize("litter", [None, ".DS_Store", "__MACOSX/cifar-10/test/dog/._0.png"])
def test_an_empty_root_is_refused(root, litter):
    root.mkdir()
    if litter:
        write(root / litter, b"litter")
    assert "none of the datasets asked for is here" in refusal(root)


@pytest.mark.parametrize("name", suite())
def test_cards_state_the_published_validation_split(name):
    assert load(name).val == VAL.get(name)


@every_layout
@pytest.mark.parametrize(
    ("card", "split", "words"),
    [
        ("dtd", "train", "2 of 1880 train images"),
        ("dtd", "val", "2 of 1880 val images"),
        ("cifar-10", "val", "2 val images, none are published"),
    ],
)
def test_sizes_of_all_splits_are_compared_with_the_card(root, layout, card, split, words):
    first, second = load(card).classes[:2]
    samples = [(first, image(0)), (second, image(10))]
    write_split(layout, root / card, samples, split)
    write_split(layout, root / card, samples)
    [dataset], _ = find(root)
    sizes = split_sizes(dataset)
    assert set(sizes) == {split, "test"}
    assert sizes[split].images == sizes["test"].images == 2
    assert differences(sizes) == words


def test_differences_of_splits_are_noted_and_kept(root):
    write_split("imagefolder", root / "cifar-10", samples_of("dog", "cat"), "train")
    write_split("imagefolder", root / "cifar-10", samples_of("dog", "cat"))
    entry, said = scored(root)
    assert entry["splits"] == {
        "train": {"images": 4, "published": 50000},
        "test": {"images": 4, "published": 10000},
    }
    assert "4 of 50000 train images" in said


def test_equal_sizes_are_no_difference():
    assert differences({"train": SplitSize(5, 5), "val": SplitSize(2, 2)}) == ""


def test_a_damaged_training_split_stops_nothing(root):
    write_split("imagefolder", root / "cifar-10", samples_of("dog", "cat"))
    write_split("parquet", root / "mnist", samples_of("0", "7"))
    write(root / "mnist/train.parquet", b"no table")
    done = elevater(root)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert (
        "mnist: 2 of 10 classes; 4 of 10000 test images: split differs; train split cannot be"
        in said
    )

"""Each column of the papers' tables is filled by the command of docs/tables.md.

The commands of that page run on miniature datasets in the published layouts.
"""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main
from dimefm.evaluate.benchmark import load, suite
from dimefm.runs.scores import SCORES, read_results
from tests.evaluate.datasets import parquet, tar, write

PAGE = Path(__file__).parents[2] / "docs/tables.md"
TEACHER = Path(__file__).parents[1] / "data/teacher"
COLUMN = re.compile(
    r"^\| (?P<column>[^|]+) \| `(?P<command>dimefm [^`]+)` \| `(?P<figure>[^`]+)` \|$"
)
TEMPLATE = "a photo of a {}."
IN_ALL = ("n02123045", "n02129165", "n07753592", "n02701002")  # classes of R, and some of A
OBJECTS = ("backpack", "bicycle", "chair", "wok")
TRAINING, TESTED = 5, 2  # images of a class


def columns():
    """Return (column, command, figure) of each row of the page, with the paper before it."""
    found = []
    paper = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            paper = line.removeprefix("## ")
        row = COLUMN.match(line)
        if row is not None:
            found.append((f"{paper}: {row['column']}", row["command"], row["figure"]))
    return found


COLUMNS = columns()


def photo(seed):
    """Return a picture of a few colored rectangles as the bytes of a PNG."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((32, 32, 3), np.uint8)
    for _ in range(4):
        top, left = generator.integers(0, 24, 2)
        pixels[top : top + 12, left : left + 12] = generator.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def imagenets(root):
    """Write the six ImageNets as they are published."""
    card = load("imagenet-1k")
    ids = [identity for (identity,) in card.wnids]
    in_a = {identity for (identity,) in load("imagenet-a").wnids}
    objects = dict(zip(load("objectnet").classes, load("objectnet").wnids, strict=True))
    for seed, identity in enumerate([*IN_ALL, *(objects[name][-1] for name in OBJECTS)]):
        write(root / f"imagenet/val/{identity}/{seed}.png", photo(seed))
    for seed, identity in enumerate(IN_ALL, start=100):
        write(root / f"imagenet-r/{identity}/{seed}.png", photo(seed))
        write(root / f"imagenet-sketch/sketch/{identity}/{seed}.png", photo(seed))
        number = ids.index(identity)
        write(root / f"imagenetv2-matched-frequency-format-val/{number}/x.png", photo(seed))
        if identity in in_a:
            write(root / f"imagenet-a/{identity}/{seed}.png", photo(seed))
    for seed, name in enumerate(OBJECTS, start=200):
        write(root / f"objectnet/images/{name}/{seed}.png", photo(seed))
    for folder in root.iterdir():
        write(folder / "templates.txt", TEMPLATE)


def elevater(root):
    """Write the 20 datasets with two classes each: as class folders, Parquet or tars."""
    for number, name in enumerate(suite()):
        folder = root / name
        write(folder / "templates.txt", TEMPLATE)
        card = load(name)
        for split, count in (("train", TRAINING), ("test", TESTED)):
            images = [photo(1000 * number + seed) for seed in range(2 * count)]
            labels = [seed % 2 for seed in range(2 * count)]
            if card.multilabel:
                write_multilabel(folder / split / "0.tar", images, labels, len(card.classes))
            elif number % 2:
                columns_ = {"image": [{"bytes": image} for image in images], "label": labels}
                parquet(folder / f"{split}.parquet", columns_, list(card.classes))
            else:
                for seed, (image, label) in enumerate(zip(images, labels, strict=True)):
                    class_folder = card.classes[label].replace("/", "_")
                    write(folder / split / class_folder / f"{seed}.png", image)


def write_multilabel(path, images, labels, n_classes):
    members = {}
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        row = np.zeros(n_classes, dtype=np.int64)
        row[label] = 1
        file = io.BytesIO()
        np.save(file, row, allow_pickle=False)
        members[f"{number:03d}.png"] = image
        members[f"{number:03d}.npy"] = file.getvalue()
    tar(path, members)


def pairs(root):
    """Write COCO as Karpathy's JSON, Flickr30k as clip-benchmark's tars, and CC3M as a table."""
    entries = []
    members = {}
    table = ["filepath\ttitle"]
    for number in range(6):
        name = f"COCO_val2014_{number:012d}.png"
        captions = [f"thing {number}, caption {place}" for place in range(5)]
        write(root / f"coco/val2014/{name}", photo(number))
        sentences = [{"raw": caption} for caption in captions]
        entries.append(
            {"filepath": "val2014", "filename": name, "split": "test", "sentences": sentences}
        )
        members[f"{number:07d}.png"] = photo(number)
        members[f"{number:07d}.txt"] = "\n".join(captions).encode()
        table.append(f"coco/val2014/{name}\t{captions[0]}")
    write(root / "coco/dataset_coco.json", json.dumps({"images": entries, "dataset": "coco"}))
    tar(root / "wds_flickr30k/test/0.tar", members)
    write(root / "wds_flickr30k/test/nshards.txt", "1\n")
    write(root / "wds_flickr30k/dataset_type.txt", "retrieval")
    write(root / "cc3m_val.csv", "\n".join(table) + "\n")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Return a folder that has the datasets under the names of the page."""
    root = tmp_path_factory.mktemp("disk")
    imagenets(root / "imagenets")
    elevater(root / "elevater")
    pairs(root)
    for split, count in (("train", TRAINING), ("test", TESTED)):
        for seed in range(2 * count):
            place = ("abbey", "airport_terminal")[seed % 2]
            write(root / f"more/sun397/{split}/{place}/{seed}.png", photo(9000 + seed))
    return root


@pytest.fixture(scope="module")
def filled(disk):
    """Return ``filled(command)``: what scores.json holds after it; each command runs once."""
    known = {}

    def run(command, monkeypatch):
        if command in known:
            return known[command]
        monkeypatch.chdir(disk)
        words = shlex.split(command.replace("MODEL", str(TEACHER)))[1:]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        known[command] = disk / words[words.index("--out") + 1] / SCORES
        return known[command]

    return run


def test_the_page_has_the_columns_of_all_four_papers():
    papers = {column.partition(":")[0] for column, _, _ in COLUMNS}
    assert papers == {"DIME-FM", "CLIP-KD", "TinyCLIP", "DeCLIP"}
    assert len(COLUMNS) == PAGE.read_text().count("| `dimefm ")


@pytest.mark.parametrize(("column", "command", "figure"), COLUMNS, ids=[row[0] for row in COLUMNS])
def test_a_column_is_filled_by_its_command(column, command, figure, filled, monkeypatch):
    path = filled(command, monkeypatch)
    content = json.loads(path.read_text())
    where, _, name = figure.partition(": ")
    if figure == "mean":
        assert content["is_elevater_average"] and 0 < content["mean"] < 1
    elif where == "summary":
        assert 0 <= content["summary"][name] <= 1
    elif where == "encoder":
        assert content["encoder"][name] > 0
    else:
        values = {}
        for result in read_results(path):
            for metric, value in result.metrics.items():
                values[f"{result.dataset} {result.task} {metric}"] = value
        assert figure in values and 0 <= values[figure] <= 1

"""Images with captions in every published layout: each image keeps its captions, whatever the
order, and what is left out is said.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dimefm.errors import BadRow, DataError
from dimefm.evaluate.datasets.captions import LAYOUTS, open_pairs
from tests.evaluate.datasets import image, level, tar, write

NAMES = ("b_1.jpg", "a_2.jpg", "c_3.jpg")
TEXTS = {
    "b_1.jpg": ["a dog, in pink", "two dogs"],
    "a_2.jpg": ["a cat", 'a "quoted" cat'],
    "c_3.jpg": ["the sea", "a beach"],
}
OF_TRAINING = "d_4.jpg"


def images_at(folder):
    """Write the images; the gray level of one is 20 times its place in ``NAMES``, and 200 the
    image's for training.
    """
    for number, name in enumerate(NAMES):
        write(folder / name, image(20 * number, "jpg"))
    write(folder / OF_TRAINING, image(200, "jpg"))


def karpathy(root, with_path):
    entries = []
    for name in (*NAMES, OF_TRAINING):
        sentences = [{"raw": text, "tokens": []} for text in TEXTS.get(name, ["training"])]
        entry = {"filename": name, "split": "restval", "sentences": sentences}
        if name in TEXTS:
            entry["split"] = "test"
        if with_path:
            entry["filepath"] = "val2014"
        entries.append(entry)
    write(root / "dataset_mini.json", json.dumps({"dataset": "mini", "images": entries}))
    images_at(root / "val2014" if with_path else root / "flickr30k-images")
    return root / "dataset_mini.json"


def coco(root):
    numbers = {name: 100 + number for number, name in enumerate(NAMES)}
    content = {
        "images": [{"id": number, "file_name": name} for name, number in numbers.items()],
        "annotations": [
            {"image_id": numbers[name], "caption": text}
            for place in (0, 1)
            for name in reversed(NAMES)
            for text in [TEXTS[name][place]]
        ],
    }
    write(root / "captions_mini.json", json.dumps(content))
    images_at(root / "val2017")
    return root / "captions_mini.json"


def webdataset(root):
    write(root / "dataset_type.txt", "retrieval\n")
    write(root / "test/nshards.txt", "2")
    for shard, names in enumerate((NAMES[:2], NAMES[2:])):
        members = {}
        for number, name in enumerate(names):
            members[f"s{number}.jpg"] = image(20 * NAMES.index(name), "jpg")
            members[f"s{number}.txt"] = "\n".join(TEXTS[name]).encode()
        tar(root / f"test/{shard}.tar", members)
    return root


def table(root, separator, ending):
    rows = [("title", "filepath", SPLIT)]
    for place in (0, 1):
        rows += [(TEXTS[name][place], name, "test") for name in NAMES]
    rows.append(("training", OF_TRAINING, "train"))
    lines = []
    for row in rows:
        cells = row
        if separator == ",":
            cells = ['"' + cell.replace('"', '""') + '"' for cell in row]
        lines.append(separator.join(cells))
    write(root / f"pairs.{ending}", "\n".join(lines) + "\n")
    images_at(root)
    return root / f"pairs.{ending}"


SPLIT = "split"


def hub(root):
    """The table of Flickr30k on the hub: all captions of an image in one cell."""
    lines = ["raw,sentids,split,filename,img_id"]
    for number, name in enumerate((*NAMES, OF_TRAINING)):
        raw = json.dumps(TEXTS.get(name, ["training"])).replace('"', '""')
        split = "test" if name in TEXTS else "train"
        lines.append(f'"{raw}","[1, 2]",{split},{name},{number}')
    write(root / "pairs.csv", "\n".join(lines) + "\n")
    images_at(root / "flickr30k-images")
    return root / "pairs.csv"


def tokens(root):
    lines = [f"{name}#{n}\t{text}" for name in NAMES for n, text in enumerate(TEXTS[name])]
    lines.append(f"{OF_TRAINING}#0\ttraining")
    write(root / "Flickr8k.token.txt", "\n".join(lines) + "\n")
    write(root / "Flickr_8k.testImages.txt", "\n".join(NAMES))
    images_at(root / "Flicker8k_Dataset")
    return root / "Flickr8k.token.txt"


def kaggle(root):
    lines = ["image_name| comment_number| comment"]
    lines += [f"{name}| {n}| {text}" for name in NAMES for n, text in enumerate(TEXTS[name])]
    write(root / "results.csv", "\n".join(lines) + "\n")
    images_at(root / "images")
    return root / "results.csv"


def parquet(root):
    content = {
        "image": [image(20 * number, "jpg") for number in range(3)],
        "captions": [TEXTS[name] for name in NAMES],
    }
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table(content), root / "test.parquet")
    return root


def parquet_of_captions(root):
    """A caption a row: the image stands with each."""
    pairs = [(name, place) for place in (0, 1) for name in NAMES]
    content = {
        "key": [name for name, _ in pairs],
        "image": [image(20 * NAMES.index(name), "jpg") for name, _ in pairs],
        "caption": [TEXTS[name][place] for name, place in pairs],
    }
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table(content), root / "test.parquet")
    return root / "test.parquet"


WRITERS = {
    "karpathy, coco": (lambda root: karpathy(root, True), "karpathy"),
    "karpathy, flickr": (lambda root: karpathy(root, False), "karpathy"),
    "coco": (coco, "coco"),
    "webdataset": (webdataset, "webdataset"),
    "csv": (lambda root: table(root, ",", "csv"), "table"),
    "tsv": (lambda root: table(root, "\t", "tsv"), "table"),
    "csv of open_clip": (lambda root: table(root, "\t", "csv"), "table"),
    "csv of the hub": (hub, "table"),
    "token": (tokens, "table"),
    "kaggle": (kaggle, "table"),
    "parquet": (parquet, "parquet"),
    "parquet, caption a row": (parquet_of_captions, "parquet"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_image_has_its_captions(name, tmp_path):
    write_layout, layout = WRITERS[name]
    if name == "csv of open_clip":
        texts = {key: [text.replace('"', "'") for text in value] for key, value in TEXTS.items()}
    else:
        texts = TEXTS
    source = write_layout(tmp_path / "mini")
    if texts is not TEXTS:
        source.write_text(source.read_text().replace('"', "'"))
    pairs = open_pairs(source)
    found = {
        level(row) // 20: captions for row, captions in zip(pairs.rows, pairs.captions, strict=True)
    }
    assert found == {number: texts[key] for number, key in enumerate(NAMES)}
    assert pairs.layout == layout
    assert pairs.name in ("mini", "captions_mini", "pairs", "Flickr8k", "results")
    assert set(LAYOUTS) >= {pairs.layout}


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_is_known_by_what_it_holds(name, tmp_path):
    write_layout, layout = WRITERS[name]
    source = write_layout(tmp_path / "mini")
    folder = source if source.is_dir() else source.parent
    assert open_pairs(folder).layout == layout


def test_restval_is_for_training(tmp_path):
    source = karpathy(tmp_path, True)
    pairs = open_pairs(source, split="train")
    assert pairs.captions == [["training"]]
    assert level(pairs.rows[0]) > 190


@pytest.mark.parametrize("name", ["karpathy, coco", "csv", "webdataset", "parquet"])
def test_an_absent_split_is_refused(name, tmp_path):
    source = WRITERS[name][0](tmp_path / "mini")
    with pytest.raises(DataError, match="of the split 'val'"):
        open_pairs(source, split="val")


def test_images_that_are_not_found_stay_and_cannot_be_read(tmp_path):
    source = tokens(tmp_path)
    (tmp_path / "Flicker8k_Dataset" / NAMES[1]).unlink()
    pairs = open_pairs(source)
    assert len(pairs) == 3
    readable = []
    for number in range(3):
        try:
            readable.append(level(pairs.rows[number]) // 20)
        except BadRow:
            continue
    assert readable == [0, 2]


@pytest.mark.parametrize("name", ["karpathy, flickr", "coco", "csv", "token", "kaggle"])
def test_no_image_at_all_is_refused_in_one_line(name, tmp_path):
    source = WRITERS[name][0](tmp_path / "mini")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(DataError, match="--root"):
        open_pairs(source, root=elsewhere)
    with pytest.raises(DataError, match="there is no such folder"):
        open_pairs(source, root=tmp_path / "absent")


def test_no_file_outside_the_root_is_read(tmp_path):
    write(tmp_path / "secret.jpg", image(90, "jpg"))
    images_at(tmp_path / "in")
    lines = ["filepath,title", f"{NAMES[0]},a dog", "../secret.jpg,a secret"]
    write(tmp_path / "in/pairs.csv", "\n".join(lines))
    pairs = open_pairs(tmp_path / "in/pairs.csv")
    assert level(pairs.rows[0]) == 0
    with pytest.raises(BadRow, match="outside"):
        pairs.rows[1]


def test_blank_and_faulty_captions_are_counted(tmp_path):
    images_at(tmp_path)
    sentences = [{"raw": "a dog"}, {"raw": "  "}, {"raw": 3}, "no sentence"]
    entries = [
        {"filename": NAMES[0], "split": "test", "sentences": sentences},
        {"split": "test"},
        7,
    ]
    write(tmp_path / "dataset_x.json", json.dumps({"images": entries}))
    pairs = open_pairs(tmp_path / "dataset_x.json")
    assert pairs.captions == [["a dog"]]
    assert "1 blank captions" in pairs.note
    assert "4 entries" in pairs.note


def broken_count(root):
    write(webdataset(root) / "test/nshards.txt", "many")


def missing_tar(root):
    write(webdataset(root) / "test/nshards.txt", "3")


def other_task(root):
    write(webdataset(root) / "dataset_type.txt", "classification")


def no_json(root):
    write(root / "dataset_x.json", "{")


def other_json(root):
    write(root / "dataset_x.json", "[1, 2]")


def no_captions(root):
    write(root / "pairs.csv", "filepath,width\na.jpg,3\nb.jpg,4\n")


def nothing(root):
    root.mkdir()
    write(root / ".DS_Store", b"")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (broken_count, "expected the number of tars"),
        (missing_tar, "1 of 3 tars are missing, the first is 2.tar"),
        (other_task, "expected retrieval"),
        (no_json, "cannot be read as JSON"),
        (other_json, "no list 'images'"),
        (no_captions, "no text column"),
        (nothing, "no images with captions"),
    ],
)
def test_a_fault_is_one_clear_line(damage, told, tmp_path):
    damage(tmp_path / "mini")
    with pytest.raises(DataError, match=told) as caught:
        open_pairs(tmp_path / "mini")
    assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("choice", [{"split": "tset"}, {"layout": "karpaty"}])
def test_a_misspelt_choice_is_asked_back(choice, tmp_path):
    with pytest.raises(DataError, match="unknown"):
        open_pairs(webdataset(tmp_path), **choice)


def test_keys_of_tars_may_stand_again_in_the_next(tmp_path):
    pairs = open_pairs(webdataset(tmp_path / "mini"))
    keys = [key for shard in pairs.rows.shards for key in shard.keys()]
    assert keys == ["s0", "s1", "s0"]
    assert len(pairs) == 3


def test_tars_are_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path / "dataset_type.txt", "retrieval")
    write(tmp_path / "test/nshards.txt", "11\n")
    for number in range(11):
        members = {"k.png": image(10 * number), "k.txt": f"image {number}".encode()}
        tar(tmp_path / f"test/{number}.tar", members)
    pairs = open_pairs(tmp_path)
    assert [captions[0] for captions in pairs.captions] == [f"image {n}" for n in range(11)]
    assert [level(row) // 10 for row in pairs.rows] == list(range(11))


def test_the_order_of_columns_does_not_matter(tmp_path):
    images_at(tmp_path)
    lines = ["caption,width,filename", f"a dog,3,{NAMES[0]}", f"two dogs,3,{NAMES[0]}"]
    write(tmp_path / "pairs.csv", "\n".join(lines))
    pairs = open_pairs(tmp_path)
    assert pairs.captions == [["a dog", "two dogs"]]


def test_a_name_of_other_bytes_is_readable(tmp_path):
    source = karpathy(tmp_path, True)
    odd = tmp_path / "caf\udce9.json"
    try:
        source.rename(odd)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert open_pairs(odd).name.isprintable()


def test_real_captions(shared_data):
    pairs = open_pairs(shared_data / "captions/ucm")
    assert pairs.name == "ucm"
    assert len(pairs) == 210
    assert np.mean([len(captions) for captions in pairs.captions]) == 5
    assert Image.open(io.BytesIO(pairs.rows[209].image)).size == (128, 128)

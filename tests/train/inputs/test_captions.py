"""Captions from labels: training turns labels into class numbers as evaluation does, before step
0.
"""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm.data import open_rows, subshards
from dimefm.errors import DataError
from dimefm.evaluate.datasets.layouts import find
from dimefm.train.inputs.captions import Captions

NAMES = ["red square", "Blue-disc", "green star"]


@pytest.fixture
def folder(tmp_path):
    """Return a dataset folder with three class names and one template."""
    root = tmp_path / "shapes"
    root.mkdir()
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (root / "templates.txt").write_text("the {}\n")
    return root


def captions(*sources, **options):
    """Return the caption of every row, label by label."""
    rows = open_rows(sources, "pair", **options)
    of = Captions(rows, "label")
    return [of(number, row, 0) for number, row in enumerate(rows)]


def parquet(path, labels, names=None, column="label", **more):
    table = pa.table({"image": [b"png"] * len(labels), column: labels, **more})
    if names is not None:
        feature = {"names": names, "_type": "ClassLabel"}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {column: feature}}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


def write(path, data=b"png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_class_folders_map_by_name_however_they_are_spelt(folder):
    for name in ("Red_Square", "blue disc", "GREEN-STAR"):
        write(folder / "train" / name / "x.png")
    assert captions(folder / "train") == ["the green star", "the red square", "the Blue-disc"]


@pytest.mark.parametrize(
    "place", ["train.parquet", "train-0.parquet", "data/train-0.parquet", "train/0.parquet"]
)
def test_hugging_face_numbers_mean_the_names_that_the_file_states(folder, place):
    path = parquet(folder / place, [0, 1, 2, 0], ["green_star", "red_square", "blue_disc"])
    assert captions(path) == ["the green star", "the red square", "the Blue-disc", "the green star"]


def test_without_names_numbers_are_lines_of_the_class_names(folder):
    assert captions(parquet(folder / "x.parquet", [2, 0])) == ["the green star", "the red square"]


@pytest.mark.parametrize("column", ["labels", "fine_label", "class"])
def test_label_columns_are_found_under_the_names_that_evaluation_knows(folder, column):
    assert captions(parquet(folder / "x.parquet", [1], column=column)) == ["the Blue-disc"]


def test_tar_table_and_json_lines_map_by_name_too(folder):
    with tarfile.open(folder / "x.tar", "w") as file:
        for name, data in {
            "0.png": b"png",
            "0.cls": b"GREEN STAR",
            "1.png": b"png",
            "1.cls": b"red_square",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    write(folder / "0.png")
    (folder / "x.csv").write_text("filepath,label\n0.png,Blue disc\n0.png,red square\n")
    (folder / "x.jsonl").write_text('{"filepath": "0.png", "label": "blue_disc"}\n')
    assert captions(folder / "x.tar") == ["the green star", "the red square"]
    assert captions(folder / "x.csv") == ["the Blue-disc", "the red square"]
    assert captions(folder / "x.jsonl") == ["the Blue-disc"]


def test_the_shards_of_a_set_are_read_together(folder, monkeypatch):
    """Folders 1..3 of three classes count from one, also when the first shard holds only 1 and
    2.
    """
    from dimefm.data.formats import folder as folders

    monkeypatch.setattr(folders, "ROWS_PER_SHARD", 2)
    for name in "123":
        write(folder / "train" / name / "x.png")
    assert captions(folder / "train") == [f"the {name}" for name in NAMES]


def test_parts_of_a_file_take_their_own_labels(folder, monkeypatch):
    monkeypatch.setattr(subshards, "ROWS_PER_PART", 2)
    path = parquet(folder / "x.parquet", [0, 1, 2, 1, 0])
    rows = open_rows([path], "pair")
    assert len(rows.shards) == 3
    of = Captions(rows, "label")
    assert [of(n, rows[n], 0) for n in range(5)] == [f"the {NAMES[n]}" for n in (0, 1, 2, 1, 0)]


@pytest.mark.parametrize(
    ("labels", "names", "reason"),
    [
        ([0, 3], None, "label 3 lies outside 0..2"),
        ([0, -1], None, "label -1 lies outside 0..2"),
        (["red square", "moon"], None, "1 class names are not among the 3 known: 'moon'"),
        ([0, 1], ["red square", "moon"], "'moon'"),
        ([0.5], None, "found 0.5"),
    ],
)
def test_a_label_of_no_class_is_refused_before_the_first_step(folder, labels, names, reason):
    path = parquet(folder / "x.parquet", labels, names)
    with pytest.raises(DataError, match=reason):
        captions(path)


def test_class_folders_that_are_no_class_are_refused(folder):
    for name in ("red square", "moon"):
        write(folder / "train" / name / "x.png")
    with pytest.raises(
        DataError, match="shapes/train: 1 class names are not among the 3 known: 'moon'"
    ):
        captions(folder / "train")


def test_files_that_number_their_classes_differently_are_refused(folder):
    parquet(folder / "train-0.parquet", [0], ["red square", "blue disc", "green star"])
    parquet(folder / "train-1.parquet", [0], ["blue disc", "red square", "green star"])
    with pytest.raises(
        DataError, match=r"train-1.parquet: its class names differ from those of .*train-0.parquet"
    ):
        captions(folder / "train-*.parquet")


def test_rows_with_sentences_of_their_own_keep_them_and_need_no_class_names(tmp_path):
    path = parquet(tmp_path / "x.parquet", [7, 8], caption=["a dog", "a cat"])
    assert captions(path) == ["a dog", "a cat"]


def test_an_image_outside_the_class_folders_has_no_sentence(folder):
    write(folder / "train/red square/x.png")
    write(folder / "train/stray.png")
    assert captions(folder / "train") == ["the red square", None]


def test_a_row_of_several_classes_draws_among_their_prompts(tmp_path):
    path = parquet(tmp_path / "voc2007" / "train.parquet", [[0, 2], [], [1]])
    rows = open_rows([path], "pair")
    of = Captions(rows, "label")
    seen = {of(0, rows[0], seed) for seed in range(300)}
    assert (
        {"bird" in text for text in seen}
        == {"aeroplane" in text or "airplane" in text for text in seen}
        == {True, False}
    )
    assert of(1, rows[1], 0) is None
    assert "bicycle" in of(2, rows[2], 0)


def test_training_and_evaluation_agree_on_every_row(folder):
    names = ["GREEN star", "red_square", "blue disc"]
    path = parquet(folder / "test.parquet", [2, 0, 1, 1, 2, 0], names)
    (dataset,), _ = find(folder.parent, ["shapes"])
    _, labels, classes = dataset.rows("test")
    assert captions(path) == [f"the {classes[label]}" for label in labels]
    assert not np.array_equal(labels, [2, 0, 1, 1, 2, 0])

"""``dimefm predict``: files and folders, labels and templates, in text and in JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import dimefm
from dimefm.cli import main

TEACHER = str(Path(__file__).parents[1] / "data" / "teacher")
LABELS = "cat,dog,traffic light"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    Image.effect_noise((90, 60), 80).convert("RGB").save(folder / "a.png")
    Image.new("RGB", (64, 64), "red").save(folder / "deep" / "b.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(*arguments):
    return CliRunner().invoke(main, ["predict", TEACHER, *map(str, arguments)])


def test_json_has_what_python_gives(photos):
    result = predict(photos, "--labels", LABELS, "--top", 2, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["scores"] == "softmax"
    files = [photos / "a.png", photos / "deep" / "b.jpg"]
    rankings = dimefm.load(TEACHER, device="cpu").classify(files, LABELS.split(","))
    assert [entry["image"] for entry in document["predictions"]] == [str(path) for path in files]
    for entry, ranking in zip(document["predictions"], rankings, strict=True):
        found = {item["label"]: item["score"] for item in entry["labels"]}
        assert list(found) == list(ranking)[:2]
        np.testing.assert_allclose(list(found.values()), list(ranking.values())[:2], atol=1e-5)


def test_text_has_one_block_an_image_and_80_columns(photos):
    long_label = "a very long label about everything that a photograph may show " * 2
    result = predict(photos / "a.png", "--labels", f"cat,{long_label}", "--top", 9)
    assert result.exit_code == 0
    name, *lines = result.stdout.splitlines()
    assert name.endswith("a.png") and len(lines) == 2
    assert all(len(line) <= 80 and " %  " in line for line in lines)
    total = sum(float(line.split()[0]) for line in lines)
    assert total == pytest.approx(100, abs=0.2)


def test_with_one_label_each_image_has_one_line(photos):
    result = predict(photos, "--labels", LABELS, "--top", 1)
    assert len(result.stdout.splitlines()) == 2


def test_labels_and_templates_come_from_files(photos, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\ufeffcat\n\ndog\r\ntraffic light\n", encoding="utf-8")
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of {}\na drawing of {c}\n")
    options = ["--templates", templates, "one {label}", "--json"]
    from_files = json.loads(predict(photos, "--labels", labels, *options).stdout)
    written = ["a photo of {}", "a drawing of {}", "one {}"]
    options = ["--templates", *written, "--json"]
    assert json.loads(predict(photos, "--labels", LABELS, *options).stdout) == from_files


def test_embeddings_of_an_export_are_labels(photos, tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(LABELS.split(",")))
    embedded = json.loads(predict(photos, "--labels", path, "--json").stdout)
    named = json.loads(predict(photos, "--labels", LABELS, "--json").stdout)
    for ours, theirs in zip(embedded["predictions"], named["predictions"], strict=True):
        assert [item["label"] for item in ours["labels"]] == [
            item["label"] for item in theirs["labels"]
        ]


@pytest.mark.parametrize("as_json", [False, True])
def test_unreadable_images_are_named_and_the_others_answered(photos, tmp_path, as_json):
    broken = tmp_path / "br\x1b[31moken\n.png"
    broken.write_bytes(b"\x89PNG nothing")
    absent = tmp_path / "absent.jpg"
    options = ["--labels", LABELS, "--batch-size", 2] + ["--json"] * as_json
    result = predict(broken, photos / "a.png", absent, photos / "deep" / "b.jpg", *options)
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    errors = result.stderr.splitlines()
    assert len(errors) == 2 and "br\\u001b[31moken\\n.png: cannot be read" in errors[0]
    assert "absent.jpg: cannot be read" in errors[1]
    if as_json:
        entries = json.loads(result.stdout)["predictions"]
        assert ["error" in entry for entry in entries] == [True, False, True, False]
    else:
        assert "a.png" in result.stdout and "b.jpg" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "cat"], "labels: 1 given, expected 2"),
        (["--labels", "nowhere.txt"], "--labels nowhere.txt: no such file"),
        (["--labels", "cat,cat"], "label 2: 'cat' stands twice"),
        (["--labels", "x" * 5000], "labels: 1 given"),
        (["--labels", LABELS, "--templates", "a photo"], "has no place for the label"),
    ],
)
def test_bad_labels_are_one_line(photos, options, message):
    result = predict(photos, *options)
    assert result.exit_code == 1
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_folder_without_images_is_refused(tmp_path):
    result = predict(tmp_path, "--labels", LABELS)
    assert result.exit_code == 1 and "holds no image" in result.stderr

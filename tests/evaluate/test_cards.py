"""Cards outside ELEVATER and cards with a fault: scored or refused, and no other is disturbed."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner

from dimefm import plugins
from dimefm.cli import main
from dimefm.errors import DataError
from dimefm.evaluate import benchmark
from dimefm.evaluate.benchmark import EXPECTED, REQUIRED, card_for, for_folder, load, suite
from dimefm.evaluate.datasets.layouts import find
from tests.evaluate.datasets import image, write

CARD = {
    "title": "Shapes",
    "metric": "accuracy",
    "train": 20,
    "val": 5,
    "test": 2,
    "source": "https://example.org/shapes (CC0)",
    "folders": ["forms"],
    "classes": ["disc", "star"],
    "templates": ["a {}."],
    "aliases": {"circle": "disc"},
}
WRONG = {  # key -> values of a wrong type or kind
    "title": [3, ""],
    "suite": [["elevater"], 1],
    "metric": ["acuracy", ["accuracy"], 1, True],
    "train": ["20", 2.5, 0, -1, True],
    "val": ["5", 5.0, 0, -2, False],
    "test": ["2", [2], 0, False],
    "source": [1, ""],
    "crop": ["no", 0],
    "multilabel": ["yes", 1],
    "folders": ["forms", [1], {"a": "b"}],
    "classes": ["disc", [1, 2], [], 3],
    "templates": ["a {}.", ["no place"], [], [["a {}"]]],
    "aliases": [["disc"], {"circle": "moon"}, {"circle": 1}, "disc"],
    "split": ["train", 1, ["val"]],
    "inner": ["images", [1]],
    "other_folders": ["yes", 1],
    "borders": [{"images": 0}, {"images": "2"}, {"images": True}, [2]],
    "within": ["shapes", "cifar-10", "imagenet-r", 1],
    "wnids": [["disc", "star"], ["n1", "n2"], [1, 2], [], "n01440764"],
    "renamed": [{"n01440764": "tench"}, ["tench"], "tench"],
}
BROKEN = {
    **{f"{key}={value!r}": {**CARD, key: value} for key in WRONG for value in WRONG[key]},
    **{f"no {key}": {k: v for k, v in CARD.items() if k != key} for key in REQUIRED},
    "a class without wnids": {**CARD, "wnids": ["n01440764"]},
    "wnids of no other card": {
        **{key: value for key, value in CARD.items() if key not in ("classes", "aliases")},
        "within": "imagenet-1k",
        "wnids": ["n00000001"],
    },
    "unknown key": {**CARD, "metrics": "accuracy"},
    "not TOML": b"title = 'Shapes\nmetric accuracy",
    "not UTF-8": b"title = '\xff'",
    "empty": b"",
    "folder": None,
}


def toml(card):
    """Return a card as the bytes of a TOML file."""
    return "".join(f"{key} = {inline(value)}\n" for key, value in card.items()).encode()


def inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {inline(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """Return ``cards(name, content)``, which adds a card to a copy of the package's."""
    folder = tmp_path / "cards"
    shutil.copytree(plugins.ROOT / plugins.FOLDERS["benchmarks"][0], folder)
    monkeypatch.setitem(plugins.FOLDERS, "benchmarks", (os.fspath(folder), ".toml"))
    forget_cards()

    def add(name, content):
        path = folder / f"{name}.toml"
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else toml(content))
        forget_cards()
        return path

    yield add
    monkeypatch.undo()
    forget_cards()


def forget_cards():
    """Read cards again: pytest may give two tests one folder, one after the other."""
    for cached in (plugins.names, benchmark._toml, benchmark._read_card):
        cached.cache_clear()


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def evaluated(root, *words):
    out = root / "scores"
    model = ("--model", "ResNet-mini-64/random:0", "--device", "cpu")
    result = run("eval", "elevater", *model, "--root", root / "sets", "--out", out, *words)
    scores = out / "scores.json"
    return result, json.loads(scores.read_text()) if scores.exists() else None


def names(*arguments):
    """Return the names of the datasets that are found."""
    return [dataset.benchmark.name for dataset in find(*arguments)[0]]


def shapes(folder):
    """Write two images of a folder, one a class."""
    for number, name in enumerate(("disc", "star")):
        write(folder / "test" / name / "x.png", image(100 * number))


def test_every_key_of_a_card_has_a_wrong_value_that_is_tried():
    assert set(WRONG) == set(EXPECTED)


@pytest.mark.parametrize("case", BROKEN)
def test_a_card_with_a_fault_is_one_line_for_what_needs_it_and_nothing_to_the_others(
    cards, tmp_path, case
):
    path = cards("shapes", BROKEN[case])
    with pytest.raises(DataError) as error:
        load("shapes")
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and "Fix: " in line
    key = case.removeprefix("no ").partition("=")[0]
    if key in EXPECTED:
        assert key in line and f"expected {EXPECTED[key]}." in line
    for number in (0, 1):
        write(tmp_path / f"sets/digits/test/{number}/x.png", image(90 * number))
    write(tmp_path / "sets/digits/classnames.txt", "0\n1\n")
    write(tmp_path / "sets/mnist/test/7/x.png", image(0))
    assert [dataset.benchmark.name for dataset in find(tmp_path / "sets", ["digits"])[0]] == [
        "digits"
    ]
    assert [dataset.benchmark.name for dataset in find(tmp_path / "sets")[0]] == ["mnist"]
    assert len(suite()) == 20 and card_for("wds_mnist") == "mnist"
    assert card_for("shapes") == "shapes"
    listed = run("prompts")
    assert listed.exit_code == 0 and "mnist" in listed.output and line in listed.output
    assert run("prompts", "mnist").output.startswith('a photo of the number: "0".')
    refused = run("prompts", "shapes")
    assert refused.exit_code == 1 and refused.stderr == f"Error: {line}\n"


def test_a_broken_card_does_not_disturb_the_evaluation_of_other_datasets(cards, tmp_path):
    path = cards("shapes", {**CARD, "metric": "acuracy"})
    for number in (0, 1):
        write(tmp_path / f"sets/digits/test/{number}/x.png", image(90 * number))
    write(tmp_path / "sets/digits/classnames.txt", "0\n1\n")
    result, scores = evaluated(tmp_path, "--datasets", "digits")
    assert result.exit_code == 0, result.output
    assert [score["dataset"] for score in scores["scores"]] == ["digits"]
    shapes(tmp_path / "sets/shapes")
    write(tmp_path / "sets/mnist/test/7/x.png", image(0))
    result, scores = evaluated(tmp_path)
    assert result.exit_code == 1 and "1 of 2 datasets could not be scored: shapes" in result.output
    assert [score["dataset"] for score in scores["scores"]] == ["mnist"]
    (failed,) = scores["failed"]
    assert failed["dataset"] == "shapes"
    assert failed["reason"].startswith(f"{path}: metric is 'acuracy'; expected accuracy, ")


def test_a_folder_whose_card_cannot_be_read_is_told_of_that_card(cards, tmp_path):
    cards("shapes", b"title =")
    shapes(tmp_path / "forms")
    with pytest.raises(DataError, match="or correct the card shapes$"):
        for_folder(tmp_path / "forms")


@pytest.mark.parametrize("folder", ["shapes", "forms", "Shapes_20211007"])
def test_without_names_a_folder_with_a_card_of_no_suite_is_scored_and_not_in_the_mean(
    cards, tmp_path, folder
):
    cards("shapes", CARD)
    shapes(tmp_path / "sets" / folder)
    shapes(tmp_path / "sets/unknown")
    alone, scores = evaluated(tmp_path)
    assert alone.exit_code == 0, alone.output
    assert [score["dataset"] for score in scores["scores"]] == ["shapes"]
    assert scores["mean"] == scores["scores"][0]["value"] and scores["not_in_mean"] == []
    assert set(scores["missing"]) == set(suite()) and not scores["is_elevater_average"]
    for number in range(3):
        write(tmp_path / f"sets/mnist/test/{number}/x.png", image(80 * number))
    both, scores = evaluated(tmp_path)
    assert both.exit_code == 0, both.output
    assert [score["dataset"] for score in scores["scores"]] == ["mnist", "shapes"]
    assert scores["mean"] == scores["scores"][0]["value"] and scores["not_in_mean"] == ["shapes"]
    assert "mean over the 1 set here" in both.output
    assert "outside ELEVATER, not in the mean: shapes" in both.output
    report = (tmp_path / "scores/report.md").read_text()
    assert "Outside ELEVATER, not in the mean: shapes." in report
    _, named = evaluated(tmp_path, "--datasets", "mnist,shapes")
    values = [score["value"] for score in named["scores"]]
    assert named["mean"] == pytest.approx(sum(values) / 2) and named["not_in_mean"] == []


@pytest.mark.parametrize(
    ("without", "note"),
    [
        (("test",), "2 test images; the card does not state how many there are"),
        (("train", "test"), "2 test images; the card does not state how many there are"),
        (("train",), ""),
        ((), ""),
    ],
)
def test_a_card_without_counts_is_said_to_have_none(cards, tmp_path, without, note):
    cards("shapes", {key: value for key, value in CARD.items() if key not in without})
    shapes(tmp_path / "shapes")
    (dataset,), _ = find(tmp_path, ["shapes"])
    assert dataset.note == note


def test_a_card_without_counts_still_has_its_classes_compared(cards, tmp_path):
    cards("shapes", {key: value for key, value in CARD.items() if key != "test"})
    write(tmp_path / "shapes/test/disc/x.png", image(0))
    (dataset,), _ = find(tmp_path, ["shapes"])
    assert dataset.note.startswith("1 of 2 classes; 1 test images; the card does not state")

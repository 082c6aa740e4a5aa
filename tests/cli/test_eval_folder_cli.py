"""``dimefm eval folder``: what it prints, writes and refuses."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main
from dimefm.runs.scores import SCORES, read_results

MODEL = "ResNet-mini-64/random:0"


def run(command, *words):
    return CliRunner().invoke(main, ["eval", command, "--device", "cpu", *map(str, words)])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder ``holdout`` of three classes, in which one image cannot be read, and its scores."""
    home = tmp_path_factory.mktemp("home")
    draw = np.random.default_rng(0)
    for name in ("disc", "star", "half_moon"):
        folder = home / "holdout/test" / name
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = draw.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (home / "holdout/test/disc/1.png").write_bytes(b"no image")
    return home


@pytest.fixture(scope="module")
def said(home):
    done = run("folder", "--model", MODEL, "--root", home / "holdout", "--out", home / "scores")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_scores_and_both_counts_are_printed(home, said):
    [result] = read_results(home / "scores" / SCORES)
    assert (result.dataset, result.samples, result.unreadable) == ("holdout", 8, 1)
    assert set(result.metrics) == {"accuracy", "mean_per_class"}
    assert result.details["unreadable_as_wrong"] == pytest.approx(result.value * 8 / 9)
    assert "1 unreadable images left out of 9; as wrong answers they make it" in said
    assert max(map(len, said.split("\nwritten:")[0].splitlines())) <= 80


def test_the_wrong_pairs_are_those_of_the_wrong_images(home, said):
    [result] = read_results(home / "scores" / SCORES)
    counts = {}
    for line in (home / "scores/wrong.jsonl").read_text().splitlines():
        entry = json.loads(line)
        pair = (entry["label"], entry["predicted"])
        counts[pair] = counts.get(pair, 0) + 1
    listed = {
        (pair["label"], pair["predicted"]): pair["images"] for pair in result.details["wrong_pairs"]
    }
    assert counts and listed == counts
    page = (home / "scores/report.md").read_text()
    for label, predicted in counts:
        assert label in said and f"| {label} | {predicted} |" in page


def test_every_class_has_its_line(home, said):
    with (home / "scores/per_class.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["class"], line["images"]) for line in lines] == [
        ("disc", "2"),
        ("half moon", "3"),
        ("star", "3"),
    ]


def test_the_score_is_that_of_the_folder_above(home, said):
    [own] = read_results(home / "scores" / SCORES)
    words = ("--root", home, "--datasets", "holdout", "--out", home / "above")
    assert run("elevater", "--model", MODEL, *words).exit_code == 0
    [named] = read_results(home / "above" / SCORES)
    assert (named.value, named.samples, named.unreadable) == (own.value, 8, 1)
    assert named.details["unreadable_as_wrong"] == own.details["unreadable_as_wrong"]


def test_the_result_is_one_document(home, said):
    words = ("--model", MODEL, "--root", home / "holdout", "--out", home / "scores", "--json")
    document = json.loads(run("folder", *words).stdout)
    assert document["results"][0]["dataset"] == "holdout"
    assert document["encoder"]["image_parameters"] > 0


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--root", "nowhere"), 1, "nowhere: there is no such folder"),
        (("--split", "train"), 1, "no train split; splits found: test"),
        (("--template", "none"), 1, "template 'none' has no place for the class name"),
        (("--template", "{}", "--templates", "x"), 2, "exclude each other"),
        (("--metric", "f1"), 2, "--metric"),
        (("--model", "ResNet-mini-64"), 1, "an architecture without weights"),
    ],
)
def test_refused_in_one_line(home, tmp_path, more, code, words):
    before = ("--model", MODEL, "--root", home / "holdout", "--out", tmp_path / "scores")
    done = run("folder", *before, *more)
    assert done.exit_code == code
    assert words in done.stderr.rstrip("\n").split("\n")[-1]
    assert not (tmp_path / "scores").exists()


def test_a_checkpoint_that_does_not_fit_is_never_scored(home, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"visual.conv1.weight": torch.zeros(8, 3, 4, 4)}, tmp_path / "other.safetensors")
    model = f"ResNet-mini-64/{tmp_path / 'other.safetensors'}"
    for command, root in (("folder", home / "holdout"), ("elevater", home)):
        words = ("--model", model, "--root", root, "--out", tmp_path / "scores")
        done = run(command, *words, "--preprocess", "openai")
        assert done.exit_code == 1
        last = done.stderr.rstrip("\n").split("\n")[-1]
        assert last.startswith("Error: ") and "Fix: " in last
        assert not (tmp_path / "scores/scores.json").exists()


def test_a_folder_without_a_readable_image_is_one_line(tmp_path):
    for name in ("disc", "star"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(b"no image")
    done = run("folder", "--model", MODEL, "--root", tmp_path / "data", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert done.stderr.rstrip("\n").split("\n")[-1].startswith("Error: ")
    assert not (tmp_path / "out/scores.json").exists()

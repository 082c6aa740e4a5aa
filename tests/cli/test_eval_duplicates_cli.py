"""``dimefm eval duplicates``: what it finds, prints, writes and refuses."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.runs.scores import SCORES, read_results

DATA = Path(__file__).parents[1] / "data"
STUDENT = DATA / "before/runs/image"
TEACHER = DATA / "teacher"
CACHES = DATA / "before/caches"


def run(cache, root, out, *more, teacher=TEACHER):
    words = ["--teacher", teacher, "--cache", cache, "--root", root, "--out", out, *more]
    words = ["eval", "duplicates", "--device", "cpu", *map(str, words)]
    return CliRunner().invoke(main, words)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Test images, a cache of five of them, and a dataset whose first image cannot be read."""
    home = tmp_path_factory.mktemp("home")
    for name in ("colors", "holes"):
        shutil.copytree(DATA / "before/datasets/colors", home / "sets" / name)
    images = sorted((home / "sets/colors/test").glob("*/*"))
    (home / "train").mkdir()
    for image in images[::4]:
        shutil.copy(image, home / "train" / f"{image.parent.name}-{image.name}")
    first = min((home / "sets/holes/test").glob("*/*"))
    first.write_bytes(b"no image")
    words = ["--teacher", TEACHER, "--device", "cpu", "--images", home / "train"]
    words = ["extract-features", *map(str, words), "--out", str(home / "cache")]
    assert CliRunner().invoke(main, words).exit_code == 0
    return home


@pytest.fixture(scope="module")
def said(home):
    more = ("--datasets", "colors", "holes", "--model", STUDENT, "--threshold", "0.9999")
    done = run(home / "cache/images", home / "sets", home / "out", *more)
    assert done.exit_code == 0, done.output
    return done.stdout


def pairs(home):
    with (home / "out/duplicates.csv").open() as file:
        return list(csv.DictReader(file))


def test_copies_are_found_under_their_keys(home, said):
    found = pairs(home)
    of_colors = [row for row in found if row["dataset"] == "colors"]
    assert len(of_colors) == 5
    for row in of_colors:
        assert row["train_key"] == row["key"].replace("/", "-")
        assert row["train_cache"] == str(home / "cache/images")
        assert float(row["cosine"]) == pytest.approx(1, abs=1e-3)
    colors, holes = read_results(home / "out" / SCORES)
    assert (colors.task, colors.value, colors.samples) == ("near-duplicates", 5 / 20, 20)
    assert (holes.samples, holes.unreadable) == (19, 1)
    assert holes.details["images_with_duplicate"] == 4  # the fifth cannot be read any more
    assert colors.details["images_by_cosine"]["0.99"] >= 5
    assert max(map(len, said.split("\nwritten:")[0].splitlines())) <= 80
    assert "| colors | 20 | 5 | 25.00 | accuracy |" in (home / "out/report.md").read_text()


def test_the_score_without_is_that_of_a_dataset_without_them(home, said, tmp_path):
    colors, _ = read_results(home / "out" / SCORES)
    assert colors.details["images_without"] == 15
    shutil.copytree(home / "sets/colors", tmp_path / "sets/colors")
    for row in pairs(home):
        if row["dataset"] == "colors":
            (tmp_path / "sets/colors/test" / row["key"]).unlink()
    for root, name in ((home, "accuracy"), (tmp_path, "accuracy without near-duplicates")):
        words = ["--model", STUDENT, "--root", root / "sets", "--datasets", "colors"]
        words = ["eval", "elevater", "--device", "cpu", *map(str, words)]
        done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        [alone] = read_results(tmp_path / name / SCORES)
        assert colors.metrics[name] == pytest.approx(alone.value)


def test_where_all_images_are_duplicates_no_score_is_left(home, tmp_path):
    words = ["--teacher", TEACHER, "--device", "cpu", "--images", home / "sets/colors/test"]
    words = ["extract-features", *map(str, words), "--out", str(tmp_path / "cache")]
    assert CliRunner().invoke(main, words).exit_code == 0
    more = ("--datasets", "colors", "--json")
    done = run(tmp_path / "cache/images", home / "sets", tmp_path / "out", *more)
    [result] = json.loads(done.stdout)["results"]
    assert result["metrics"]["near-duplicates"] == 1
    assert result["details"]["images_without"] == 0
    assert "accuracy without near-duplicates" not in result["metrics"]


def test_several_caches_are_searched_and_crops_are_said(home, tmp_path):
    more = ("--cache", CACHES / "views/images", "--datasets", "colors", "--threshold", "0.8")
    done = run(CACHES / "int8/images", home / "sets", tmp_path / "out", *more)
    assert done.exit_code == 0, done.output
    assert "A cache holds random crops" in done.stdout
    with (tmp_path / "out/duplicates.csv").open() as file:
        caches = {row["train_cache"] for row in csv.DictReader(file)}
    assert caches == {str(CACHES / "int8/images"), str(CACHES / "views/images")}


def test_a_teacher_without_a_text_tower_finds_pairs_without_scores(home, tmp_path):
    teacher = "timm/test_vit/random:0"
    words = ["--teacher", teacher, "--device", "cpu", "--images", home / "train"]
    words = ["extract-features", *map(str, words), "--out", str(tmp_path / "cache")]
    assert CliRunner().invoke(main, words).exit_code == 0
    more = ("--datasets", "colors", "--threshold", "0.9999")
    done = run(tmp_path / "cache/images", home / "sets", tmp_path / "out", *more, teacher=teacher)
    assert done.exit_code == 0, done.output
    [result] = read_results(tmp_path / "out" / SCORES)
    assert set(result.metrics) == {"near-duplicates"}
    assert result.details["images_with_duplicate"] >= 5


@pytest.mark.parametrize(
    ("cache", "teacher", "more", "code", "words"),
    [
        ("plain/images", "ResNet-mini-64/random:0", (), 1, "was made by another encoder than"),
        ("plain/images", STUDENT, (), 1, "was made by another encoder than"),
        ("plain/texts", TEACHER, (), 1, "holds text features, expected image features"),
        ("tokens/images", TEACHER, (), 1, "tokens"),
        ("unfinished/images", TEACHER, (), 1, "manifest.json"),
        ("plain/images", TEACHER, ("--datasets", "nothing"), 1, "neither a benchmark nor"),
        ("plain/images", TEACHER, ("--threshold", "1.5"), 2, "--threshold"),
        ("plain/images", TEACHER, ("--threshold", "0"), 2, "--threshold"),
    ],
)
def test_refused_in_one_line(home, tmp_path, cache, teacher, more, code, words):
    done = run(CACHES / cache, home / "sets", tmp_path / "out", *more, teacher=teacher)
    assert done.exit_code == code, done.output
    last = done.stderr.rstrip("\n").split("\n")[-1]
    assert words in last and len(last) < 500 + len(str(tmp_path)) + 2 * len(str(CACHES))
    assert not (tmp_path / "out/scores.json").exists()

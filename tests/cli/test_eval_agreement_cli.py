"""``dimefm eval agreement``: what it prints, writes and refuses."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.evaluate.agreement.tables import terminal
from dimefm.runs.scores import SCORES, Result, Scores, read_results

DATA = Path(__file__).parents[1] / "data"
STUDENT = DATA / "before/runs/image"
TEACHER = DATA / "teacher"
OTHER = "ResNet-mini-64/random:0"


def run(student, teacher, root, out, *more):
    words = ["--model", student, "--teacher", teacher, "--root", root, "--out", out, *more]
    words = ["eval", "agreement", "--device", "cpu", *map(str, words)]
    return CliRunner().invoke(main, words)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A root of two datasets, one with an image that cannot be read, and one that is damaged."""
    home = tmp_path_factory.mktemp("home")
    for name in ("colors", "holes"):
        shutil.copytree(DATA / "before/datasets/colors", home / "sets" / name)
    first = min((home / "sets/holes/test").glob("*/*"))
    first.write_bytes(b"no image")
    (home / "sets/dtd").mkdir()
    (home / "sets/dtd/test.parquet").write_bytes(b"<html>")
    return home


@pytest.fixture(scope="module")
def said(home):
    done = run(STUDENT, TEACHER, home / "sets", home / "out", "--datasets", "colors,holes")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_student_is_compared_with_its_teacher(home, said):
    colors, holes = read_results(home / "out" / SCORES)
    assert (colors.task, colors.main_metric) == ("agreement", "top-1 agreement")
    assert (colors.samples, colors.unreadable) == (20, 0)
    assert (holes.samples, holes.unreadable) == (19, 1)
    for result in (colors, holes):
        image, text = result.details["image"], result.details["text"]
        assert image["measure"] == text["measure"] == "cosine"
        assert image["low"] < image["mean"] < 0.9
        assert text["mean"] == pytest.approx(1)  # the student has the teacher's text tower
        assert -1 <= result.details["rank_correlation"] <= 1
        assert result.details["kl_teacher_student"] > 0
    assert max(map(len, said.split("\nwritten:")[0].splitlines())) <= 80
    assert "1 unreadable images left out of 20" in said


def test_both_scores_are_those_of_eval_elevater(home, said):
    colors, holes = read_results(home / "out" / SCORES)
    for model, name in ((STUDENT, "student"), (TEACHER, "teacher")):
        out = home / f"alone-{name}"
        words = ["--model", model, "--root", home / "sets", "--datasets", "colors", "holes"]
        words = ["eval", "elevater", "--device", "cpu", *map(str, words), "--out", str(out)]
        assert CliRunner().invoke(main, words).exit_code == 0
        alone = read_results(out / SCORES)
        for result, other in zip((colors, holes), alone, strict=True):
            assert result.metrics[f"{name} accuracy"] == other.value
    difference = colors.details["difference"]
    assert difference["difference"] == pytest.approx(
        colors.metrics["student accuracy"] - colors.metrics["teacher accuracy"]
    )
    assert difference["low"] <= difference["difference"] <= difference["high"]


def test_the_forgotten_classes_are_in_a_table(home, said):
    with (home / "out/forgotten.csv").open() as file:
        rows = list(csv.DictReader(file))
    results = read_results(home / "out" / SCORES)
    for result in results:
        of_dataset = [row for row in rows if row["dataset"] == result.dataset]
        assert len(of_dataset) == result.details["forgotten_classes"]
        losses = [float(row["loss"]) for row in of_dataset]
        assert losses == sorted(losses, reverse=True)
        assert all(loss > 0 for loss in losses)
        for row in of_dataset:
            net = int(row["lost"]) - int(row["gained"])
            assert net == pytest.approx(float(row["loss"]) * int(row["images"]))
    page = (home / "out/report.md").read_text()
    assert rows
    assert rows[0]["class"] in said and f"| {rows[0]['class']} |" in page


def test_a_model_agrees_with_itself(home, tmp_path):
    words = ("--datasets", "colors", "--json")
    done = run(TEACHER, TEACHER, home / "sets", tmp_path / "out", *words)
    document = json.loads(done.stdout)
    [result] = document["results"]
    assert result["metrics"]["top-1 agreement"] == 1
    details = result["details"]
    assert details["rank_correlation"] == pytest.approx(1)
    assert details["kl_teacher_student"] == pytest.approx(0)
    assert details["image"]["low"] == pytest.approx(1)
    assert details["forgotten_classes"] == 0
    assert (details["difference"]["low"], details["difference"]["high"]) == (0, 0)
    assert document["settings"]["one_space"] == "both are one encoder"


def test_models_of_two_spaces_are_compared_by_cka(home, tmp_path):
    done = run(OTHER, TEACHER, home / "sets", tmp_path / "out", "--datasets", "colors")
    assert done.exit_code == 0, done.output
    [result] = read_results(tmp_path / "out" / SCORES)
    assert result.details["image"]["measure"] == "linear CKA"
    assert 0 <= result.details["image"]["mean"] <= 1
    assert "linear CKA, since nothing says" in done.stdout


def test_a_second_run_encodes_nothing(home, said, monkeypatch):
    from dimefm.models.encoder import Encoder

    def refuse(*_):
        raise AssertionError("an image or a sentence was encoded again")

    before = read_results(home / "out" / SCORES)
    monkeypatch.setattr("dimefm.evaluate.profiling.facts", lambda encoder: {})
    monkeypatch.setattr(Encoder, "encode_image", refuse)
    monkeypatch.setattr(Encoder, "encode_text", refuse)
    done = run(STUDENT, TEACHER, home / "sets", home / "out", "--datasets", "colors")
    assert done.exit_code == 0, done.output
    assert read_results(home / "out" / SCORES) == before[:1]


def test_a_damaged_dataset_fails_by_itself(home, tmp_path):
    done = run(STUDENT, TEACHER, home / "sets", tmp_path / "out", "--datasets", "colors", "dtd")
    assert done.exit_code == 1
    assert "1 of 2 datasets could not be scored: dtd" in done.stderr.splitlines()[-1]
    [result] = read_results(tmp_path / "out" / SCORES)
    assert result.dataset == "colors"


@pytest.mark.parametrize(
    ("student", "more", "code", "words"),
    [
        (STUDENT, ("--datasets", "nothing"), 1, "'nothing' is neither a benchmark nor a folder"),
        (STUDENT, ("--datasets", "dtd"), 1, "the one dataset here could not be scored: dtd"),
        (STUDENT, ("--datasets", "mnist"), 1, "none of the datasets asked for is here"),
        (STUDENT, ("--resamples", "1"), 2, "--resamples"),
        ("ResNet-mini-64", (), 1, "an architecture without weights"),
        ("nowhere/run", (), 1, "nowhere/run"),
        ("timm/test_vit/random:0", (), 1, "is an image model without a text tower"),
    ],
)
def test_refused_in_one_line(home, tmp_path, student, more, code, words):
    done = run(student, TEACHER, home / "sets", tmp_path / "out", *more)
    assert done.exit_code == code
    assert words in done.stderr.rstrip("\n").split("\n")[-1]
    assert not (tmp_path / "out/scores.json").exists()


def test_a_foreign_folder_is_left_alone(home, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.png").write_bytes(b"mine")
    done = run(STUDENT, TEACHER, home / "sets", tmp_path / "photos")
    assert done.exit_code == 1
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["me.png"]


def test_no_table_is_wider_than_a_terminal(home, said):
    content = json.loads((home / "out" / SCORES).read_text())
    [result, *_] = read_results(home / "out" / SCORES)
    metrics = {name.replace("accuracy", "mean_per_class"): 1.0 for name in result.metrics}
    close = {"measure": "cosine", "mean": -0.333, "low": -0.999, "rows": 9}
    details = {
        **result.details,
        "metric": "mean_per_class",
        "image": close,
        "text": close,
        "rank_correlation": -0.123,
        "kl_teacher_student": 112.36,
        "forgotten": [
            {
                **dict.fromkeys(("teacher", "student"), 1.0),
                **dict.fromkeys(("images", "lost", "gained"), 1000),
                "name": "a class with a long name of its own",
            }
        ],
    }
    wide = Result(
        task="agreement",
        dataset="fgvc-aircraft-2013b-variants102",
        metrics=metrics,
        main_metric="top-1 agreement",
        samples=50_000,
        details=details,
    )
    scores = Scores("model", None, "protocol", (wide,), settings=content["settings"])
    assert max(map(len, terminal(scores).splitlines())) <= 80
    tables = [line for line in terminal(scores).splitlines() if set(line) <= {"-", " "} and line]
    assert len(tables) == 4 and not any(line.startswith(" ") for line in tables)

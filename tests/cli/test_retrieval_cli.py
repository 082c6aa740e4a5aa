"""``dimefm eval retrieval --model``: what it prints and writes, and flags that do not fit."""

import json

import pytest
from click.testing import CliRunner

from dimefm.cli import main
from tests.evaluate.datasets import write

TEACHER = "ResNet-mini-64/random:0"


def run(*arguments):
    return CliRunner().invoke(main, ["eval", "retrieval", *map(str, arguments)])


@pytest.fixture
def pairs(tmp_path, picture):
    lines = ["filepath,title"]
    for number in range(12):
        write(tmp_path / f"images/{number}.png", picture(number))
        lines += [f"{number}.png,picture {number} {side}" for side in ("left", "right")]
    write(tmp_path / "pairs.csv", "\n".join(lines))
    return tmp_path / "pairs.csv"


def test_a_model_is_scored_and_a_second_call_says_the_same(pairs, tmp_path):
    out = tmp_path / "scores"
    first = run("--model", TEACHER, "--data", pairs, "--out", out)
    assert first.exit_code == 0, first.output
    assert "text to image" in first.output and "mean recall" in first.output
    assert max(map(len, first.stdout.split("\n\nwritten")[0].splitlines())) <= 80
    assert len((out / "retrieved.jsonl").read_text().splitlines()) == 36
    one = run("--model", TEACHER, "--data", pairs, "--captions", "first", "--out", out, "--json")
    assert one.exit_code == 0, one.output
    content = json.loads(one.stdout)
    assert content["settings"]["captions"] == "first"
    assert content["results"][0]["details"]["directions"]["text to image"]["queries"] == 12
    assert content == json.loads((out / "scores.json").read_text())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "nothing to score"),
        (["--model", TEACHER], "--data is missing"),
        (["--data", "x"], "--model is missing"),
        (["--images", "x"], "--texts is missing"),
        (["--model", TEACHER, "--images", "x"], "a model and caches: expected"),
        (["--images", "x", "--texts", "y", "--layout", "coco"], "--layout is for a model"),
        (["--model", TEACHER, "--data", "x"], "--model needs a folder"),
        (["--model", TEACHER, "--data", "absent.json", "--out", "o"], "no such file or folder"),
        (["--model", "no-such/model", "--data", "x", "--out", "o"], "no-such"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*flags)
    assert result.exit_code != 0
    assert told in result.stderr
    assert "Fix: " in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_split_has_a_name_or_two_numbers(pairs, tmp_path):
    result = run("--model", TEACHER, "--data", pairs, "--split", "0:1", "--out", tmp_path / "o")
    assert result.exit_code != 0
    assert "unknown split '0:1'" in result.stderr

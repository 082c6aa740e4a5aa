"""Flags that users of open_clip, img2dataset and clip_benchmark try: taken, or told at once."""

import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.cli._open_clip_habits import FLAGS, MOST, PRECISIONS

TELLING = "(docs/training.md, From open_clip)"
NEEDED = {
    "train": ("train",),
    "extract-features": ("extract-features",),
    "pack": ("pack", "photos"),
    "elevater": ("eval", "elevater"),
}


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_told_with_its_name_here(command):
    for flag, meaning in FLAGS[command].items():
        for spelled in (flag, flag.replace("-", "_").replace("__", "--", 1)):
            result = CliRunner().invoke(main, [*NEEDED[command], spelled, "x"])
            assert result.exit_code == 2
            assert f"{flag} is {meaning}" in result.stderr and TELLING in result.stderr
            assert len(result.stderr.splitlines()[-1]) <= 500


def test_all_flags_of_a_command_line_are_told_at_once():
    words = ["train", "--lr", "1", "--train-data=a", "--model", "b", "--csv-img-key", "c"]
    line = CliRunner().invoke(main, words).stderr.splitlines()[-1]
    for flag in ("--train-data", "--model", "--csv-img-key"):
        assert line.count(f"{flag} is ") == 1
    assert "--lr is" not in line


def test_a_long_command_line_is_told_in_one_line_of_bearable_length():
    line = CliRunner().invoke(main, ["train", *FLAGS["train"]]).stderr.splitlines()[-1]
    assert line.count(" is ") >= MOST and " ... (" in line and len(line) <= 500


def test_another_unknown_option_has_the_nearest_one():
    result = CliRunner().invoke(main, ["train", "--imagess", "a"])
    assert "Did you mean" in result.stderr and TELLING not in result.stderr


@pytest.mark.parametrize("value", PRECISIONS)
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--images", "nowhere", "--out", "run"),
        ("extract-features", "--teacher", "RN50/random:0", "--images", "nowhere", "--out", "c"),
    ],
    ids=lambda words: words[0],
)
def test_names_of_precisions_are_taken_and_said(words, value):
    result = CliRunner().invoke(main, [*words, "--precision", value])
    assert result.exit_code == 1 and "nowhere: no such file" in result.stderr
    assert f"--precision {value}: --precision bf16" in result.stderr

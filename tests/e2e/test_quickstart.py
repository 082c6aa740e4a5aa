"""The quickstart is the main job end to end; a twentieth of it runs once for the whole suite
(fixture ``quickstarted``).
"""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main


@pytest.mark.slow
def test_the_student_keeps_most_of_the_teacher(tmp_path):
    result = CliRunner().invoke(main, ["quickstart", "--out", str(tmp_path / "q")])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "q/summary.json").read_text(encoding="utf-8"))
    assert summary["student_accuracy"] >= 0.9 * summary["teacher_accuracy"]
    assert summary["teacher_accuracy"] > 0.75
    assert summary["untrained_accuracy"] < 0.25
    assert set(summary["datasets"]) == {"digits", "shapes"}
    for scores in summary["datasets"].values():
        assert scores["student"] > 4 * scores["chance"]


def test_a_twentieth_of_it_learns_the_colours_of_shapes(quickstarted):
    summary = json.loads((quickstarted / "summary.json").read_text(encoding="utf-8"))
    shapes = summary["datasets"]["shapes"]
    assert shapes["teacher"] > 4 * shapes["chance"]
    assert shapes["student"] > 4 * shapes["chance"]
    assert shapes["untrained"] < 4 * shapes["chance"]
    assert summary["chance"] < 0.1
    assert summary["student_params"] * 4 <= summary["teacher_params"]


def test_its_report_is_there(quickstarted):
    assert "| mean |" in (quickstarted / "report.md").read_text(encoding="utf-8")
    with Image.open(quickstarted / "report.png") as image:
        assert image.width > 800


def test_images_and_sentences_are_not_paired(quickstarted):
    images = json.loads((quickstarted / "cache/images/manifest.json").read_text(encoding="utf-8"))
    texts = json.loads((quickstarted / "cache/texts/manifest.json").read_text(encoding="utf-8"))
    assert images["shards"][0]["rows"] != texts["shards"][0]["rows"]
    assert images["encoder"]["weights_sha256"] == texts["encoder"]["weights_sha256"]

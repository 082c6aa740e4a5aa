"""Everything that is scored is a Result, kept in scores.json and read back from there."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimefm.errors import DataError
from dimefm.evaluate.benchmark import load
from dimefm.evaluate.datasets.layouts import LAYOUTS
from dimefm.evaluate.result import classification_result
from dimefm.evaluate.zero_shot import elevater, evaluate
from dimefm.models.loading import load_encoder
from dimefm.runs.scores import (
    RETRIEVAL,
    SCORES,
    ZERO_SHOT,
    ZERO_SHOT_BY_TOKENS,
    read_results,
)

BEFORE = Path(__file__).parents[1] / "data/before"


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("ResNet-mini-64/random:0", "cpu")


@pytest.fixture
def root(tmp_path):
    """Two datasets of two classes with two images each, and a third that cannot be read."""
    random = np.random.default_rng(0)
    sets = tmp_path / "sets"
    for dataset in ("shapes", "letters"):
        for name in ("disc", "star"):
            folder = sets / dataset / "test" / name
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        (sets / dataset / "classnames.txt").write_text("disc\nstar\n")
    (sets / "dtd").mkdir()
    (sets / "dtd/test.parquet").write_bytes(b"<html>")
    return sets


def test_a_result_has_the_metric_of_its_benchmark_and_counts_unreadable_images():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    labels = np.array([0, 1, 1, 1])
    readable = np.array([0, 1, 3])
    result = classification_result(load("patch-camelyon"), probabilities, labels, readable)
    assert (result.task, result.dataset) == (ZERO_SHOT, "patch-camelyon")
    assert result.metrics == {"accuracy": pytest.approx(2 / 3)}
    assert result.value == result.metrics[result.main_metric]
    assert (result.samples, result.unreadable, result.chance) == (3, 1, 0.5)


def test_evaluating_without_a_folder_leaves_no_file(encoder, root, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = sorted(tmp_path.rglob("*"))
    seen = []
    results = evaluate(encoder, root, names=["shapes", "letters"], on_result=seen.append)
    assert [result.dataset for result in results] == ["shapes", "letters"]
    assert seen == results
    assert sorted(tmp_path.rglob("*")) == before


def test_results_are_those_that_scores_json_keeps(encoder, root, tmp_path):
    results = evaluate(encoder, root, names=["shapes", "letters"], out=tmp_path / "kept")
    scores = elevater(encoder, root, tmp_path / "scores", ["shapes", "letters"])
    assert results == list(scores.results)
    assert results == read_results(tmp_path / "kept" / SCORES)
    kept = json.loads((tmp_path / "scores" / SCORES).read_text())
    assert kept == json.loads(json.dumps(scores.to_json()))
    assert kept["mean"] == pytest.approx(np.mean([result.value for result in results]))


def test_a_dataset_that_cannot_be_scored_stops_the_evaluation(encoder, root):
    with pytest.raises(DataError, match=r"test\.parquet: not a readable Parquet file"):
        evaluate(encoder, root, names=["dtd", "shapes"])
    with pytest.raises(DataError, match="no folder of the dataset 'mnist'"):
        evaluate(encoder, root, names=["shapes", "mnist"])


def test_failures_are_passed_on_where_they_are_wanted(encoder, root):
    failures = {}
    names = ["dtd", "shapes", "mnist"]
    results = evaluate(encoder, root, names=names, on_failure=failures.__setitem__)
    assert [result.dataset for result in results] == ["shapes"]
    assert set(failures) == {"dtd", "mnist"}


def test_a_file_of_zero_shot_scores_is_read():
    [result] = read_results(BEFORE / "runs/free/scores" / SCORES)
    assert (result.task, result.dataset, result.samples) == (ZERO_SHOT, "colors", 20)
    assert (result.metrics, result.value, result.chance) == ({"accuracy": 0.55}, 0.55, 0.25)
    assert result.details == {"classes": 4, "templates": 2}


def test_a_file_of_retrieval_scores_is_read():
    [result] = read_results(BEFORE / "scores/retrieval" / SCORES)
    assert (result.task, result.samples) == (RETRIEVAL, 34)
    assert result.value == result.metrics["text to image R@1"] == 0.045454545454545456
    assert result.metrics["image to text R@10"] == 0.6818181818181818
    assert result.details["directions"]["image to text"] == {"queries": 22, "candidates": 22}


def test_scores_by_tokens_are_told_apart(tmp_path):
    path = tmp_path / SCORES
    path.write_text('{"by": "tokens", "scores": [{"dataset": "cats", "value": 0.25}]}')
    [result] = read_results(path)
    assert (result.task, result.value) == (ZERO_SHOT_BY_TOKENS, 0.25)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": [1]}', '{"scores": [{}]}'])
def test_a_damaged_file_is_one_line(tmp_path, text):
    (tmp_path / SCORES).write_text(text)
    with pytest.raises(
        DataError, match=r"scores\.json: cannot be read as scores .*. Fix: evaluate ag"
    ):
        read_results(tmp_path / SCORES)


def test_the_labels_of_a_test_split_are_read_once(encoder, root, monkeypatch):
    layout = LAYOUTS["imagefolder"]
    read = []

    def counted(folder, paths, benchmark):
        read.append(folder.name)
        return layout.read(folder, paths, benchmark)

    monkeypatch.setitem(LAYOUTS, "imagefolder", dataclasses.replace(layout, read=counted))
    evaluate(encoder, root, names=["shapes", "letters"])
    assert read == ["shapes", "letters"]


SCORE = '{"scores": [{"dataset": "mnist", "value": VALUE}]}'


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        SCORE.replace("VALUE", "9" * 5_000),
        SCORE.replace("VALUE", "NaN"),
        SCORE.replace("VALUE", "1e999"),
        SCORE.replace("VALUE", "true"),
        SCORE.replace("VALUE", '"0.5"'),
        SCORE.replace("VALUE", "0.5").replace('"mnist"', "7"),
        SCORE.replace("VALUE", '0.5, "images": "many"'),
        '{"scores": 5}',
        '{"scores": [5]}',
        '{"scores": [{"recall": [0.5], "direction": "a"}], "at": ["x"]}',
        '{"scores": [{"recall": [0.5], "direction": []}], "at": [1]}',
        '{"scores": [{"recall": [0.5], "direction": "a"}], "at": [1], "images": 3}',
    ],
)
def test_scores_of_wrong_types_are_one_line(tmp_path, text):
    (tmp_path / SCORES).write_text(text)
    with pytest.raises(DataError, match="cannot be read as scores") as caught:
        read_results(tmp_path / SCORES)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))

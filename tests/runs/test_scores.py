"""Scores of every form are read as results."""

import dataclasses
import socket
from pathlib import Path

import pytest

from dimefm.errors import DataError
from dimefm.evaluate import profiling, score_tables
from dimefm.models.loading import load_encoder
from dimefm.runs.scores import REPORT, SCORES, Failure, Result, Scores, read_results, write_scores
from dimefm.storage.files import to_json

TEACHER = Path(__file__).parents[1] / "data" / "teacher"


def scores() -> Scores:
    result = Result(
        task="linear probe",
        dataset="digits",
        metrics={"accuracy": 0.75, "mean_per_class": 0.5},
        main_metric="accuracy",
        samples=8,
        unreadable=1,
        chance=0.1,
        note="8 of 10 test images: split differs",
        details={"seeds": [0, 1]},
    )
    return Scores(
        model="runs/first",
        weights_sha256="ab" * 32,
        protocol="clean",
        results=(result,),
        summary={"mean": 0.75},
        missing=("dtd",),
        failed=(Failure("mnist", "no test split"),),
    )


def test_the_general_form_is_read_as_it_was_written(tmp_path):
    written = scores()

    write_scores(tmp_path, written, score_tables.markdown(written, "Linear probe"))

    assert read_results(tmp_path / SCORES) == list(written.results)
    page = (tmp_path / REPORT).read_text()
    assert "# Linear probe of runs/first" in page and "75.00" in page


def test_a_table_says_what_is_missing_and_what_was_left_out():
    table = score_tables.terminal(scores())

    assert "mean: 75.00" in table
    assert "digits: 1 unreadable images left out" in table
    assert "not here: dtd" in table
    assert "failed: mnist: no test split" in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", {"accuracy": 1.5}),
        ("metrics", {"accuracy": "high"}),
        ("metrics", {"recall": 0.5}),
        ("main_metric", 3),
        ("dataset", None),
        ("chance", -1),
        ("details", []),
    ],
)
def test_a_damaged_result_is_refused(tmp_path, key, value):
    content = scores().to_json()
    content["results"][0][key] = value
    (tmp_path / SCORES).write_text(to_json(content))

    with pytest.raises(DataError, match="cannot be read as scores"):
        read_results(tmp_path / SCORES)


def test_facts_name_the_machine_and_no_host():
    encoder = load_encoder(str(TEACHER), "cpu")

    known = profiling.facts(encoder)

    assert known["image_parameters"] == encoder.image_parameters
    assert known["machine"]["cores"] >= 1
    assert socket.gethostname() not in to_json(known)


def test_a_table_that_is_too_wide_leaves_columns_out():
    wide = dataclasses.replace(
        scores().results[0],
        task="linear probe, 20-shot",
        dataset="a-dataset-of-a-rather-long-name",
    )

    table = score_tables.terminal(dataclasses.replace(scores(), results=(wide,)))

    head = table.splitlines()[0]
    assert "chance" not in head and "score" in head
    assert max(map(len, table.splitlines())) <= 80

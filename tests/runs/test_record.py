"""``run.json`` as a typed record: what is written is read back, and a wrong type is one line."""

import json

import pytest

from dimefm.errors import ModelError
from dimefm.runs import folder
from dimefm.runs.record import RunRecord


def written(tmp_path, **values):
    """Write these values as the record of a run folder; return the folder."""
    (tmp_path / folder.FILE).write_text(json.dumps({"kind": "clip", **values}))
    return tmp_path


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = RunRecord(
        kind="image-tower",
        model_cfg={"embed_dim": 8},
        teacher={"name": "a"},
        teachers=[{"name": "a"}],
        steps=6,
        rows=17,
        image_parameters=5,
        parameters=5,
        fingerprints={"image_cache": ["x"], "text_cache": [], "neighbours": ["y"]},
        libraries={"torch": "2"},
        ema=0.5,
    )
    (tmp_path / folder.FILE).write_text(record.to_json())
    assert folder.read(tmp_path) == record
    assert list(json.loads(record.to_json())) == [
        "kind",
        "model_cfg",
        "preprocess_cfg",
        "teacher",
        "teacher_at",
        "teachers",
        "steps",
        "rows",
        "image_parameters",
        "parameters",
        "image_cache",
        "text_cache",
        "neighbours",
        "libraries",
        "ema",
    ]


def test_keys_of_a_newer_version_are_ignored(tmp_path):
    assert folder.read(written(tmp_path, weather="fair", steps=3)).steps == 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", "6", "'steps' is \"6\", expected a whole number"),
        ("rows", True, "'rows' is true, expected a whole number"),
        ("steps", None, "'steps' is null, expected a whole number"),
        ("model_cfg", [], "'model_cfg' is [], expected an object"),
        ("teacher", 3, "'teacher' is 3, expected an object or null"),
        ("ema", "much", "'ema' is \"much\", expected a number or null"),
        ("image_cache", "x", "'image_cache' is \"x\", expected a list"),
        ("kind", 1, "'kind' is 1, expected a text"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(tmp_path, key, value, message):
    with pytest.raises(ModelError) as error:
        folder.read(written(tmp_path, **{key: value}))
    assert f"{tmp_path / folder.FILE}: {message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_record_without_a_kind_is_refused(tmp_path):
    (tmp_path / folder.FILE).write_text("{}")
    with pytest.raises(ModelError, match="run.json: has no 'kind'"):
        folder.read(tmp_path)


def test_a_whole_number_is_a_number(tmp_path):
    assert folder.read(written(tmp_path, ema=0)).ema == 0

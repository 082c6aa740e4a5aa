"""Small JSON and TOML files are read within bounds, and each fault is one reason."""

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimefm.storage import small_files
from dimefm.storage.small_files import Unreadable, parse_json, parse_toml, read_json, read_text

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=9)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
HOSTILE_JSON = {
    "100 brackets": "[" * 100 + "]" * 100,
    "100,000 brackets": "[" * 100_000 + "]" * 100_000,
    "100,000 open brackets": "[" * 100_000,
    "nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "10,000 digits": "9" * 10_000,
    "23 digits": "1" + "0" * 22,
    "cut": '{"a": [1, 2',
    "empty": "",
    "NUL": "\x00",
    "no JSON": "it's",
}
HOSTILE_TOML = {
    "100 brackets": "a = " + "[" * 100 + "]" * 100,
    "100,000 brackets": "a = " + "[" * 100_000 + "]" * 100_000,
    "nested tables": "a = " + "{a = " * 100_000 + "1" + "}" * 100_000,
    "a long key": "[" + ".".join("a" * 100_000) + "]",
    "a long quoted key": "[" + ". ".join(['"a"'] * 100_000) + "]",
    "10,000 digits": "a = " + "9" * 10_000,
    "10,000 hexadecimal digits": "a = 0x" + "f" * 10_000,
    "23 digits": "steps = 1" + "0" * 22,
    "cut": "a = [1, 2",
    "NUL": "a = \x00",
    "twice": "a = 1\na = 2",
}


@given(VALUES)
def test_what_json_writes_is_read(value):
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_one_reason(name):
    check_refusal(parse_json, HOSTILE_JSON[name])


@pytest.mark.parametrize("name", HOSTILE_TOML)
def test_hostile_toml_is_one_reason(name):
    check_refusal(parse_toml, HOSTILE_TOML[name])


def check_refusal(parse, text):
    started = time.monotonic()
    with pytest.raises(Unreadable) as caught:
        parse(text)
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_one_reason(text):
    for parse in (parse_json, parse_toml):
        try:
            parse(text)
        except Unreadable as error:
            assert "\n" not in str(error)


def test_only_a_small_regular_file_of_utf_8_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(Unreadable, match="not UTF-8: byte 7"):
        read_json(path)
    monkeypatch.setattr(small_files, "MOST_BYTES", 10)
    with pytest.raises(Unreadable, match="more than 4 bytes"):
        read_text(path, 4)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(Unreadable, match="no regular file"):
            read_json(tmp_path / name)

"""One guard around each row: whatever a library raises on a bad row is that row's own error."""

import errno
import json
import lzma
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm.cache import FeatureCache
from dimefm.cache.plan import QUARANTINE
from dimefm.data import open_rows
from dimefm.data.lines import LONGEST_TEXT
from dimefm.data.rows import MOST_DIGITS, Row, Shard, label_of, row_guard
from dimefm.errors import BadRow, DataError
from dimefm.extract.extract import Settings, extract
from tests.data.boxes import put, write_tar


class Raising(Shard):
    """Three rows; the second raises a given error."""

    def __init__(self, error):
        super().__init__("/raw/shard", "shard")
        self.error = error

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise self.error
        return Row(("a", "b", "c")[index])

    def keys(self):
        return ["a", "b", "c"]


FAULTS_OF_A_ROW = [
    ValueError("a cell\nof two lines"),
    RecursionError("maximum recursion depth exceeded"),
    OverflowError("Python int too large"),
    zlib.error("Error -3"),
    lzma.LZMAError("Corrupt input data"),
    KeyError("column"),
    IndexError("list index out of range"),
    OSError("cannot identify image"),
    SystemError("a library's own"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ValueError("x" * 100_000),
    ValueError(),
]


@pytest.mark.parametrize("error", FAULTS_OF_A_ROW, ids=repr)
def test_what_a_library_raises_on_a_row_is_a_bad_row(error):
    shard = Raising(error)
    with pytest.raises(BadRow) as caught:
        shard[1]
    message = str(caught.value)
    assert type(error).__name__ in message
    assert "\n" not in message
    assert len(message) < 300
    assert [shard[0].key, shard[2].key] == ["a", "c"]
    with pytest.raises(BadRow), row_guard():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EMFILE, "Too many open files"),
        DataError("leads outside"),
        BadRow("a reason"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_errors_of_the_machine_and_of_dimefm_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught:
        Raising(error)[1]
    assert caught.value is error
    with pytest.raises(type(error)) as caught, row_guard():
        raise error
    assert caught.value is error


def test_a_shard_still_ends_where_it_ends():
    shard = Raising(ValueError())
    with pytest.raises(IndexError):
        shard[3]


def test_a_label_is_a_number_a_name_or_too_long():
    assert label_of("7") == 7
    assert label_of("cat") == "cat"
    assert label_of("9" * MOST_DIGITS) == int("9" * MOST_DIGITS)
    with pytest.raises(BadRow, match="5,000 digits"):
        label_of("1" * 5_000)


WRONG_KEYS = ["a\0b", "k" * 70_000, "ü" * 40_000, "\0"]
FORMS = ("jsonl", "csv", "tsv", "parquet")


def _table_of(path, keys):
    """Write a table of one sentence for each key."""
    if path.suffix == ".jsonl":
        lines = [json.dumps({"key": key, "text": "a cat"}) for key in keys]
        path.write_text("\n".join(lines))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"key": keys, "text": ["a cat"] * len(keys)}), path)
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [f"key{mark}text"] + [f"{key}{mark}a cat" for key in keys]
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_no_cache_can_hold_costs_its_row_alone(tmp_path, tiny_teacher, form):
    keys = ["first", *WRONG_KEYS, "last"]
    rows = open_rows([_table_of(tmp_path / f"a.{form}", keys)], "text")
    long_keys_are_cut = form == "parquet"
    bad = [1, 4] if long_keys_are_cut else [1, 2, 3, 4]
    extract(tiny_teacher, rows, "text", tmp_path / "out", Settings())
    assert FeatureCache(tmp_path / "out").manifest.shards[0].bad == tuple(bad)
    quarantine = (tmp_path / "out" / QUARANTINE).read_text()
    assert len(quarantine) < 50_000


@pytest.mark.parametrize("form", ["tar", "folder", "json member", "parquet", "jsonl", "csv"])
def test_a_text_larger_than_a_line_may_be_is_a_bad_row(tmp_path, picture, form):
    size = LONGEST_TEXT + 1
    long = b"ab " * (size // 3 + 1)
    if form == "tar":
        path = write_tar(tmp_path / "a.tar", [("a.txt", long), ("b.txt", b"ok")])
    elif form == "json member":
        member = b'{"caption": "' + long + b'"}'
        path = write_tar(tmp_path / "a.tar", [("a.json", member), ("b.txt", b"ok")])
    elif form == "folder":
        path = tmp_path / "photos"
        for name, text in (("a", long), ("b", b"ok")):
            put(path / f"{name}.png", picture(1))
            put(path / f"{name}.txt", text)
    elif form == "jsonl":
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "' + long + b'"}\n{"text": "ok"}\n')
    elif form == "csv":
        path = tmp_path / "a.csv"
        path.write_bytes(b"key,text\na," + long + b"\nb,ok\n")
    else:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": [long.decode(), "ok"]}), path)
    rows = open_rows([path], "text")
    with pytest.raises(BadRow, match=r"16,777,216"):
        rows[0]
    assert rows[1].texts == ("ok",)

"""Long files are several shards; together the parts are the file, and extraction resumes at a
part.
"""

import dataclasses
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm.cache import FeatureCache
from dimefm.data import open_rows, subshards
from dimefm.data.alignment import align
from dimefm.errors import DataError
from dimefm.extract.extract import Settings, extract

LINES = [f"sentence number {n}" for n in range(7)]


def write(folder, ending):
    path = folder / f"x.{ending}"
    if ending == "parquet":
        table = pa.table({"key": [f"k{n}" for n in range(7)], "text": LINES})
        pq.write_table(table, path, row_group_size=2)
    elif ending == "jsonl":
        path.write_text(
            "".join(
                json.dumps({"key": f"k{n}", "text": line}) + "\n" for n, line in enumerate(LINES)
            )
        )
    elif ending == "csv":
        path.write_text("key,title\n" + "".join(f"k{n},{line}\n" for n, line in enumerate(LINES)))
    elif ending == "tsv":
        path.write_text("".join(f"k{n}\t{line}\n" for n, line in enumerate(LINES)))
    else:
        path.write_text("".join(f"{line}\n" for line in LINES))
    return path


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "parquet"])
def test_the_parts_of_a_file_are_the_file(tmp_path, monkeypatch, ending):
    path = write(tmp_path, ending)
    whole = open_rows([path], "text")
    assert [shard.name for shard in whole.shards] == [path.name]
    monkeypatch.setattr(subshards, "ROWS_PER_PART", 3)
    cut = open_rows([path], "text")
    assert [shard.name for shard in cut.shards] == [
        f"{path.name}/{i:05d}" for i in range(len(cut.shards))
    ]
    assert [len(shard) for shard in cut.shards] == ([2, 2, 3] if ending == "parquet" else [3, 3, 1])
    assert list(cut) == list(whole)
    assert [key for shard in cut.shards for key in shard.keys()] == whole.shards[0].keys()
    assert [shard.path for shard in cut.shards] == [path] * len(cut.shards)
    assert list(pickle.loads(pickle.dumps(cut.shards[1]))) == list(cut.shards[1])
    with pytest.raises(IndexError):
        cut.shards[0][len(cut.shards[0])]


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "parquet"])
def test_a_file_of_exactly_so_many_rows_is_one_shard(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(subshards, "ROWS_PER_PART", 7)
    assert [shard.name for shard in open_rows([write(tmp_path, ending)], "text").shards] == [
        f"x.{ending}"
    ]


def test_dime_fms_shards_stay_one_to_one(tmp_path, monkeypatch):
    monkeypatch.setattr(subshards, "ROWS_PER_PART", 3)
    assert [len(shard) for shard in open_rows([write(tmp_path, "tsv")], "text").shards] == [7]


def test_parquet_parts_are_whole_row_groups(tmp_path, monkeypatch):
    writer = pq.ParquetWriter(tmp_path / "x.parquet", pa.schema([("text", pa.string())]))
    for rows in (1, 2, 6, 0, 1, 1):
        writer.write_table(
            pa.table({"text": pa.array(["a"] * rows, pa.string())}), row_group_size=max(rows, 1)
        )
    writer.close()
    for most, expected in ((3, [3, 6, 2]), (2, [1, 2, 6, 2]), (9, [9, 2])):
        monkeypatch.setattr(subshards, "ROWS_PER_PART", most)
        shards = open_rows([tmp_path / "x.parquet"], "text").shards
        assert [len(shard) for shard in shards] == expected
        assert [key for shard in shards for key in shard.keys()] == [str(n) for n in range(11)]


def test_a_part_knows_which_part_of_what_it_is(tmp_path, monkeypatch):
    path = write(tmp_path, "txt")
    monkeypatch.setattr(subshards, "ROWS_PER_PART", 3)
    before = [shard.digest() for shard in open_rows([path], "text").shards]
    assert len(set(before)) == 3
    path.write_text(path.read_text().replace("number 1", "number 8"))
    assert not set(before) & {shard.digest() for shard in open_rows([path], "text").shards}


def test_extraction_resumes_at_a_part_and_its_rows_are_found_again(
    tiny_teacher, tmp_path, monkeypatch, one_lane
):
    path = write(tmp_path, "txt")
    quiet = Settings(progress=False, batch_size=2)
    extract(tiny_teacher, open_rows([path], "text"), "text", tmp_path / "whole", quiet)
    monkeypatch.setattr(subshards, "ROWS_PER_PART", 3)
    rows, left = (
        open_rows([path], "text"),
        [4],
    )  # batches of 2 + 1, 2 + 1, 1: the last part is cut off

    def encode(tokens):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return tiny_teacher.encode_text(tokens)

    stopping = dataclasses.replace(tiny_teacher)
    monkeypatch.setattr(stopping, "encode_text", encode)
    with pytest.raises(KeyboardInterrupt):
        extract(stopping, rows, "text", tmp_path / "cut", quiet)
    report = extract(tiny_teacher, rows, "text", tmp_path / "cut", quiet)
    assert (report.resumed, report.rows_done) == (2, 1)
    cache = FeatureCache(tmp_path / "cut")
    assert [(info.source, info.rows) for info in cache.manifest.shards] == [
        (f"x.txt/0000{i}", n) for i, n in enumerate((3, 3, 1))
    ]
    np.testing.assert_allclose(cache[:], FeatureCache(tmp_path / "whole")[:], atol=1e-4)
    raw, (stored,) = align(rows, cache).locate(np.arange(7))
    assert raw.tolist() == stored.tolist() == list(range(7))


def test_a_long_cell_of_a_table_is_read(tmp_path):
    (tmp_path / "x.csv").write_text(f'title\n"{"long, " * 50_000}"\n')
    assert len(open_rows([tmp_path / "x.csv"], "text")[0].texts[0]) == 300_000


def test_a_quote_that_is_left_open_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr("dimefm.data.formats.table.CELL", 50)
    (tmp_path / "x.csv").write_text('title\nfine\n"open\n' + "more\n" * 30)
    with pytest.raises(
        DataError,
        match=(
            r"x\.csv, line 13: .*a cell has more than 50 characters. Fix: look for a quote that is"
        ),
    ):
        open_rows([tmp_path / "x.csv"], "text")

"""Lists of quarantined rows that are damaged or lost, and what an interrupted run left."""

import numpy as np
import pytest

from dimefm.cache import CacheWriter, FeatureCache, Manifest
from dimefm.cache.quarantine import quarantined
from dimefm.errors import CacheError
from tests.faults.conftest import refused

LISTED = [
    "{",
    "[]",
    "5",
    "null",
    '{"source": "0.tar"}',
    '{"source": [], "row": 1, "key": "", "reason": ""}',
    "\0",
    "\udcff",
    "[" * 9999,
]


@pytest.mark.parametrize("line", LISTED, ids=[ascii(line)[:20] for line in LISTED])
def test_a_damaged_quarantine_is_one_cache_error_that_names_the_line_and_hides_no_row(
    made, reader, line
):
    root = made("hdf5")
    path = root / "quarantine.jsonl"
    path.write_bytes(path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    found = reader(root)
    refused(found, "quarantined")
    assert "quarantine.jsonl" in found["quarantined"]
    assert found["rows"] == found["read"] == found["verify all"] == "fine"


UNREADABLE = [line for line in LISTED if line != '{"source": "0.tar"}']


@pytest.mark.parametrize("line", UNREADABLE, ids=[ascii(line)[:20] for line in UNREADABLE])
def test_a_damaged_quarantine_stops_an_append_with_a_cache_error(made, line):
    root = made("hdf5")
    path = root / "quarantine.jsonl"
    path.write_bytes(path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    manifest = Manifest.read(root)
    header = Manifest.from_fields({**manifest.header(), "shards": ()})
    with pytest.raises(CacheError, match="quarantine"):
        writer = CacheWriter(root, header, [("2.tar", 1)], append=True)
        writer.write("2.tar", ["new"], np.ones((1, 4), np.float32))
        writer.seal()


def test_a_lost_quarantine_still_lists_every_row(made):
    root = made("hdf5")
    (root / "quarantine.jsonl").unlink()
    cache = FeatureCache(root)
    listed = list(quarantined(cache.store, cache.manifest))
    assert [(source, bad.row, bad.reason) for source, bad in listed] == [
        (f"{i}.tar", 1, "not listed in quarantine.jsonl") for i in range(2)
    ]


PLANS = ["", "{", "[]", "{}", "null", "\udcff", '{"kind": "image"}', "[" * 9999]


@pytest.mark.parametrize("plan", PLANS, ids=[ascii(plan)[:20] for plan in PLANS])
def test_a_damaged_plan_of_an_interrupted_run_is_a_cache_error_that_names_it(made, tmp_path, plan):
    header = Manifest.from_fields({**Manifest.read(made("hdf5")).header(), "shards": ()})
    CacheWriter(tmp_path / "new", header, [("0.tar", 1)])
    (tmp_path / "new/.partial/plan.json").write_bytes(plan.encode("utf-8", "surrogateescape"))
    with pytest.raises(CacheError, match=r"plan\.json"):
        CacheWriter(tmp_path / "new", header, [("0.tar", 1)])


RECORDS = ["", "{", "[]", "{}", "null", "5", "\udcff", "[" * 9999, '{"file": "../x"}']


@pytest.mark.parametrize("record", RECORDS, ids=[ascii(record)[:20] for record in RECORDS])
def test_a_damaged_record_of_an_interrupted_run_makes_its_shard_be_written_again(
    made, tmp_path, record
):
    header = Manifest.from_fields({**Manifest.read(made("hdf5")).header(), "shards": ()})
    sources = [("0.tar", 1), ("1.tar", 1)]
    CacheWriter(tmp_path / "new", header, sources).write(
        "0.tar", ["k"], np.ones((1, 4), np.float32)
    )
    (path,) = (tmp_path / "new/.partial").glob("0.feat*.json")
    path.write_bytes(record.encode("utf-8", "surrogateescape"))
    assert "0.tar" not in CacheWriter(tmp_path / "new", header, sources)

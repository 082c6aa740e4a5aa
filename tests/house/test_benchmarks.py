"""The benchmarks run end to end on little, and write down every item; no figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHES = ("hdf5", "parquet", "tsv", "40 shards", "many shards", "int8")
ITEMS = {
    *(f"gather {name} / {other}" for name in CACHES for other in ("numpy map", "DIME-FM")),
    *(f"sequential {name} / readinto" for name in CACHES),
    *(f"streaming {name} / readinto" for name in CACHES),
    *(f"block shuffle {name} / numpy map" for name in CACHES),
    *(f"write {name} / raw files" for name in ("hdf5", "spool", "parquet", "tsv", "raw int8")),
    *(f"open {which} {what}" for which in ("none bad", "1 % bad") for what in ("seconds", "memory")),
    *(f"memory read 2000 {part}" for part in ("peak", "anonymous", "files", "gathers")),
    *(f"memory write {size} {part}" for size in ("small", "large") for part in ("anonymous", "mapped files")),
    *("memory read growth", "memory read growth anonymous"),
    *("gather hdf5 / DIME-FM without gc", "one row / numpy map", "flat copy parquet", "flat copy tsv"),
    *("pitfall list / binary", "pitfall ours / binary", "pitfall flat / random list", "pitfall flat / random binary"),
    *("pitfall hdf5 / h5 contiguous", "pitfall hdf5 / h5 gzip"),
}
FORMS = (("hdf5", "float16"), ("hdf5", "int8"), ("parquet", "float16"), ("parquet", "int8"), ("tsv", "float32"))
DTYPES = (
    "float16",
    "int8, fitted on every row (cache convert)",
    "int8, with the extraction's margin",
    "int8, one scale a row (as others do)",
)
REAL = {
    *(f"bytes images {name} {dtype}, {part}" for name, dtype in FORMS for part in ("rows alone", "whole shard with keys")),
    *(f"bytes {name} keys" for name in ("images", "paired images", "paired texts", "lvis", "coco")),
    *(f"{what} {name}" for what in ("cosine", "KL") for name in DTYPES),
}


def run(*options: str) -> tuple[str, list[dict]]:
    out = Path(options[options.index("--out") + 1])
    command = [
        sys.executable,
        "-m",
        "benchmarks.cache",
        "--quick",
        "--rows",
        "2000",
        "--dim",
        "64",
        "--repeats",
        "1",
        *options,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return (table, lines) of all that needs no real data."""
    folder = tmp_path_factory.mktemp("bench")
    parts = "read,write,memory,open,pitfalls"
    return run("--parts", parts, "--folder", str(folder), "--out", str(folder / "results.jsonl"))


def test_every_item_is_written_down(made):
    _, (head, *lines) = made
    assert {"cpu", "cores", "memory", "folder", "python", "numpy", "h5py", "pyarrow"} <= head["machine"].keys()
    assert head["settings"]["rows"] == 2000
    assert {line["item"] for line in lines} == ITEMS
    assert {line["run"] for line in lines} == {head["run"]}


def test_ratios_stand_beside_their_goals(made):
    text, (_, *lines) = made
    assert text.splitlines()[1].split() == ["what", "ours", "against", "ratio", "goal", "met"]
    for line in lines:
        assert line["ours"] >= 0 or "growth" in line["item"]
        assert (line["ratio"] is None) == (line["against"] is None) and (line["goal"] is None) == (line["met"] is None)
        assert line["what"] in text


def test_nothing_is_left_in_the_folder(made, tmp_path):
    run("--parts", "pitfalls", "--folder", str(tmp_path), "--out", str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_real_features_are_weighed(shared_data, tmp_path):
    _, (_, *lines) = run("--parts", "bytes", "--data", str(shared_data), "--out", str(tmp_path / "out.jsonl"))
    assert {line["item"] for line in lines} >= REAL
    alone = {line["item"]: line["ratio"] for line in lines}
    assert alone["bytes images hdf5 float16, rows alone"] == 1.0
    assert alone["bytes images hdf5 int8, rows alone"] == 0.5


def test_the_peer_reads_what_was_written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks._cache_data import header, made, names, write
    from benchmarks._dime_fm_tsv import Composite

    rows = made(20, 8)
    shard = write(tmp_path / "cache", header("tsv", 8), rows, names(0, 20)).shards[0]
    peer = Composite(tmp_path / "cache" / shard.file)
    assert [peer[i].tolist() for i in (0, 7, 19)] == rows[[0, 7, 19]].astype("float32").tolist()

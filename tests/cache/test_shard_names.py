"""Names of source shards that a cache cannot use as they stand: no shard is lost or shared."""

import pytest

from dimefm.cache import FeatureCache
from dimefm.cache.plan import flat_name, shard_files
from dimefm.data import open_rows
from tests.cache.growing import run, text_shard

NAMES = {
    "a folder of the cache's own": [".partial/a.txt", ".PARTIAL/a.txt", ".flat/a.txt", "a.txt"],
    "an escaped slash": ["a/b.txt", "a%2Fb.txt", "a%252Fb.txt", "%2Epartial/a.txt"],
    "a backslash": ["a\\b.txt", "a/b.txt", "a%5Cb.txt"],
    "a drive": ["c:a.txt", "c%3Aa.txt", "d/c:a.txt"],
    "a long name": ["n" * 251 + ".txt", "n" * 250 + "m.txt", "é" * 100 + "ab.txt"],
    "a long path": [
        "/".join(["folder of forty letters and more than this"] * 8) + "/a.txt",
        "a.txt",
    ],
    "dots": ["a.b.txt", "a.txt", "a.r1.txt", "a.feat.txt"],
}


def rows_of(root, names):
    for number, name in enumerate(names):
        text_shard(root / name, [f"photo {number}", "another photo"])
    return open_rows([root / name for name in names], "text", dataroot=root)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("format_", ["hdf5", "parquet"])
def test_every_shard_has_a_file_and_a_record_of_its_own(tiny_teacher, tmp_path, names, format_):
    rows = rows_of(tmp_path / "raw", names)
    out = tmp_path / "out"
    _, cache = run(tiny_teacher, rows, "text", out, format=format_)
    shards = cache.manifest.shards
    assert [shard.source for shard in shards] == names
    assert len({shard.file for shard in shards}) == len(names)
    assert all((out / shard.file).is_file() for shard in shards)
    again = FeatureCache(out)
    assert again[:].shape[0] == 2 * len(names)
    report, _ = run(tiny_teacher, rows, "text", out, format=format_)
    assert report.already_finished


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_files_and_records_differ_and_fit(names):
    files = list(shard_files(names, ".h5").values())
    records = [flat_name(file) for file in files]
    assert len(set(files)) == len(set(records)) == len(names)
    for path in (*files, *records):
        assert all(len(part.encode()) < 230 for part in path.split("/"))
        assert not path.casefold().startswith((".partial/", ".flat/"))
    assert all("/" not in record for record in records)


def test_usual_names_stay_what_they_are():
    names = ["train/00000.tar", "photos", "photos/00001", "a.tsv", "a.txt", "100%.tar"]
    assert shard_files(names, ".h5") == {
        "train/00000.tar": "train/00000.feat.h5",
        "photos": "photos.feat.h5",
        "photos/00001": "photos/00001.feat.h5",
        "a.tsv": "a.tsv.feat.h5",
        "a.txt": "a.txt.feat.h5",
        "100%.tar": "100%.feat.h5",
    }
    assert flat_name("train/00000.feat.h5") == "train%2F00000.feat.h5"

"""Photos, sentences and captions to extract from, and what must hold of every cache made of
them.
"""

import dataclasses
import json

import pytest

from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.extract.extract import Settings, extract

QUIET = Settings(progress=False, batch_size=4)
SENTENCES = [
    f"a photo of {n} {thing}"
    for n in ("one", "two", "three")
    for thing in ("cats", "red boats", "dogs in the snow")
]


def run(encoder, sources, kind, out, **changes):
    """Extract and return (report, cache)."""
    columns = changes.pop("rows", {})
    rows = open_rows(sources, kind, **columns)
    report = extract(encoder, rows, kind, out, dataclasses.replace(QUIET, **changes))
    return report, FeatureCache(out)


def keys_of(cache):
    return [key for info in cache.manifest.shards for key in cache.read(info)[0]]


def quarantine(out):
    path = out / "quarantine.jsonl"
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


def assert_adds_up(cache, out):
    for info in cache.manifest.shards:
        assert info.source_rows == info.rows + len(info.bad)
    listed = [(entry["source"], entry["row"]) for entry in quarantine(out)]
    assert listed == [(info.source, row) for info in cache.manifest.shards for row in info.bad]
    assert all(entry["reason"] for entry in quarantine(out))


@pytest.fixture
def photos(tmp_path, picture):
    """Return a folder of ten images in two classes, of different shapes and formats."""
    for i in range(10):
        format = ("PNG", "JPEG", "WEBP")[i % 3]
        path = tmp_path / "photos" / f"class{i % 2}" / f"{i}.{format.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, (20 + 7 * i, 90 - 5 * i), format))
    return tmp_path / "photos"


@pytest.fixture
def shards(tmp_path):
    """Return text shards 0.txt .. 3.txt of different lengths (one of them empty)."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, n in enumerate((9, 1, 0, 6)):
        (folder / f"{i}.txt").write_text("".join(f"{sentence} {i}\n" for sentence in SENTENCES[:n]))
    return folder


@pytest.fixture
def captioned(tmp_path):
    lines = [
        {"key": "a", "captions": ["a cat", "a red cat", "a cat on a mat"]},
        {"key": "b", "captions": "one dog"},
        {"key": "c", "captions": []},
        {"key": "d", "captions": ["a boat", "", "the sea"]},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "x.jsonl"

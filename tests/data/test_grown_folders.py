"""A folder of photos grows, and its cache with it; nothing that the cache has is encoded again."""

import dataclasses

import numpy as np
import pytest

from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.data.alignment import align
from dimefm.data.formats import folder as folders
from dimefm.data.grown_folders import as_cached
from dimefm.data.views.image_views import ViewPolicy
from dimefm.errors import CacheError
from dimefm.extract.extract import Settings, extract
from dimefm.extract.verify import against_teacher
from tests.data.boxes import put

QUIET = Settings(progress=False, batch_size=4)


def sources_of(cache):
    return [(shard.source, shard.source_rows) for shard in cache.manifest.shards]


def keys_of(cache):
    return [key for info in cache.manifest.shards for key in cache.read(info)[0]]


@pytest.fixture
def photos(tmp_path, picture):
    for number in range(3):
        put(tmp_path / f"photos/{number}.png", picture(number))
    put(tmp_path / "photos/1x.png", b"damaged")
    return tmp_path / "photos"


@pytest.fixture(params=[1, 2], ids=["whole", "views"])
def settings(request):
    views = None if request.param == 1 else ViewPolicy.parse(request.param, {})
    return dataclasses.replace(QUIET, views=views)


@pytest.fixture
def grow(tiny_teacher, photos, tmp_path, settings):
    """Return a function that extracts the folder as it is now in a mode."""

    def run(mode):
        rows = open_rows([photos], "image")
        report = extract(tiny_teacher, rows, "image", tmp_path / "out", settings, mode=mode)
        return report, FeatureCache(tmp_path / "out")

    return run


def test_new_photos_are_new_shards(grow, photos, picture, tiny_teacher, settings):
    views = 1 if settings.views is None else settings.views.count
    _, before = grow("create")
    put(photos / "0a.png", picture(7))
    put(photos / "z/9.png", picture(8))
    report, cache = grow("append")
    assert sources_of(cache) == [("photos", 4 * views), ("photos/added-00000", 2 * views)]
    assert report.rows_done == 2 * views
    assert cache.manifest.shards[0] == before.manifest.shards[0]
    put(photos / "0b.png", picture(9))
    _, cache = grow("append")
    assert sources_of(cache)[2:] == [("photos/added-00001", views)]
    names = ["0.png", "1.png", "2.png", "0a.png", "z/9.png", "0b.png"]
    if views == 1:
        assert keys_of(cache) == names
    assert grow("append")[0].already_finished
    assert grow("create")[0].already_finished
    rows = as_cached(open_rows([photos], "image"), cache)
    aligned = align(rows, cache)
    source_rows, (cached,) = aligned.locate(np.arange(len(aligned)))
    assert [rows[row].key for row in source_rows] == names
    assert cached.tolist() == [number * views for number in range(6)]
    assert against_teacher(cache, tiny_teacher, open_rows([photos], "image"), 12).min_cosine > 0.99


def test_without_append_the_message_names_it(grow, photos, picture):
    grow("create")
    put(photos / "9.png", picture(9))
    with pytest.raises(CacheError, match=r"only here: photos/added-00000.*--append"):
        grow("create")


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_a_folder_with_changed_photos_is_refused(grow, photos, picture, change):
    grow("create")
    put(photos / "9.png", picture(9))
    if change == "changed":
        put(photos / "0.png", picture(0) + b"more")
    else:
        (photos / "0.png").unlink()
    with pytest.raises(CacheError, match="made otherwise"):
        grow("append")


def test_a_folder_of_several_shards_grows(grow, photos, picture, monkeypatch):
    monkeypatch.setattr(folders, "ROWS_PER_SHARD", 3)
    monkeypatch.setattr("dimefm.data.grown_folders.ROWS_PER_SHARD", 3)
    _, before = grow("create")
    assert [source for source, _ in sources_of(before)] == ["photos/00000", "photos/00001"]
    for number in range(4):
        put(photos / f"0{number}.png", picture(number))
    _, cache = grow("append")
    assert [source for source, _ in sources_of(cache)][2:] == [
        "photos/added-00000",
        "photos/added-00001",
    ]
    assert cache.manifest.shards[:2] == before.manifest.shards


def test_a_cache_that_has_what_is_litter_now_stays_whole(grow, photos, picture, monkeypatch):
    put(photos / "@eaDir/2.png", picture(5))
    with monkeypatch.context() as before:
        before.setattr("dimefm.data.image_files.is_litter", lambda name: False)
        _, cache = grow("create")
    assert cache.manifest.shards[0].source_rows % 5 == 0
    report, _ = grow("create")
    assert report.already_finished
    rows = as_cached(open_rows([photos], "image"), cache)
    assert len(align(rows, cache)) == 4

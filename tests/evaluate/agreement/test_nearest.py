"""Cached rows that are close to embeddings are those that a comparison of all with all finds."""

from pathlib import Path

import numpy as np
import pytest

from dimefm.cache import FeatureCache
from dimefm.evaluate.agreement import nearest

CACHES = Path(__file__).parents[2] / "data/before/caches"


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def queries():
    """Some cached rows, moved a little, and one of no direction that the caches have."""
    rows = FeatureCache(CACHES / "plain/images")[:].astype(np.float32)[::3]
    moved = rows + np.random.default_rng(0).normal(scale=0.02, size=rows.shape)
    return np.concatenate([moved, -rows.mean(axis=0, keepdims=True)]).astype(np.float32)


@pytest.mark.parametrize("blocks", [(3, 2), (4096, 2048)])
@pytest.mark.parametrize("names", [("plain",), ("int8",), ("tsv", "plain"), ("parquet", "views")])
def test_all_close_rows_are_found(queries, tmp_path, monkeypatch, names, blocks):
    monkeypatch.setattr(nearest, "CACHED_AT_ONCE", blocks[0])
    monkeypatch.setattr(nearest, "QUERIES_AT_ONCE", blocks[1])
    caches = [FeatureCache(CACHES / name / "images", tmp_path / name) for name in names]
    found = nearest.close_rows(queries, caches, 0.75)
    rows = np.concatenate([unit(cache[:]) for cache in caches])
    keys = []
    for number, cache in enumerate(caches):
        keys += [(number, key) for key in cache.keys()]
    cosines = unit(queries) @ rows.T
    assert found.nearest == pytest.approx(cosines.max(axis=1), abs=1e-5)
    assert abs(cosines - 0.75).min() > 1e-5  # no cosine is so near that rounding decides
    assert found.counts.tolist() == (cosines >= 0.75).sum(axis=1).tolist()
    assert found.counts.max() > nearest.KEPT and found.counts[-1] == 0
    for query, count in enumerate(found.counts):
        n_kept = min(count, nearest.KEPT)
        kept = found.cosines[query, :n_kept]
        assert kept == pytest.approx(np.sort(cosines[query])[::-1][:n_kept], abs=1e-5)
        assert not np.isfinite(found.cosines[query, n_kept:]).any()
        for place, cosine in zip(found.places[query, :n_kept], kept, strict=True):
            columns = [i for i, key in enumerate(keys) if key == (place.cache, place.key)]
            assert cosines[query, columns] == pytest.approx(cosine, abs=1e-5) or len(columns) > 1
            assert abs(cosines[query, columns] - cosine).min() < 1e-5


def test_equal_cosines_are_in_the_order_of_the_caches(queries):
    caches = [FeatureCache(CACHES / "plain/images")] * 2
    found = nearest.close_rows(caches[0][:3], caches, 0.999)
    assert found.counts.tolist() == [2, 2, 2]
    assert [[place.cache for place in row[:2]] for row in found.places] == [[0, 1]] * 3
    assert (found.cosines[:, :2] == 1).all()


def test_a_part_has_its_own_rows(queries):
    found = nearest.close_rows(queries, [FeatureCache(CACHES / "plain/images")], 0.9)
    part = found.select(slice(2, 5))
    assert part.counts.tolist() == found.counts[2:5].tolist()
    assert part.nearest.tolist() == found.nearest[2:5].tolist()
    assert part.places[0, 0] == found.places[2, 0]

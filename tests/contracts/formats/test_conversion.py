"""``convert`` between any two formats and to int8: nothing is lost, and what it costs is said."""

import itertools

import numpy as np
import pytest

from dimefm.cache import CacheWriter, FeatureCache
from dimefm.cache.convert import convert
from dimefm.cache.int8 import AffineQuantizer
from dimefm.cache.quarantine import quarantined
from dimefm.cache.writer import Bad
from dimefm.errors import CacheError
from tests.contracts.formats.conftest import CARD, FORMATS, fitted, header, keys_of, make, vectors


def with_bad(root, format_, dtype="float16"):
    """Write a cache of three shards, with bad first, adjacent and last rows and a shard of bad rows
    only.
    """
    code = {"code": fitted(vectors(20, 4)).fields()} if dtype == "int8" else {}
    bads = {"a.tar": [0, 3, 4, 9], "b/c.tar": [0, 1, 2], "d.tar": []}
    counts = {"a.tar": 10, "b/c.tar": 3, "d.tar": 5}
    writer = CacheWriter(
        root,
        header(format_, dtype, **code),
        list(counts.items()),
        {name: "ef" * 32 for name in counts},
    )
    for name, n in counts.items():
        bad = [Bad(row, f"bad é {row}", f"torn at {row}") for row in bads[name]]
        good = n - len(bad)
        writer.write(name, keys_of(good, len(name)), vectors(20, 4)[:good], bad)
    writer.seal()
    return FeatureCache(root)


def content(cache):
    parts = [cache.read(info) for info in cache.manifest.shards]
    bad = list(quarantined(cache.store, cache.manifest))
    return [keys for keys, _ in parts], np.concatenate([rows for _, rows in parts]), bad


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize(
    ("from_", "to"), [*itertools.permutations(FORMATS, 2), *((name, name) for name in FORMATS)]
)
def test_a_conversion_loses_nothing(tmp_path, from_, to, dtype, digests):
    old = with_bad(tmp_path / "old", from_, dtype)
    made = convert(old, tmp_path / "new", to, dtype)
    new = FeatureCache(tmp_path / "new")
    assert (made.format, made.dtype, made.fingerprint) == (to, dtype, old.manifest.fingerprint)
    (keys, rows, bad), (new_keys, new_rows, new_bad) = content(old), content(new)
    assert (new_keys, new_bad) == (keys, bad) and len(bad) == 7
    assert new_rows.dtype == rows.dtype and np.array_equal(new_rows, rows)
    assert [info.bad for info in made.shards] == [info.bad for info in old.manifest.shards]
    assert made.code == old.manifest.code
    assert new.verify(sha256=True) == 3
    convert(new, tmp_path / "back", from_, dtype)
    assert digests(tmp_path / "back") == digests(tmp_path / "old")


def test_an_interrupted_conversion_goes_on_at_the_next_shard(
    tmp_path, format_, monkeypatch, digests
):
    old = with_bad(tmp_path / "old", "hdf5")
    convert(old, tmp_path / "whole", format_)
    write, written = CacheWriter.write, []

    def interrupted(self, source, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(source)
        return write(self, source, *rest)

    monkeypatch.setattr(CacheWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(old, tmp_path / "new", format_)
    with pytest.raises(CacheError, match="unfinished"):
        FeatureCache(tmp_path / "new")
    written[:] = []
    convert(old, tmp_path / "new", format_)
    assert written == ["d.tar"]
    assert digests(tmp_path / "new") == digests(tmp_path / "whole")
    convert(old, tmp_path / "new", format_)
    assert written == ["d.tar"]


def test_a_conversion_to_int8_fits_every_row_and_says_what_it_costs(tmp_path, format_):
    old, rows, _ = make(tmp_path / "old", (50, 30), "hdf5", "float32", dim=16)
    made = convert(old, tmp_path / "new", format_, "int8")
    new = FeatureCache(tmp_path / "new")
    scale = AffineQuantizer.from_fields(made.code).scale
    np.testing.assert_allclose(scale * 254, rows.max(0) - rows.min(0), rtol=1e-5)
    assert (np.abs(new[:] - rows) <= scale * 0.5001 + 1e-6).all()
    cosines = (new[:] * rows).sum(1) / np.linalg.norm(new[:], axis=1) / np.linalg.norm(rows, axis=1)
    assert (
        made.quantization_error["rows"] == 80
        and made.quantization_error["logit_scale"] == CARD.logit_scale
    )
    assert made.quantization_error["min_cosine"] == pytest.approx(cosines.min(), abs=1e-6)
    assert made.quantization_error["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert 0 < made.quantization_error["kl"] < 0.1
    assert made.fingerprint == old.manifest.fingerprint
    again = convert(new, tmp_path / "again", "hdf5", "float32")
    assert again.code is None and again.fingerprint == made.fingerprint
    np.testing.assert_array_equal(FeatureCache(tmp_path / "again")[:], new[:])


def test_a_conversion_into_itself_or_into_another_cache_is_refused(tmp_path, digests):
    old, _, _ = make(tmp_path / "old", (5,))
    make(tmp_path / "other", (4,), "tsv")
    before = digests(tmp_path)
    with pytest.raises(CacheError, match="is the cache to convert"):
        convert(old, f"{tmp_path}/old/", "tsv")
    with pytest.raises(CacheError, match="already holds a cache made otherwise"):
        convert(old, tmp_path / "other", "tsv")
    assert digests(tmp_path) == before

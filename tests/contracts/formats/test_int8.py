"""Rows as int8 codes, in every format: stored exactly, decoded within half a step, refused outside
the code.
"""

import numpy as np
import pytest

from dimefm.cache import CacheWriter, FeatureCache
from dimefm.cache.formats import BLOCK
from dimefm.cache.int8 import AffineQuantizer
from dimefm.errors import CacheError
from tests.contracts.formats.conftest import fitted, header, keys_of, vectors


def make_int8(root, counts, format_, dim=4, seed=0):
    """Write a cache of int8 rows; return (cache, the float rows, their code)."""
    rows = vectors(sum(counts), dim, seed)
    code = fitted(rows)
    sources, start = [(f"{i}.tar", n) for i, n in enumerate(counts)], 0
    writer = CacheWriter(root, header(format_, "int8", dim, code=code.fields()), sources)
    for name, n in sources:
        writer.write(name, keys_of(n, start), rows[start : start + n])
        start += n
    writer.seal()
    return FeatureCache(root), rows, code


@pytest.mark.parametrize(
    ("counts", "dim"), [((5,), 4), ((3, 0, 2), 4), ((4, 1), 1), ((BLOCK + 1,), 2)], ids=str
)
def test_int8_codes_are_stored_exactly_and_decode_within_half_a_step(
    tmp_path, format_, counts, dim
):
    cache, rows, code = make_int8(tmp_path, counts, format_, dim)
    codes = np.rint((rows - code.offset) / code.scale)
    assert cache.stored(slice(None)).dtype == np.int8 and cache[:].dtype == np.float32
    np.testing.assert_array_equal(cache.stored(slice(None)), codes)
    np.testing.assert_array_equal(
        np.concatenate([cache.read(info)[1] for info in cache.manifest.shards]), codes
    )
    assert (np.abs(cache[:] - rows) <= code.scale * 0.5001 + 1e-7).all()
    np.testing.assert_array_equal(cache[:], codes.astype(np.float32) * code.scale + code.offset)
    np.testing.assert_array_equal(cache[[len(rows) - 1, 0]], cache[:][[-1, 0]])
    assert AffineQuantizer.from_fields(cache.manifest.code).fields() == code.fields()
    assert cache.verify(sha256=True) == len(counts)


@pytest.mark.parametrize("value", [1e6, -1e6, np.nan, np.inf])
def test_a_value_outside_the_int8_code_is_refused_with_row_and_dimension(tmp_path, format_, value):
    rows = vectors(6, 4)
    code = fitted(rows)
    rows[4, 2] = value
    writer = CacheWriter(tmp_path, header(format_, "int8", code=code.fields()), [("a.tar", 6)])
    with pytest.raises(
        CacheError, match=r"a\.tar, .*row 4, dimension 2: .* outside the int8 code's .* to "
    ):
        writer.write("a.tar", keys_of(6), rows)
    assert not [path for path in tmp_path.rglob("a.feat*") if path.is_file()]


def test_the_edge_of_the_int8_code_is_inside(tmp_path, format_):
    code = AffineQuantizer(np.full(2, 0.5, np.float32), np.array([0, 10], np.float32))
    edges = np.array([[-63.5, 73.5], [63.5, -53.5], [63.7, 73.7]], np.float32)
    writer = CacheWriter(tmp_path, header(format_, "int8", 2, code=code.fields()), [("a.tar", 3)])
    writer.write("a.tar", keys_of(3), edges)
    writer.seal()
    assert FeatureCache(tmp_path).stored(slice(None)).tolist() == [
        [-127, 127],
        [127, -127],
        [127, 127],
    ]

"""Extraction to int8: rows decode to what the encoder gives, and the code that was fitted first
holds for later shards.
"""

import numpy as np
import pytest

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.int8 import QuantizerFitter
from dimefm.errors import CacheError
from tests.cache.growing import damaged, run, text_shard


def test_int8_rows_decode_to_the_encoders_and_the_manifest_says_what_that_costs(
    tiny_teacher, raw, tmp_path, format_
):
    damaged(raw)
    _, exact = run(tiny_teacher, raw.rows(), raw.kind, tmp_path / "exact", dtype="float32")
    _, cache = run(
        tiny_teacher, raw.rows(), raw.kind, tmp_path / "out", format=format_, dtype="int8"
    )
    cosines = (cache[:] * exact[:]).sum(1) / np.linalg.norm(cache[:], axis=1)
    assert cache[:].dtype == np.float32 and cosines.min() > 0.995
    assert cache.manifest.quantization_error["rows"] == len(cache)
    assert cache.manifest.quantization_error["min_cosine"] == pytest.approx(cosines.min(), abs=1e-5)
    assert cache.manifest.fingerprint == exact.manifest.fingerprint


class Loud:
    """An encoder that gives the last sentence of a batch one large number."""

    def __init__(self, encoder):
        self.encoder = encoder

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_text(self, tokens):
        found = self.encoder.encode_text(tokens).clone()
        found[-1, 5] = 3.0
        return found


def test_a_later_shard_that_leaves_the_int8_code_is_refused_with_its_row_and_the_cache_stays(
    tiny_teacher, texts, tmp_path, format_, digests
):
    texts.shard("a", 6)
    run(tiny_teacher, texts.rows(), "text", tmp_path / "out", format=format_, dtype="int8")
    before = digests(tmp_path / "out")
    text_shard(tmp_path / "raw/b.txt", [f"photo {i} of a" for i in range(6)])
    with pytest.raises(
        CacheError, match=r"b\.txt.*row 3, dimension 5: 3 lies outside the int8 code's.*float16"
    ):
        run(
            Loud(tiny_teacher),
            texts.rows(),
            "text",
            tmp_path / "out",
            "append",
            format=format_,
            dtype="int8",
        )
    after = digests(tmp_path / "out")
    assert before.items() <= after.items()
    assert not [name for name in after.keys() - before.keys() if not name.startswith(".partial/")]
    assert FeatureCache(tmp_path / "out").verify(sha256=True) == 1


def test_the_row_outside_the_int8_code_is_numbered_within_its_shard(tmp_path):
    """Rows of a shard come in batches; the message counts them through."""
    rows = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    fit = QuantizerFitter(8)
    fit.add(rows)
    card = EncoderCard("test", None, 3, 100.0)
    writer = CacheWriter(
        tmp_path,
        Manifest("text", "hdf5", "int8", 3, False, card, {}, {}, code=fit.code().fields()),
        [("a", 9)],
    )
    with writer.row_buffer("a") as spool:
        spool.add([str(i) for i in range(8)], rows)
        with pytest.raises(CacheError, match="a, stored row 8, dimension 1"):
            spool.add(["8"], np.array([[0, 1e6, 0]], np.float32))

"""Rows that lose their direction in a coarser dtype are refused by name."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.compare import compare
from dimefm.cache.convert import convert
from dimefm.cache.importing.adopt import adopt, header, pieces
from dimefm.cache.importing.sources import open_vectors
from dimefm.cache.int8 import QuantizerFitter
from dimefm.cache.precision_loss import LEAST_COSINE, least_length, stored_cosines
from dimefm.cache.writer import Bad
from dimefm.cli import main
from dimefm.data import open_rows
from dimefm.errors import CacheError
from dimefm.extract.extract import extract
from tests.cache.growing import QUIET

REAL = Path(__file__).resolve().parents[3] / "shared/data/features/flickr8k_clip_vitb32"
DIM = 32


def rows_of(n=21, seed=0):
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def make(root, rows, bad=()):
    """Write a float32 cache of one shard whose source rows ``bad`` are quarantined."""
    head = Manifest(
        "image", "hdf5", "float32", rows.shape[1], False, EncoderCard("x", None, DIM, 100.0), {}, {}
    )
    writer = CacheWriter(root, head, [("a.tar", len(rows) + len(bad))])
    keys = [f"k{i}" for i in range(len(rows))]
    writer.write("a.tar", keys, rows, [Bad(row, "", "torn") for row in bad])
    writer.seal()
    return FeatureCache(root)


def one_value(rows, size):
    rows[-1, 3] = size


def one_row(rows, size):
    rows[-1] *= size


def tiny_rows(rows, size):
    rows[:-1] /= size


def several(rows, size):
    rows[[2, 9]] *= -size


OUTLIERS = [one_value, one_row, tiny_rows, several]


@pytest.mark.parametrize("spoil", OUTLIERS)
@pytest.mark.parametrize("size", [300.0, 1e6])
def test_outliers_that_leave_int8_no_steps_for_other_rows_are_refused(tmp_path, spoil, size):
    rows = rows_of()
    spoil(rows, size)
    old = make(tmp_path / "old", rows, bad=[0])
    fitter = QuantizerFitter(len(rows))
    fitter.add(rows)
    code = fitter.code(0)
    lost = stored_cosines(rows, code.decode(code.encode(rows))) < LEAST_COSINE
    if not lost.any():
        convert(old, tmp_path / "new", dtype="int8")
        return
    first = int(np.flatnonzero(lost)[0]) + 1  # source row 0 is quarantined
    with pytest.raises(
        CacheError, match=rf"as int8, {lost.sum()} of 21 rows .* 0\.99 .*row {first} "
    ):
        convert(old, tmp_path / "new", dtype="int8")
    assert not (tmp_path / "new").exists()

    made = convert(old, tmp_path / "new", dtype="int8", force=True)
    stored = FeatureCache(tmp_path / "new")
    assert made.quantization_error["min_cosine"] < LEAST_COSINE
    assert stored.verify(sha256=True) == 1
    assert convert(old, tmp_path / "new", dtype="int8", force=True) == made


def test_each_kind_of_outlier_is_refused_at_a_million(tmp_path):
    """The test above lets a conversion pass that loses nothing; at 1e6 every kind loses."""
    for spoil in OUTLIERS:
        rows = rows_of()
        spoil(rows, 1e6)
        with pytest.raises(CacheError, match="--force"):
            convert(make(tmp_path / spoil.__name__, rows), tmp_path / "new", dtype="int8")


def test_a_loss_outside_the_sample_is_seen(tmp_path):
    """The measured error is of 2,048 rows; a single lossy row among 5,000 is between them."""
    rows = rows_of(5000)
    rows[4] *= 1e-3
    with pytest.raises(CacheError, match=r"1 of 5,000 rows .* a\.tar row 4 "):
        convert(make(tmp_path / "old", rows), tmp_path / "new", dtype="int8")


def test_an_extraction_whose_code_is_too_coarse_is_refused_with_its_row(
    tiny_teacher, tmp_path, monkeypatch
):
    fitted = QuantizerFitter.code
    monkeypatch.setattr(QuantizerFitter, "code", lambda self, margin=0.5: fitted(self, 4000))
    (tmp_path / "a.txt").write_text("a cat\n\ntwo dogs\na red boat\n")
    settings = dataclasses.replace(QUIET, dtype="int8")
    with pytest.raises(CacheError, match=r"a\.txt, row [023]: as int8 its embedding has cosine"):
        extract(
            tiny_teacher,
            open_rows([tmp_path / "a.txt"], "text"),
            "text",
            tmp_path / "out",
            settings,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [1e-7, 1e-9])
def test_numbers_below_those_of_float16_are_refused_in_conversion_and_adoption(tmp_path, size):
    rows = rows_of()
    rows[5] *= size
    old = make(tmp_path / "old", rows)
    with pytest.raises(CacheError, match=r"as float16, 1 of 21 rows .* a\.tar row 5 .*--force"):
        convert(old, tmp_path / "new", dtype="float16")
    convert(old, tmp_path / "forced", dtype="float16", force=True)

    np.save(tmp_path / "a.npy", rows)
    vectors = open_vectors([tmp_path / "a.npy"], "image")
    card = EncoderCard("x", None, DIM, 100.0)
    head = header(vectors, "image", card, "hdf5", "float16")
    shards = pieces(vectors, ["a.npy"])
    if size == 1e-9:  # nothing is left of the row, so it is quarantined
        adopted = adopt(shards, head, tmp_path / "adopted")
        assert adopted.manifest.shards[0].bad == (5,)
    else:
        with pytest.raises(CacheError, match=r"a\.npy row 5 .*--dtype float32"):
            adopt(shards, head, tmp_path / "adopted")
    adopt(shards, head, tmp_path / "unit", normalize=True)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_rows_as_long_as_the_bound_keep_their_direction(scale, seed):
    rows = rows_of(500, seed) * scale
    rows[:, 2] += 40 * scale
    fitter = QuantizerFitter(len(rows))
    fitter.add(rows)
    code = fitter.code(0)
    lengths = np.linalg.norm(rows, axis=1)
    assert fitter.shortest == pytest.approx(lengths.min(), rel=1e-5)
    cosines = stored_cosines(rows, code.decode(code.encode(rows)))
    surely_kept = lengths >= least_length(code)
    assert surely_kept.any() and (cosines[surely_kept] >= LEAST_COSINE).all()


def test_rows_of_a_real_clip_lose_a_hundredth_of_the_limit_at_most(tmp_path):
    if not REAL.exists():
        pytest.skip(f"the real CLIP features are not at {REAL}")
    rows = np.load(REAL / "image_features.npy")
    made = convert(make(tmp_path / "old", rows), tmp_path / "new", dtype="int8")
    assert 1 - made.quantization_error["min_cosine"] < (1 - LEAST_COSINE) / 100


def test_the_command_refuses_names_the_row_and_takes_force(tmp_path):
    rows = rows_of()
    rows[20] *= 1e6
    make(tmp_path / "old", rows)
    arguments = ["cache", "convert", str(tmp_path / "old"), str(tmp_path / "new")]
    refused = CliRunner().invoke(main, [*arguments, "--dtype", "int8"])
    assert refused.exit_code == 1 and refused.output.count("\n") == 1
    assert "the longest row is a.tar row 20" in refused.output and len(refused.output) < 500
    forced = CliRunner().invoke(main, [*arguments, "--dtype", "int8", "--force"])
    assert forced.exit_code == 0 and "cosine at least -0." in forced.output

    again = CliRunner().invoke(main, [*arguments, "--dtype", "float16"])
    assert again.exit_code == 1 and len(again.output) < 500
    assert "dtype: 'float16' against 'int8'" in again.output
    manifest = json.loads((tmp_path / "new/manifest.json").read_text())
    assert manifest["effect"]["min_cosine"] < 0


@pytest.mark.parametrize("size", [1e10, 1e16, 1e20, 1e30, 1e37])
def test_rows_whose_squares_leave_float32_are_measured(tmp_path, size):
    rows = rows_of(64) * np.float32(size)
    source = make(tmp_path / "exact", rows)
    convert(source, tmp_path / "int8", dtype="int8")
    coded = FeatureCache(tmp_path / "int8")
    assert coded.manifest.quantization_error["min_cosine"] > 0.999
    assert stored_cosines(rows, coded[:]).min() > 0.999
    compared = compare(source, coded)
    assert compared.min_cosine > 0.999

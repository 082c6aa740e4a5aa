"""DIME-FM's own feature TSVs: the golden example reads back exactly, its bad rows are found, ours
are read their way.
"""

import base64
import json

import numpy as np
import pytest

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.importing.adopt import adopt_tsv
from dimefm.data import open_rows
from dimefm.data.alignment import align
from dimefm.data.images.decode import decode
from dimefm.errors import BadRow, CacheError


@pytest.fixture(scope="module")
def expected(golden_tsv):
    return json.loads((golden_tsv / "expected.json").read_text(encoding="utf-8"))


def listed(golden, name):
    return (golden / name).read_text().split()


@pytest.fixture(scope="module", params=["image", "text"])
def golden(request, golden_tsv, tmp_path_factory):
    """Return (kind, raw rows, adopted features) of the golden example."""
    kind = request.param
    files = [golden_tsv / name for name in listed(golden_tsv, f"{kind}_feat.list")]
    out = tmp_path_factory.mktemp("adopted")
    rows = open_rows([golden_tsv / f"{kind}.list"], kind, dataroot=golden_tsv)
    return kind, rows, adopt_tsv(files, listed(golden_tsv, f"{kind}.list"), kind, out)


def test_golden_features_read_back_to_what_the_original_loader_saw(golden, expected):
    kind, _, cache = golden
    assert (cache.dim, cache.manifest.dtype, len(cache)) == (
        expected["dim"],
        "float32",
        len(expected[kind]),
    )
    keys = [key for info in cache.manifest.shards for key in cache.read(info)[0]]
    assert keys == [entry["key"] for entry in expected[kind]]
    np.testing.assert_allclose(
        cache[:].astype(np.float64).sum(1), [e["feat_sum"] for e in expected[kind]], atol=1e-9
    )
    if kind == "image":
        assert cache[:][:, :3].tolist() == [entry["feat_first3"] for entry in expected[kind]]


def test_golden_rows_match_their_features_row_by_row(golden):
    _, rows, cache = golden
    raw, (stored,) = align(rows, cache).locate(np.arange(len(rows)))
    assert raw.tolist() == stored.tolist() == list(range(len(rows)))


def test_golden_features_say_that_their_maker_is_unknown(golden):
    _, _, cache = golden
    card = cache.manifest.encoder
    assert card.weights_sha256 is None and "unknown" in card.name and card.logit_scale == 100.0
    assert not cache.manifest.normalized and cache.manifest.how["adopted"] == "dime-fm tsv"


def test_golden_images_have_the_recorded_size_and_mean_colour(golden_tsv, expected):
    rows = open_rows([golden_tsv / "image.list"], "image", dataroot=golden_tsv)
    for row, entry in zip(rows, expected["image"], strict=True):
        image = decode(row.image)
        assert (row.key, list(image.size)) == (entry["key"], entry["size"])
        np.testing.assert_allclose(
            np.asarray(image).reshape(-1, 3).mean(0), entry["mean_rgb"], atol=0.01
        )


def test_the_mismatched_key_of_the_bad_example_is_found(golden_tsv, tmp_path):
    rows = open_rows([golden_tsv / "bad/image_00.tsv"], "image", dataroot=golden_tsv)
    cache = adopt_tsv(
        [golden_tsv / "bad/image_00.feat.tsv"], ["bad/image_00.tsv"], "image", tmp_path
    )
    with pytest.raises(CacheError, match="bad/image_00.tsv, row 0: .*'gcc_img_000'.*'WRONG_KEY'"):
        align(rows, cache)


def test_the_undecodable_image_of_the_bad_example_is_a_bad_row_and_no_grey_square(golden_tsv):
    rows = open_rows([golden_tsv / "bad/image_00.tsv"], "image")
    assert decode(rows[0].image).size == (30, 20)
    with pytest.raises(BadRow, match="not an image"):
        decode(rows[1].image)


def feature_tsv(path, rows, keys=None):
    lines = [
        f"{(keys or {}).get(i, f'k{i}')}\t{base64.b64encode(row.tobytes()).decode()}\n"
        for i, row in enumerate(rows)
    ]
    path.write_text("".join(lines))
    return path


def vectors(n, dim, dtype="float32", length=None):
    rows = np.random.default_rng(dim).standard_normal((n, dim))
    if length:
        rows *= length / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(dtype)


@pytest.mark.parametrize("length", [1.0, 10.0, None])
@pytest.mark.parametrize("dim", [64, 768])
def test_float16_features_are_refused_and_not_read_as_nonsense(tmp_path, length, dim):
    path = feature_tsv(tmp_path / "a.feat.tsv", vectors(5, dim, "float16", length))
    with pytest.raises(
        CacheError,
        match=rf"a\.feat\.tsv: as float32\[{dim // 2}\].*as float16\[{dim}\].*write the file again",
    ):
        adopt_tsv([path], ["a.tsv"], "image", tmp_path / "out")
    with pytest.raises(CacheError):
        FeatureCache(tmp_path / "out")


@pytest.mark.parametrize("source", ["float32", "float16"])
@pytest.mark.parametrize("length", [0.01, 1.0, 10.0, 300.0])
def test_float32_features_are_taken_as_they_are_even_when_rounded(tmp_path, source, length):
    rows = vectors(5, 768, source, length).astype(np.float32)
    cache = adopt_tsv(
        [feature_tsv(tmp_path / "a.feat.tsv", rows)], ["a.tsv"], "image", tmp_path / "out"
    )
    np.testing.assert_array_equal(cache[:], rows)


def test_lines_may_end_as_on_windows(tmp_path):
    rows = vectors(5, 8)
    path = feature_tsv(tmp_path / "a.feat.tsv", rows)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    np.testing.assert_array_equal(adopt_tsv([path], ["a.tsv"], "image", tmp_path / "out")[:], rows)


def test_a_row_that_is_not_finite_or_has_no_length_is_quarantined(tmp_path):
    rows = vectors(5, 8)
    rows[1, 3], rows[2, 0], rows[4] = np.nan, np.inf, 0
    cache = adopt_tsv(
        [feature_tsv(tmp_path / "a.feat.tsv", rows)], ["a.tsv"], "text", tmp_path / "out"
    )
    np.testing.assert_array_equal(cache[:], rows[[0, 3]])
    assert cache.manifest.shards[0].bad == (1, 2, 4)
    listed = [
        json.loads(line) for line in (cache.root / "quarantine.jsonl").read_text().splitlines()
    ]
    assert [(entry["row"], entry["key"]) for entry in listed] == [(1, "k1"), (2, "k2"), (4, "k4")]
    assert "not finite" in listed[0]["reason"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["k0\t@@@\n"], "row 0: the second column is not base64"),
        (["k0\n"], "row 0: 0 bytes"),
        ([""], "row 0: 0 bytes"),
        (["k0\tQUJD\n"], "row 0: 3 bytes, expected a multiple of 4"),
        (["k0\tQUJDRA==\n", "k1\n"], "row 1: 0 bytes, expected 4 for"),
        (
            ["k0\tQUJDRA==\n", "k1\tQUJDREVGR0g=\n"],
            "row 1: 8 bytes, expected 4 for float32.1.. Fix: write every row",
        ),
        (["k0\tQUJDRA==\n", "k1\t!\n"], "row 1: not base64"),
    ],
)
def test_a_file_that_is_no_feature_tsv_is_refused_at_its_row(tmp_path, lines, reason):
    (tmp_path / "a.feat.tsv").write_text("".join(lines))
    with pytest.raises(CacheError, match=f"a.feat.tsv, {reason}"):
        adopt_tsv([tmp_path / "a.feat.tsv"], ["a.tsv"], "image", tmp_path / "out")


def test_a_second_file_of_another_dimension_is_refused(tmp_path):
    files = [feature_tsv(tmp_path / f"{dim}.feat.tsv", vectors(2, dim)) for dim in (8, 6)]
    with pytest.raises(
        CacheError, match=r"6\.feat\.tsv, row 0: 24 bytes, expected 32 for float32\[8\]"
    ):
        adopt_tsv(files, ["8.tsv", "6.tsv"], "image", tmp_path / "out")


def test_an_interrupted_adoption_goes_on_and_a_finished_one_is_left_alone(tmp_path, digests):
    files = [feature_tsv(tmp_path / f"{i}.feat.tsv", vectors(3, 4) + i) for i in range(2)]
    kept = files[1].read_text()
    files[1].write_text(kept.replace("\t", "\t!"))
    with pytest.raises(CacheError):
        adopt_tsv(files, ["0.tsv", "1.tsv"], "image", tmp_path / "out")
    files[1].write_text(kept)
    cache = adopt_tsv(files, ["0.tsv", "1.tsv"], "image", tmp_path / "out")
    assert len(cache) == 6
    before = digests(tmp_path / "out")
    adopt_tsv(files, ["0.tsv", "1.tsv"], "image", tmp_path / "out")
    assert digests(tmp_path / "out") == before


class DimeReader:
    """DIME-FM's loader in few words: seek to the offset that the index states, split at tabs,
    base64, float32.

    After Training/datasets/tsv_file.py:41-72,112-123 and tsv.py of the release.
    """

    def __init__(self, path):
        with open(path.with_suffix(".lineidx")) as index:
            self.offsets = [int(line.strip()) for line in index]
        self.path = path

    def __len__(self):
        return len(self.offsets)

    def __getitem__(self, row):
        with open(self.path) as file:
            file.seek(self.offsets[row])
            key, value = (part.strip() for part in file.readline().split("\t"))
        return key, np.frombuffer(base64.b64decode(value), dtype=np.float32)


def test_our_tsv_shards_are_read_by_dime_fms_loader(tmp_path):
    keys, rows = [f"photo {i} ü.jpg" for i in range(9)], vectors(9, 768)
    card = EncoderCard("t", "00", 768, 100.0)
    writer = CacheWriter(
        tmp_path,
        Manifest("image", "tsv", "float32", 768, True, card, {}, {}),
        [("image_00.tsv", 9)],
    )
    writer.write("image_00.tsv", keys, rows)
    info = writer.seal().shards[0]
    assert info.file == "image_00.feat.tsv"
    theirs = DimeReader(tmp_path / info.file)
    assert len(theirs) == 9
    for row in (8, 0, 4, 4):
        key, found = theirs[row]
        assert key == keys[row]
        np.testing.assert_array_equal(found, rows[row])
    again = adopt_tsv([tmp_path / info.file], ["image_00.tsv"], "image", tmp_path / "again")
    np.testing.assert_array_equal(again[:], rows)

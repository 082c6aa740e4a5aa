"""Feature files of others: what each form holds is taken up exactly, under its own keys or those of
the raw rows.
"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dimefm import plugins
from dimefm.cache import FeatureCache, Manifest
from dimefm.cache.importing import adopt
from dimefm.errors import CacheError
from dimefm.storage.files import sampled_sha256, sha256_keys
from tests.cache.importing.foreign import KEYS, clip_retrieval, saved, stored, take_up, vectors


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("format", plugins.names("caches"))
def test_an_array_is_taken_up_as_it_is(tmp_path, dtype, format):
    rows = vectors(dtype=dtype)
    out = tmp_path / "out"
    result = take_up([saved(tmp_path / "a.npy", rows)], out, format=format)
    keys, found = stored(out)
    assert keys == ["0", "1", "2", "3", "4"]
    halves = dtype == plugins.module("caches", format).DEFAULT_DTYPE == "float16"
    expected = "float16" if halves else "float32"
    assert result.manifest.dtype == expected
    np.testing.assert_array_equal(found, rows.astype(expected))
    info = result.manifest.shards[0]
    assert (info.source, info.source_digest) == ("a.npy", sampled_sha256(tmp_path / "a.npy"))
    assert result.manifest.how["adopted"] == "npy" and result.manifest.how["keys"] == "row numbers"


def test_an_array_in_columns_order_and_one_without_rows_are_taken_up(tmp_path):
    rows = vectors()
    paths = [
        saved(tmp_path / "a.npy", np.asfortranarray(rows)),
        saved(tmp_path / "b.npy", rows[:0]),
    ]
    take_up(paths, tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out")[1], rows)


@given(
    rows=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 40), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=True),
    ),
    normalize=st.booleans(),
    block=st.integers(1, 9),
)
def test_rows_in_are_rows_out_and_rows_quarantined(tmp_path_factory, rows, normalize, block):
    folder = tmp_path_factory.mktemp("adopt")
    path = saved(folder / "a.npy", rows)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adopt, "BLOCK", block)
        if not usable.any():
            with pytest.raises(CacheError, match=f"none of the {len(rows)} rows can be used"):
                take_up([path], folder / "out", normalize=normalize)
            return
        manifest = take_up([path], folder / "out", normalize=normalize).manifest
    keys, found = stored(folder / "out")
    assert keys == [str(i) for i in np.flatnonzero(usable)]
    assert manifest.shards[0].bad == tuple(np.flatnonzero(~usable))
    expected = rows[usable] / lengths[usable, None] if normalize else rows[usable]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-38)
    assert manifest.normalized == (normalize or bool((np.abs(lengths[usable] - 1) <= 1e-3).all()))


def test_unusable_rows_are_listed_with_their_keys_and_reasons(tmp_path):
    rows = vectors()
    rows[1, 3], rows[2, 0], rows[4] = np.nan, 1e6, 0
    (tmp_path / "keys.txt").write_text("\n".join(KEYS), encoding="utf-8")
    result = take_up(
        [saved(tmp_path / "a.npy", rows)],
        tmp_path / "out",
        dtype="float16",
        keys=[tmp_path / "keys.txt"],
    )
    listed = [
        json.loads(line)
        for line in (tmp_path / "out/quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(entry["row"], entry["key"]) for entry in listed] == [(i, KEYS[i]) for i in (1, 2, 4)]
    assert [entry["reason"] for entry in listed] == [
        "feature is not finite as float16",
        "feature is not finite as float16",
        "feature has no length as float16",
    ]
    assert "5 rows in = 2 rows out + 3 quarantined" in result.describe()


@pytest.mark.parametrize(
    ("length", "unit"), [(1.0, True), (1.0009, True), (1.002, False), (0.99, False), (10.0, False)]
)
def test_unit_length_is_measured(tmp_path, length, unit):
    rows = vectors(dtype="float64")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[3] *= length
    result = take_up([saved(tmp_path / "a.npy", rows)], tmp_path / "out")
    assert result.manifest.normalized == unit
    assert ("not unit length" in result.describe()) != unit


@pytest.mark.parametrize(
    ("name", "text", "column"),
    [
        ("k.txt", "{}\n{}\n{}\n{}\n{}", None),
        ("k.txt", "{}\r\n{}\r\n{}\r\n{}\r\n{}\r\n", None),
        ("k.tsv", '{}\ta "quote\n{}\tb\n{}\tc\n{}\td\n{}\te\n', None),
        ("k.csv", '{},"a, b"\n{},b\n{},c\n{},d\n{},e\n', None),
        ("k.csv", "n,name\n0,{}\n1,{}\n2,{}\n3,{}\n4,{}\n", "name"),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_keys_come_from_a_file(tmp_path, name, text, column, ending):
    (tmp_path / name).write_bytes(text.format(*KEYS).encode())
    path = tmp_path / f"a.{ending}"
    np.save(path, vectors()) if ending == "npy" else np.savez(path, vectors())
    manifest = take_up([path], tmp_path / "out", keys=[tmp_path / name], key_column=column).manifest
    assert stored(tmp_path / "out")[0] == KEYS
    assert manifest.how["keys"] == name + (", column name" if column else "")


def test_the_same_key_may_stand_several_times(tmp_path):
    (tmp_path / "k.txt").write_text("a\na\nb\nb\nb\n")
    take_up([saved(tmp_path / "a.npy", vectors())], tmp_path / "out", keys=[tmp_path / "k.txt"])
    assert stored(tmp_path / "out")[0] == list("aabbb")


@pytest.mark.parametrize(
    "keys", [np.array(KEYS), np.array([k.encode() for k in KEYS]), np.arange(5), None]
)
def test_named_arrays_are_taken_with_their_keys(tmp_path, keys):
    rows, expected = (
        vectors(dtype="float16"),
        (KEYS if keys is None or keys.dtype.kind in "US" else list("01234")),
    )
    if keys is None:
        np.savez_compressed(tmp_path / "a.npz", text=rows, image=rows + 1, names=np.array(KEYS))
        take_up([tmp_path / "a.npz"], tmp_path / "out", array="text", key_column="names")
    else:
        np.savez(tmp_path / "a.npz", rows, keys=keys)
        take_up([tmp_path / "a.npz"], tmp_path / "out")
    found, out = stored(tmp_path / "out")
    assert found == expected
    np.testing.assert_array_equal(out, rows)


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("pad", [0, 2])
def test_clip_retrievals_folder_is_taken_in_the_order_of_its_numbers(tmp_path, kind, pad):
    rows, paths = clip_retrieval(tmp_path / "emb", [1, 2, 0, 1, 1, 1, 1, 1, 1, 1, 2, 3], pad=pad)
    manifest = take_up([tmp_path / "emb"], tmp_path / "out", kind).manifest
    keys, found = stored(tmp_path / "out")
    np.testing.assert_array_equal(found, rows[kind])
    assert keys == paths
    assert len(manifest.shards) == 11 and manifest.how["adopted"] == "clip-retrieval"
    assert manifest.how["keys"] == "column image_path of the metadata"


@pytest.mark.parametrize(
    ("columns", "asked", "keys"),
    [
        (("image_path", "key"), "key", ["c0", "c1"]),
        (("caption", "key"), None, ["c0", "c1"]),
        (("caption",), "caption", ["c0", "c1"]),
        (("caption",), None, ["0", "1"]),
    ],
)
def test_clip_retrievals_keys_are_a_column(tmp_path, columns, asked, keys):
    clip_retrieval(tmp_path / "emb", [2], columns=columns)
    take_up([tmp_path / "emb"], tmp_path / "out", key_column=asked)
    assert stored(tmp_path / "out")[0] == keys


def test_a_long_mapped_file_is_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(adopt, "ROWS_PER_SHARD", 2)
    rows = vectors()
    path = saved(tmp_path / "a.npy", rows)
    (tmp_path / "keys.txt").write_text("\n".join(KEYS), encoding="utf-8")
    shards = take_up([path], tmp_path / "out", keys=[tmp_path / "keys.txt"]).manifest.shards
    keys, found = stored(tmp_path / "out")
    assert keys == KEYS
    np.testing.assert_array_equal(found, rows)
    assert [s.source for s in shards] == ["a.npy/00000", "a.npy/00001", "a.npy/00002"]
    whole = sha256_keys([sampled_sha256(path), sampled_sha256(tmp_path / "keys.txt")])
    assert shards[1].source_digest == sha256_keys([whole, "2-4"])


def test_a_finished_adoption_is_left_alone_and_an_interrupted_one_goes_on(
    tmp_path, digests, monkeypatch
):
    paths = [saved(tmp_path / f"{i}.npy", vectors(seed=i)) for i in range(3)]
    write, written = adopt.CacheWriter.write, []

    def fail_at_the_third(self, source, *rest):
        written.append(source)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(self, source, *rest)

    monkeypatch.setattr(adopt.CacheWriter, "write", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        take_up(paths, tmp_path / "out")
    with pytest.raises(CacheError, match="unfinished"):
        FeatureCache(tmp_path / "out")
    assert not take_up(paths, tmp_path / "out").already
    assert written == ["0.npy", "1.npy", "2.npy", "2.npy"]
    before = digests(tmp_path / "out")
    again = take_up(paths, tmp_path / "out")
    assert again.already and "finished already, 15 rows; nothing to do" in again.describe()
    assert digests(tmp_path / "out") == before and len(written) == 4


@pytest.mark.parametrize("change", ["vectors", "keys"])
@pytest.mark.parametrize("raw", [False, True])
def test_other_files_never_pass_for_a_finished_adoption(tmp_path, change, raw):
    path, keys = saved(tmp_path / "a.npy", vectors()), tmp_path / "keys.txt"
    keys.write_text("\n".join(KEYS), encoding="utf-8")
    more = {"keys": [keys], "raw": [Raw("s", KEYS)] if raw else None}
    take_up([path], tmp_path / "out", **more)
    if change == "vectors":
        saved(path, vectors() + 1)
    else:
        keys.write_text("\n".join(reversed(KEYS)), encoding="utf-8")
    with pytest.raises(CacheError, match="already holds a cache made otherwise .*how.files"):
        take_up([path], tmp_path / "out", **more)


class Raw:
    """A raw shard of ``keys``, as adoption sees one."""

    def __init__(self, name, keys):
        self.name, self._keys = name, keys

    def __len__(self):
        return len(self._keys)

    def keys(self):
        return self._keys

    def digest(self):
        return "digest of " + self.name


@pytest.mark.parametrize("cuts", [[4, 1], [0, 2, 3], [5], [1, 1, 1, 1, 1]])
def test_rows_take_the_names_keys_and_digests_of_raw_shards(tmp_path, cuts):
    rows = vectors()
    paths = [saved(tmp_path / "a.npy", rows[:3]), saved(tmp_path / "b.npy", rows[3:])]
    paths = paths if cuts != [4, 1] else [saved(tmp_path / "c.npy", rows)]
    ends = np.cumsum([0, *cuts])
    raw = [
        Raw(f"s{i}.tar", KEYS[a:b]) for i, (a, b) in enumerate(zip(ends, ends[1:], strict=False))
    ]
    manifest = take_up(paths, tmp_path / "out", raw=raw).manifest
    keys, found = stored(tmp_path / "out")
    assert keys == KEYS and manifest.how["keys"] == "raw rows"
    np.testing.assert_array_equal(found, rows)
    assert [(s.source, s.source_rows, s.source_digest) for s in manifest.shards] == [
        (shard.name, len(shard), shard.digest()) for shard in raw
    ]


def test_counts_must_agree_with_the_raw_shards_one_by_one(tmp_path):
    paths = [saved(tmp_path / "a.npy", vectors(3)), saved(tmp_path / "b.npy", vectors(2))]
    with pytest.raises(
        CacheError, match=r"a\.npy: 3 rows, but s0 has 2; expected one feature row for each raw row"
    ):
        take_up(paths, tmp_path / "out", raw=[Raw("s0", KEYS[:2]), Raw("s1", KEYS[2:])])
    with pytest.raises(CacheError, match=r"5 rows in 2 feature files, but the 1 raw shards have 4"):
        take_up(paths, tmp_path / "out", raw=[Raw("s0", KEYS[:4])])


def test_keys_of_the_files_must_be_those_of_the_raw_rows(tmp_path):
    _, paths = clip_retrieval(tmp_path / "emb", [3, 2])
    short = [path.removeprefix("/data/") for path in paths]
    assert (
        take_up([tmp_path / "emb"], tmp_path / "out", raw=[Raw("photos", short)]).manifest.rows == 5
    )
    with pytest.raises(
        CacheError,
        match=r"photos, row 0: the raw row has key '1/1\.jpg', its vector in .*/0/0\.jpg'",
    ):
        take_up([tmp_path / "emb"], tmp_path / "other", raw=[Raw("photos", short[::-1])])


def test_real_class_vectors_are_not_called_unit_length_and_find_dogs(tmp_path, shared_data):
    features = shared_data / "features"
    photos = features / "flickr8k_clip_vitb32"
    take_up([photos / "image_features.npy"], tmp_path / "images", keys=[photos / "image_keys.txt"])
    for name in ("lvis1203", "coco80"):
        names = features / "class_text_clip_vitb32" / f"{name}.txt"
        take_up([names.with_suffix(".npy")], tmp_path / name, "text", keys=[names])
        manifest = Manifest.read(tmp_path / name)
        assert not manifest.normalized and manifest.dtype == "float16"
    assert Manifest.read(tmp_path / "images").normalized
    classes, rows = stored(tmp_path / "coco80")
    dog = rows[classes.index("dog")].astype(np.float32)
    keys, images = stored(tmp_path / "images")
    captions = [
        line.split("\t")
        for line in (photos / "captions.tsv").read_text(encoding="utf-8").splitlines()
    ]
    dogs = {name for name, caption in captions if "dog" in caption.lower()}
    has = np.array([key in dogs for key in keys])
    scores = images @ (dog / np.linalg.norm(dog))
    assert (scores[has][:, None] > scores[~has]).mean() == pytest.approx(0.987, abs=5e-4)

"""Feature files of others that cannot be told or trusted are refused in one line."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm.cache import EncoderCard
from dimefm.cache.importing.adopt import header
from dimefm.cache.importing.sources import open_vectors
from dimefm.errors import CacheError
from tests.cache.importing.foreign import clip_retrieval, cut, saved, take_up, vectors


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def pickled(path):
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("make", "how", "message"),
    [
        (lambda d: [pickled(d / "a.npy")], {}, r"a\.npy: not a whole \.npy file of numbers"),
        (
            lambda d: [npz(d / "a.npz", x=np.array([{}], dtype=object))],
            {},
            r"a\.npz, array x: cannot be read",
        ),
        (
            lambda d: [saved(d / "a.npy", np.zeros(4))],
            {},
            r"shape \[4\], expected \[rows, dimensions\]",
        ),
        (
            lambda d: [saved(d / "a.npy", np.zeros((2, 3, 4)))],
            {},
            r"shape \[2, 3, 4\], expected \[rows, dimensions\]",
        ),
        (lambda d: [saved(d / "a.npy", np.zeros((2, 0)))], {}, r"shape \[2, 0\]"),
        (
            lambda d: [saved(d / "a.npy", np.ones((2, 3), dtype=int))],
            {},
            "numbers are int64, expected float16",
        ),
        (
            lambda d: [saved(d / "a.npy", np.ones((2, 3), dtype=complex))],
            {},
            "numbers are complex128",
        ),
        (
            lambda d: [saved(d / "a.npy", np.full((2, 3), np.nan))],
            {},
            "none of the 2 rows can be used as float32",
        ),
        (lambda d: [saved(d / "a.npy", np.zeros((2, 3)))], {}, "none of the 2 rows can be used"),
        (lambda d: [saved(d / "a.npy", np.zeros((0, 3)))], {}, "none of the 0 rows can be used"),
        (lambda d: [cut(saved(d / "a.npy", vectors()))], {}, r"a\.npy: not a whole \.npy file"),
        (
            lambda d: [cut(saved(d / "a.npy", vectors()), 0.05)],
            {},
            r"a\.npy: not a whole \.npy file",
        ),
        (lambda d: [cut(npz(d / "a.npz", x=vectors()))], {}, r"a\.npz: not a whole \.npz file"),
        (
            lambda d: [npz(d / "a.npz", x=vectors()).rename(d / "a.npy")],
            {},
            r"a\.npy: not a whole \.npy file",
        ),
        (
            lambda d: [saved(d / "a.npy", vectors()).rename(d / "a.npz")],
            {},
            r"a\.npz: not a whole \.npz file",
        ),
        (
            lambda d: [npz(d / "a.npz", x=vectors(), y=vectors())],
            {},
            r"2 arrays could be the vectors \(x, y\). .*--array",
        ),
        (lambda d: [npz(d / "a.npz", keys=np.arange(2))], {}, "there are no vectors"),
        (
            lambda d: [npz(d / "a.npz", x=vectors())],
            {"array": "z"},
            "there is no array z; it holds x",
        ),
        (
            lambda d: [npz(d / "a.npz", x=vectors())],
            {"key_column": "ids"},
            "there is no array ids; it holds x",
        ),
        (
            lambda d: [npz(d / "a.npz", x=vectors(), keys=np.arange(4))],
            {},
            r"5 rows, but .*a\.npz has 4 keys",
        ),
        (
            lambda d: [npz(d / "a.npz", x=vectors(), keys=np.arange(5.0))],
            {},
            r"array keys: float64 of shape \[5\]",
        ),
        (
            lambda d: [npz(d / "a.npz", x=vectors(), keys=np.array([b"\xff"] * 5))],
            {},
            "a key is not UTF-8",
        ),
        (
            lambda d: [saved(d / "a.npy", vectors())],
            {"array": "x"},
            "--array x: npy files hold one array",
        ),
        (
            lambda d: [saved(d / "a.npy", vectors())],
            {"key_column": "x"},
            "--key-column x: npy files have no columns",
        ),
        (
            lambda d: [saved(d / "a.npy", vectors(2)), saved(d / "b.npy", vectors(2, 6))],
            {},
            "vectors of 6 .*expected 8",
        ),
        (
            lambda d: [saved(d / "a.npy", vectors()), npz(d / "b.npz", x=vectors())],
            {},
            r"files of 2 forms \(npy, npz\)",
        ),
        (lambda d: [d / "none.npy"], {}, "there is no such feature file"),
        (
            lambda d: [saved(d / "a.npy", vectors()).rename(d / "a.bin")],
            {},
            r"'\.bin' is of no known form\. Fix: name \.npy",
        ),
        (
            lambda d: [saved(d / "a/b.npy", vectors()).parent],
            {},
            "holds neither img_emb/ nor text_emb/",
        ),
        (lambda d: [saved(d / "img_emb/b.npy", vectors()).parent], {}, "name the folder around it"),
    ],
)
def test_what_cannot_be_trusted_is_refused_in_one_line(tmp_path, make, how, message):
    with pytest.raises(CacheError, match=message) as refused:
        take_up(make(tmp_path), tmp_path / "out", **how)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        (
            "k.txt",
            b"a\nb\n",
            None,
            r"a\.npy: 5 rows, but .*k\.txt has 2 keys; expected one key a row\. Fix: name the keys"
            r" of these rows$",
        ),
        (
            "k.csv",
            b"key\na\nb\nc\nd\ne\n",
            None,
            "6 keys; .*first line is a header, name a column of it with --key-column",
        ),
        (
            "k.csv",
            b"key\na\nb\nc\nd\ne\n",
            "name",
            r"k\.csv: there is no column name; its first line has key",
        ),
        ("k.txt", b"\xff\xfe\n", None, r"k\.txt: cannot be read as keys"),
        ("k.tsv", b"a\tb\nc\n", "b", r"k\.tsv: cannot be read as keys"),
        ("k.txt", b"a\n", "b", r"--key-column b: .*k\.txt have no columns"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path, name, content, column, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CacheError, match=message):
        take_up(
            [saved(tmp_path / "a.npy", vectors())],
            tmp_path / "out",
            keys=[tmp_path / name],
            key_column=column,
        )


def test_each_feature_file_needs_its_own_key_file(tmp_path):
    paths = [saved(tmp_path / f"{i}.npy", vectors()) for i in range(2)]
    with pytest.raises(CacheError, match="--keys: 1 files for 2 feature files"):
        open_vectors(paths, "image", keys=[tmp_path / "k.txt"])
    clip_retrieval(tmp_path / "emb")
    with pytest.raises(CacheError, match="clip-retrieval files have keys of their own"):
        open_vectors([tmp_path / "emb"], "image", keys=[tmp_path / "k.txt"])


def damage_metadata(folder, what):
    table = folder / "metadata/metadata_1.parquet"
    if what == "missing":
        table.unlink()
    elif what == "cut short":
        cut(table)
    elif what == "a key is empty":
        pq.write_table(pa.table({"image_path": ["a", None]}), table)
    else:
        pq.write_table(pa.table({"image_path": ["a"]}), table)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"img_emb_1\.npy: metadata/metadata_1\.parquet is missing, which has its keys"),
        ("cut short", r"metadata_1\.parquet: not a whole Parquet file"),
        ("a row too few", r"img_emb_1\.npy: 2 rows, but .*metadata_1\.parquet has 1 keys"),
        ("a key is empty", r"metadata_1\.parquet, row 1: image_path is empty"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path, what, message):
    clip_retrieval(tmp_path / "emb")
    damage_metadata(tmp_path / "emb", what)
    with pytest.raises(CacheError, match=message):
        take_up([tmp_path / "emb"], tmp_path / "out")


def test_a_folder_without_this_kind_is_refused_and_so_are_two_files_of_one_number(tmp_path):
    clip_retrieval(tmp_path / "emb", kinds=("image",))
    with pytest.raises(
        CacheError, match=r"no text_emb_N\.npy in text_emb/\. Fix: use --kind image"
    ):
        open_vectors([tmp_path / "emb"], "text")
    with pytest.raises(CacheError, match="there is no column name; it has image_path, caption"):
        open_vectors([tmp_path / "emb"], "image", key_column="name")
    saved(tmp_path / "emb/img_emb/img_emb_01.npy", vectors(2))
    with pytest.raises(CacheError, match="another file has this partition's number too"):
        open_vectors([tmp_path / "emb"], "image")


def test_an_encoder_of_another_dimension_is_refused(tmp_path):
    opened = open_vectors([saved(tmp_path / "a.npy", vectors())], "image")
    with pytest.raises(CacheError, match="vectors of 8 numbers, but the encoder ViT makes 512"):
        header(opened, "image", EncoderCard("ViT", None, 512, 100.0), "hdf5")

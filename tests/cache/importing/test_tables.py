"""Embeddings in columns of Parquet files and datasets of HDF5 files."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm.cache.importing import vectors as vectors_of
from dimefm.cache.importing.sources import open_vectors
from dimefm.errors import CacheError
from tests.cache.importing.foreign import KEYS, cut, stored, take_up, vectors

NUMBERS = [str(row) for row in range(5)]


def lists(rows, kind="fixed"):
    """Return rows as a column of lists, of a fixed size or not."""
    flat = pa.array(rows.ravel())
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    offsets = np.arange(0, rows.size + 1, rows.shape[1])
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def parquet(path, group=2, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array
    return path


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_column_of_lists_is_taken_up(tmp_path, kind, dtype):
    rows = vectors(dtype=dtype)
    path = parquet(tmp_path / "a.parquet", label=list(range(5)), key=KEYS, e=lists(rows, kind))
    result = take_up([path], tmp_path / "out")
    keys, found = stored(tmp_path / "out")
    assert keys == KEYS
    np.testing.assert_array_equal(found, rows.astype(result.manifest.dtype))
    assert result.manifest.dtype == ("float16" if dtype == "float16" else "float32")
    assert result.manifest.how["keys"] == "column key"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_dataset_is_taken_up(tmp_path, dtype, packed):
    rows = vectors(dtype=dtype)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        options = {"chunks": (2, 8), "compression": "gzip"} if packed else {}
        file.create_dataset("model/features", data=rows, **options)
        file["keys"] = KEYS
        file["labels"] = np.arange(5)
    result = take_up([path], tmp_path / "out")
    keys, found = stored(tmp_path / "out")
    assert (keys, result.manifest.how["adopted"]) == (KEYS, "hdf5")
    np.testing.assert_array_equal(found, rows.astype(result.manifest.dtype))


@pytest.mark.parametrize(
    ("make", "how", "keys"),
    [
        (lambda d: parquet(d / "a.parquet", e=lists(vectors())), {}, NUMBERS),
        (lambda d: parquet(d / "a.parquet", e=lists(vectors()), image_path=KEYS), {}, KEYS),
        (
            lambda d: parquet(d / "a.parquet", e=lists(vectors()), id=list(range(5)), key=KEYS),
            {"key_column": "id"},
            NUMBERS,
        ),
        (
            lambda d: parquet(d / "a.parquet", e=lists(vectors()), f=lists(vectors(dim=3))),
            {"array": "e"},
            NUMBERS,
        ),
        (lambda d: hdf5(d / "a.h5", e=vectors()), {}, NUMBERS),
        (lambda d: hdf5(d / "a.hdf5", e=vectors(), key=np.array(NUMBERS, "S")), {}, NUMBERS),
        (lambda d: hdf5(d / "a.h5", e=vectors(), n=np.arange(5)), {"key_column": "n"}, NUMBERS),
        (
            lambda d: hdf5(d / "a.h5", g__e=vectors(), f=vectors(dim=3)),
            {"array": "/g/e"},
            NUMBERS,
        ),
    ],
)
def test_columns_are_found_or_named(tmp_path, make, how, keys):
    take_up([make(tmp_path)], tmp_path / "out", **how)
    assert stored(tmp_path / "out")[0] == keys
    np.testing.assert_array_equal(stored(tmp_path / "out")[1], vectors())


def test_keys_of_a_file_of_their_own(tmp_path):
    (tmp_path / "keys.txt").write_text("\n".join(KEYS))
    path = hdf5(tmp_path / "a.h5", e=vectors(), keys=np.arange(5))
    take_up([path], tmp_path / "out", keys=[tmp_path / "keys.txt"])
    assert stored(tmp_path / "out")[0] == KEYS


def _uneven(folder, row):
    values = [[1.0] * 8 for _ in range(5)]
    values[row] = values[row] if row < 0 else [1.0] * 9
    values[4] = [1.0] * 8 if row != 4 else [1.0] * 9
    return parquet(folder / "a.parquet", e=pa.array(values, pa.list_(pa.float32())))


def _with_null(folder, column):
    values = [None if row == 3 else [1.0] * 8 for row in range(5)]
    keys = [None if row == 3 and column == "key" else f"k{row}" for row in range(5)]
    if column == "key":
        values[3] = [1.0] * 8
    return parquet(folder / "a.parquet", e=pa.array(values, pa.list_(pa.float32())), key=keys)


def _bomb(folder):
    column = pa.ListArray.from_arrays([0, 1 << 20], pa.array(np.zeros(1 << 20, np.float32)))
    pq.write_table(pa.table({"e": column}), folder / "a.parquet", compression="zstd")
    return folder / "a.parquet"


def _hdf5_bomb(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("e", (1 << 30, 8), "f4", chunks=(1 << 17, 8), compression="gzip")
    return folder / "a.h5"


def _elsewhere(folder, how):
    hdf5(folder / "secret.h5", e=vectors())
    with h5py.File(folder / "a.h5", "w") as file:
        if how == "link":
            file["e"] = h5py.ExternalLink("secret.h5", "e")
        elif how == "external":
            (folder / "raw").write_bytes(bytes(160))
            file.create_dataset("e", (5, 8), "f4", external=[("raw", 0, 160)])
        else:
            layout = h5py.VirtualLayout((5, 8), "f4")
            layout[:] = h5py.VirtualSource("secret.h5", "e", (5, 8))
            file.create_virtual_dataset("e", layout)
    return folder / "a.h5"


def _circle(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["e"] = vectors()
        for name in ("f", "g"):
            file.create_group(name)[name] = file["/"]
    return folder / "a.h5"


REFUSED = [
    (lambda d: _uneven(d, 2), {}, "row 2 has 9 numbers, expected 8 as in row 0"),
    (lambda d: _with_null(d, "e"), {}, "numbers in 5 rows, expected 8 as in row 0"),
    (lambda d: _with_null(d, "key"), {}, "row 3: key is empty"),
    (lambda d: parquet(d / "a.parquet", x=NUMBERS), {}, "there are no vectors"),
    (
        lambda d: parquet(d / "a.parquet", e=lists(vectors()), f=lists(vectors())),
        {},
        r"2 arrays could be the vectors \(e, f\)\. Fix: name one with --array",
    ),
    (lambda d: parquet(d / "a.parquet", e=lists(vectors())), {"array": "z"}, "no column z"),
    (
        lambda d: parquet(d / "a.parquet", e=lists(vectors()), k=NUMBERS),
        {"array": "k"},
        "column k: string, expected lists",
    ),
    (lambda d: parquet(d / "a.parquet", e=lists(vectors())), {"key_column": "z"}, "no column z"),
    (lambda d: parquet(d / "a.parquet", e=lists(vectors()[:0])), {}, "the file has no rows"),
    (_bomb, {}, "bytes that unpack to 4,194,304"),
    (lambda d: cut(parquet(d / "a.parquet", e=lists(vectors()))), {}, "not a whole Parquet file"),
    (_hdf5_bomb, {}, "bytes that unpack to"),
    (lambda d: cut(hdf5(d / "a.h5", e=vectors())), {}, "not a whole HDF5 file"),
    (lambda d: hdf5(d / "a.h5", x=np.arange(5)), {}, "there are no vectors"),
    (
        lambda d: hdf5(d / "a.h5", e=vectors(), f=vectors()),
        {},
        r"2 arrays could be the vectors \(e, f\)",
    ),
    (lambda d: hdf5(d / "a.h5", e=vectors(), keys=NUMBERS[:3]), {}, "5 rows, .*has 3 keys"),
    (lambda d: hdf5(d / "a.h5", e=np.ones((5, 8), "i4")), {"array": "e"}, "numbers are int32"),
    (lambda d: hdf5(d / "a.h5", e=vectors(), keys=vectors()), {"array": "e"}, r"keys: float32 of"),
    (_circle, {"array": "none"}, "datasets|no dataset none"),
    *(
        (lambda d, how=how: _elsewhere(d, how), {}, "there are no vectors")
        for how in ("link", "external", "virtual")
    ),
]


@pytest.mark.parametrize(("make", "how", "reason"), REFUSED)
def test_what_holds_no_vectors_is_refused_in_one_line(tmp_path, monkeypatch, make, how, reason):
    monkeypatch.setattr(vectors_of, "SMALL", 1 << 20)
    path = make(tmp_path)
    with pytest.raises(CacheError, match=reason) as caught:
        for file in open_vectors([path], "image", **how):
            file.read(0, file.count)
    message = str(caught.value)
    assert "Fix: " in message and "\n" not in message and len(message) <= 500


def test_a_number_that_is_null_quarantines_its_row(tmp_path):
    whole = [np.float16(1.0), np.float16(2.0), np.float16(0.5)]
    values = [whole, whole, whole, [*whole[:2], None], whole]
    path = parquet(tmp_path / "a.parquet", e=pa.array(values, pa.list_(pa.float16())))
    result = take_up([path], tmp_path / "out")
    assert [info.bad for info in result.manifest.shards] == [(3,)]


@pytest.mark.parametrize("make", ["parquet", "hdf5"])
def test_changed_bytes_give_rows_or_one_line(tmp_path, make):
    rows = vectors()
    if make == "parquet":
        path = parquet(tmp_path / "a.parquet", e=lists(rows), key=KEYS)
    else:
        path = hdf5(tmp_path / "a.h5", e=rows, keys=np.array(NUMBERS, "S"))
    content = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        for place in random.integers(0, len(content), 3):
            changed[place] = random.integers(0, 256)
        path.write_bytes(bytes(changed))
        try:
            for file in open_vectors([path], "image"):
                file.read(0, file.count)
        except CacheError as error:
            refused += 1
            assert len(str(error)) <= 500 and "\n" not in str(error)
    assert refused

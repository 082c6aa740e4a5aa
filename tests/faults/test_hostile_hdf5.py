"""HDF5 shards as an attacker lays them out: links, storage outside the file, datasets of another
form or of absurd size.
"""

import h5py
import numpy as np
import pytest

from dimefm.cache import FeatureCache
from dimefm.cache.formats import BLOCK
from dimefm.storage.files import sha256_keys
from tests.faults import forging
from tests.faults.conftest import READS, refused


def rebuilt(root, reader, build, **changes):
    """Replace shard 0 by what ``build(file, rows, keys)`` writes, forge the manifest, and return
    what reading gives.
    """
    cache = FeatureCache(root)
    info = cache.manifest.shards[0]
    keys, rows = cache.read(info)
    path = root / info.file
    path.unlink()
    with h5py.File(path, "w") as file:
        build(file, rows, np.array([key.encode() for key in keys]))
    offset = {"offset": None} if path.stat().st_size < info.offset + rows.nbytes else {}
    forging.forge(root, lambda fields: fields["shards"][0].update(**offset, **changes))
    return reader(root)


def test_a_shard_as_another_writer_of_hdf5_lays_it_out_is_read(made, reader):
    def build(file, rows, keys):
        file["row"], file["key"] = rows, keys

    root = made("hdf5")
    found = rebuilt(root, reader, build, offset=None)
    assert found["read"] == "fine"


def other(root, name="secret.h5"):
    """Return the path of an HDF5 file outside the cache with rows and keys that fit."""
    path = root.with_name(name)
    cache = FeatureCache(root)
    keys, rows = cache.read(cache.manifest.shards[0])
    with h5py.File(path, "w") as file:
        file["row"], file["key"] = rows, np.array([key.encode() for key in keys])
    return str(path)


@pytest.mark.parametrize("dataset", ["row", "key"])
@pytest.mark.parametrize("link", ["external", "soft", "group", "missing", "named type"])
def test_hdf5_links_are_refused(made, reader, dataset, link):
    root = made("hdf5")
    secret = other(root)

    def build(file, rows, keys):
        file["row"], file["key"] = rows, keys
        file.move(dataset, "elsewhere")
        if link == "external":
            file[dataset] = h5py.ExternalLink(secret, dataset)
        elif link == "soft":
            file[dataset] = h5py.SoftLink("/elsewhere")
        elif link == "group":
            file.create_group(dataset)
        elif link == "named type":
            file[dataset] = np.dtype("f2")

    refused(rebuilt(root, reader, build), *READS)


@pytest.mark.parametrize("dataset", ["row", "key"])
@pytest.mark.parametrize("how", ["external", "virtual"])
def test_hdf5_storage_outside_the_shard_is_refused(made, reader, dataset, how):
    root = made("hdf5")
    secret = other(root)

    def build(file, rows, keys):
        data = {"row": rows, "key": keys}
        for name, values in data.items():
            if name != dataset:
                file[name] = values
            elif how == "external":
                file.create_dataset(
                    name, values.shape, values.dtype, external=[(secret, 2048, values.nbytes)]
                )
            else:
                layout = h5py.VirtualLayout(values.shape, values.dtype)
                layout[:] = h5py.VirtualSource(secret, name, values.shape)
                file.create_virtual_dataset(name, layout)

    refused(rebuilt(root, reader, build), *READS)


def changed(name, change):
    def build(file, rows, keys):
        data = {"row": rows, "key": keys}
        data[name] = change(data[name])
        for each, values in data.items():
            if isinstance(values, dict):
                file.create_dataset(each, **values)
            else:
                file[each] = values

    return build


VLEN = h5py.string_dtype("utf-8")
SHAPES = {
    "rows chunked": changed("row", lambda rows: {"data": rows, "chunks": (2, 4)}),
    "rows compressed": changed(
        "row", lambda rows: {"data": rows, "chunks": (6, 4), "compression": "gzip"}
    ),
    "rows float32": changed("row", lambda rows: rows.astype("f4")),
    "rows integers": changed("row", lambda rows: rows.astype("i2")),
    "rows big-endian": changed("row", lambda rows: rows.astype(">f2")),
    "rows complex": changed("row", lambda rows: rows.astype("c8")),
    "rows of strings": changed("row", lambda rows: rows.astype("S4")),
    "rows of records": changed("row", lambda rows: np.zeros(rows.shape, [("a", "f2")])),
    "rows of arrays": changed("row", lambda rows: {"shape": (6,), "dtype": np.dtype(("f2", (4,)))}),
    "rows of references": changed(
        "row", lambda rows: {"shape": rows.shape, "dtype": h5py.ref_dtype}
    ),
    "rows of another dim": changed("row", lambda rows: rows[:, :3]),
    "rows too few": changed("row", lambda rows: rows[:5]),
    "rows too many": changed("row", lambda rows: np.concatenate([rows, rows])),
    "rows flat": changed("row", lambda rows: rows.reshape(-1)),
    "rows scalar": changed("row", lambda rows: np.float16(1)),
    "rows absurd": changed(
        "row", lambda rows: {"shape": (2**40, 4), "dtype": "f2", "chunks": (1, 4)}
    ),
    "rows null": changed("row", lambda rows: h5py.Empty("f2")),
    "rows with an unlimited dim": changed(
        "row", lambda rows: {"data": rows, "maxshape": (None, 4)}
    ),
    "keys of variable length": changed(
        "key", lambda keys: {"data": keys.astype(object), "dtype": VLEN}
    ),
    "keys as numbers": changed("key", lambda keys: np.arange(6)),
    "keys in two dims": changed("key", lambda keys: keys.reshape(2, 3)),
    "keys too few": changed("key", lambda keys: keys[:5]),
    "keys not UTF-8": changed("key", lambda keys: np.array([b"\xff\xfe"] * 6)),
    "keys null": changed("key", lambda keys: h5py.Empty("S4")),
    "keys beyond 64 KiB": changed("key", lambda keys: keys.astype("S100000")),
    "keys in huge chunks": changed(
        "key",
        lambda keys: {"data": keys, "chunks": (2**20,), "maxshape": (None,), "compression": "gzip"},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_hdf5_datasets_of_another_form_are_refused(made, reader, name):
    refused(rebuilt(made("hdf5"), reader, SHAPES[name]), *READS)


def test_hdf5_keys_that_unpack_to_a_thousandfold_are_refused_or_read_in_bounded_memory(
    made, reader
):
    """65,535 bytes a key, 16,384 keys: a file of a megabyte, a gigabyte of zeros."""
    root, rows = made("hdf5", counts=(6, 1)), BLOCK

    def build(file, _, keys):
        file["row"] = np.zeros((rows, 4), "f2")
        made = file.create_dataset("key", (rows,), "S65535", chunks=(4096,), compression="gzip")
        made[:1] = keys[:1]

    forging.forge(root)
    digest = sha256_keys(["k-0"] + [""] * (rows - 1))
    rebuilt(root, reader, build, rows=rows, source_rows=rows + 1, keys_sha256=digest, offset=None)

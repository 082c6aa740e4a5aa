"""Caches that are damaged, edited or made to deceive: whoever reads one gets a CacheError or the right rows, never a crash,
another exception, a file from outside, or unbounded memory. "Forged" means that the attacker made every digest fit again.
"""

import json
import math
import os
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm import plugins
from dimefm.cache import CacheWriter, FeatureCache, Manifest
from dimefm.cache.formats import BLOCK
from dimefm.cache.quarantine import quarantined
from dimefm.errors import CacheError

FORMATS = plugins.names("caches")
READS = ("read", "verify all")  # every byte passes through the format


@pytest.fixture(params=FORMATS)
def format_(request):
    return request.param


@pytest.fixture
def made(tmp_path, forging):
    """Return ``made(format_, name="cache", **options)``: the folder of a new cache of two shards."""

    def make(format_, name="cache", **options):
        forging.make(tmp_path / name, format_, **options)
        return tmp_path / name

    return make


def shard(root, number=0):
    return root / json.loads((root / "manifest.json").read_text())["shards"][number]["file"]


def files(root, number):
    """Return the file of a shard and its companions."""
    stem = shard(root, number).name.split(".feat.")[0]
    return sorted(root.glob(f"{stem}.feat.*"))


def exchange(a, b):
    for one, other in zip(a, b, strict=True):
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)


def refused(found, *operations):
    """Every one of these operations, or else all, ended with a CacheError."""
    assert [name for name in operations or found if not found[name].startswith("CacheError: ")] == [], found


def test_a_whole_cache_is_fine(made, reader, format_):
    for dtype in ("float16", "float32", "int8"):
        assert set(reader(made(format_, dtype, dtype=dtype)).values()) == {"fine"}


@pytest.mark.parametrize("part", [0, 0.3, 0.999])
def test_a_truncated_shard_is_refused_and_named(made, reader, format_, part):
    root = made(format_)
    raw = shard(root, 1).read_bytes()
    shard(root, 1).write_bytes(raw[: int(part * len(raw))])
    found = reader(root)
    refused(found, "read", "rows", "some", "verify", "verify all", "compare")
    assert "1.feat" in found["rows"] and f"the manifest says {len(raw)}" in found["rows"]


@pytest.mark.parametrize("part", [0, 0.3, 0.9])
def test_a_truncated_shard_that_is_forged_is_refused(made, reader, forging, format_, part):
    root = made(format_)
    raw = shard(root, 1).read_bytes()
    shard(root, 1).write_bytes(raw[: int(part * len(raw))])
    forging.forge(root)
    refused(reader(root), *READS)


def test_two_shards_that_changed_places_are_refused(made, reader, forging, format_):
    root = made(format_)
    exchange(files(root, 0), files(root, 1))
    found = reader(root)
    refused(found, *READS, *([] if format_ == "hdf5" else ["rows", "some"]))
    assert "0.feat" in found["read"]
    forging.forge(root)
    refused(reader(root), *READS)


def test_a_shard_of_another_cache_of_the_same_shape_is_refused(made, reader, format_):
    root, other = made(format_), made(format_, "other", seed=1)
    exchange(files(root, 0), files(other, 0))
    found = reader(root)
    refused(found, "verify all")
    assert "0.feat" in found["verify all"] and "SHA-256" in found["verify all"]


def test_a_shard_with_other_keys_is_refused_when_it_is_forged_too(made, reader, forging, format_):
    root, other = made(format_), made(format_, "other", seed=1, prefix="x")
    exchange(files(root, 0), files(other, 0))
    forging.forge(root)
    refused(reader(root), *READS)


def test_a_renamed_shard_is_missing_and_named(made, reader, format_):
    root = made(format_)
    shard(root).rename(root / f"another{shard(root).suffix}")
    found = reader(root)
    refused(found, "read", "rows", "verify", "verify all")
    assert "0.feat" in found["verify"] and "missing" in found["verify"]


def test_a_folder_or_pipe_in_the_place_of_a_shard_is_refused(made, reader, format_):
    root = made(format_)
    shard(root, 0).unlink()
    shard(root, 0).mkdir()
    shard(root, 1).unlink()
    os.mkfifo(shard(root, 1))
    refused(reader(root), "read", "rows", "some", "verify", "verify all")


NAMES = [
    "../x",
    "/etc/hostname",
    "a\\b",
    "C:x",
    "C:/x",
    "a\0b",
    "",
    ".",
    "..",
    "a/../0.feat",
    "./0.feat",
    "a//b",
    "~/x",
    "\udcff",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_shard_name_that_leaves_the_folder_is_refused(made, reader, forging, tmp_path, format_, name):
    root = made(format_)
    for file in files(root, 0):
        shutil.copy(file, tmp_path / f"x{file.suffix}")
    ending = "" if name in ("", ".", "..") else shard(root).suffix

    def edit(fields):
        fields["shards"][0]["file"] = name if name == "/etc/hostname" else f"{name}{ending}"

    forging.forge(root, edit)
    refused(reader(root), "read", "rows", "some", "verify", "verify all")


def test_a_link_that_leads_outside_is_refused(made, reader, tmp_path, format_):
    root = made(format_)
    for file in files(root, 0):
        shutil.move(file, tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    found = reader(root)
    refused(found, "read", "rows", "some", "verify", "verify all")
    assert "leads outside the cache" in found["rows"]


def test_a_folder_that_is_a_link_is_refused_too(made, reader, forging, tmp_path, format_):
    root = made(format_)
    (tmp_path / "elsewhere").mkdir()
    for file in files(root, 0):
        shutil.move(file, tmp_path / "elsewhere" / file.name)
    (root / "in").symlink_to(tmp_path / "elsewhere")

    def edit(fields):
        fields["shards"][0]["file"] = f"in/{fields['shards'][0]['file']}"

    forging.forge(root, edit)
    refused(reader(root), "read", "rows", "some", "verify", "verify all")


def test_a_manifest_of_a_newer_version_says_what_to_do(made, reader, forging):
    root = made("hdf5")
    forging.forge(root, lambda fields: fields.update(version=2, something="new"))
    found = reader(root)
    refused(found)
    assert "version 2, this dimefm reads version 1; install a newer dimefm" in found["rows"]


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    10**30,
    1.5,
    math.inf,
    math.nan,
    "",
    "x",
    "\0",
    "\udcff",
    [],
    [1],
    {},
    {"a": 1},
]


def leaves(value, path=()):
    """Yield the path of every value inside."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from leaves(each, (*path, name))


def put(fields, path, value):
    *way, last = path
    for name in way:
        fields = fields[name]
    fields[last] = value


def drop(fields, path):
    *way, last = path
    for name in way:
        fields = fields[name]
    del fields[last]


FIELDS = [
    *("version", "kind", "format", "dtype", "dim", "normalized", "encoder", "how", "libraries"),
    *("shards", "code", "effect", "fingerprint", "seal"),
]


def test_every_field_is_tried(made):
    fields = json.loads((made("tsv", dtype="int8") / "manifest.json").read_text())
    assert sorted(fields) == sorted(FIELDS)


def edits(root, field, step=1):
    """Yield (path, value) for all inside one field of the manifest, of lists the first; every ``step``-th value."""
    fields = json.loads((root / "manifest.json").read_text())
    for number, path in enumerate(leaves(fields)):
        if path[0] == field and all(not isinstance(part, int) or part < 1 for part in path):
            for value in VALUES[number % step :: step]:
                yield path, value


@pytest.mark.parametrize("field", FIELDS)
def test_an_edited_manifest_is_refused_by_name_or_harmless(made, field):
    root = made(FORMATS[FIELDS.index(field) % len(FORMATS)], dtype="int8")
    text = (root / "manifest.json").read_text()
    before = FeatureCache(root, root.with_name("flat"))
    rows, keys = before[:], [before.read(info)[0] for info in before.manifest.shards]
    refusals = 0
    for path, value in edits(root, field):
        fields = json.loads(text)
        put(fields, path, value)
        (root / "manifest.json").write_text(json.dumps(fields))
        try:
            cache = FeatureCache(root, root.with_name("flat"))
            cache.manifest.describe()
            found = cache[:]
            assert [cache.read(info)[0] for info in cache.manifest.shards] == keys
            assert np.array_equal(found, rows), (path, value)
        except CacheError as error:
            assert str(root) in str(error) or "format" in path, (path, value, error)
            refusals += 1
    assert refusals or field in ("libraries", "effect")


def forged_edits(root, reader, forging, field, step):
    """Return what is wrong with how forged edits of one field are read."""
    text, wrong = (root / "manifest.json").read_text(), {}
    for path, value in edits(root, field, step):
        fields = json.loads(text)
        put(fields, path, value)
        (root / "manifest.json").write_text(forging.sealed(forging.signed(fields) if field != "fingerprint" else fields))
        try:
            reader(root)
        except AssertionError as error:
            wrong[f"{path} = {value!r}"] = str(error).splitlines()[0]
    return wrong


@pytest.mark.parametrize("field", FIELDS)
def test_a_forged_manifest_gives_a_cache_error_and_nothing_else(made, reader, forging, field):
    assert not forged_edits(made("tsv", dtype="int8"), reader, forging, field, 6)


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_all_forged_values_give_a_cache_error_and_nothing_else(made, reader, forging, format_, field):
    assert not forged_edits(made(format_, dtype="int8"), reader, forging, field, 1)


def test_a_manifest_that_lacks_a_field_is_refused_or_harmless(made, reader, forging):
    root = made("hdf5", dtype="int8")
    text, wrong = (root / "manifest.json").read_text(), {}
    for path in leaves(json.loads(text)):
        if all(not isinstance(step, int) or step < 1 for step in path):
            fields = json.loads(text)
            drop(fields, path)
            (root / "manifest.json").write_text(forging.sealed(forging.signed(fields)))
            try:
                reader(root)
            except AssertionError as error:
                wrong[path] = str(error).splitlines()[0]
    assert not wrong


def enlarge(shards, rows):
    """Let every shard claim ``rows`` rows."""
    for shard in shards:
        shard.update(rows=rows, source_rows=rows + len(shard["bad"]))


HUGE = {
    "dim 10**12": lambda fields: fields.update(dim=10**12),
    "dim 10**6": lambda fields: fields.update(dim=10**6),
    "rows 10**8": lambda fields: fields["shards"][0].update(rows=10**8, source_rows=10**8 + 1),
    "rows 10**15": lambda fields: fields["shards"][0].update(rows=10**15, source_rows=10**15 + 1),
    "rows 10**19": lambda fields: fields["shards"][0].update(rows=10**19, source_rows=10**19 + 1),
    "rows -1": lambda fields: fields["shards"][0].update(rows=-1, source_rows=0),
    "bytes 10**15": lambda fields: fields["shards"][0].update(bytes=10**15),
    "sum of rows 2**63": lambda fields: enlarge(fields["shards"], 2**62),
}


@pytest.mark.parametrize("name", HUGE)
def test_absurd_dimensions_are_refused_before_memory_is_asked_for(made, reader, forging, format_, name):
    root = made(format_)
    forging.forge(root, HUGE[name])
    refused(reader(root), "read", "rows", "some", "verify all")


@pytest.mark.parametrize("offset", [-1, 10**15, 2**64, 4000.5, True, "0"])
def test_an_offset_outside_the_file_is_refused(made, reader, forging, format_, offset):
    root = made(format_)
    forging.forge(root, lambda fields: fields["shards"][0].update(offset=offset))
    refused(reader(root))


@pytest.mark.parametrize("from_end", [0, 1, 47])
def test_rows_that_reach_beyond_the_file_are_refused(made, reader, forging, format_, from_end):
    root = made(format_)
    size = shard(root).stat().st_size
    forging.forge(root, lambda fields: fields["shards"][0].update(offset=size - from_end))
    refused(reader(root), "rows", "some", "compare", "verify all")


def test_an_offset_that_points_at_other_bytes_is_found_by_verify(made, reader, forging):
    root = made("hdf5")
    forging.forge(root, lambda fields: fields["shards"][0].update(offset=fields["shards"][0]["offset"] - 8))
    found = reader(root)
    refused(found, "verify all")
    assert "are not those of the shard" in found["verify all"]


# HDF5


def rebuilt(root, forging, reader, build, **changes):
    """Replace shard 0 by what ``build(file, rows, keys)`` writes, forge the manifest, and return what reading gives."""
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


def test_a_shard_as_another_writer_of_hdf5_lays_it_out_is_read(made, forging, reader):
    def build(file, rows, keys):
        file["row"], file["key"] = rows, keys

    root = made("hdf5")
    found = rebuilt(root, forging, reader, build, offset=None)
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
def test_hdf5_links_are_refused(made, forging, reader, dataset, link):
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

    refused(rebuilt(root, forging, reader, build), *READS)


@pytest.mark.parametrize("dataset", ["row", "key"])
@pytest.mark.parametrize("how", ["external", "virtual"])
def test_hdf5_storage_outside_the_shard_is_refused(made, forging, reader, dataset, how):
    root = made("hdf5")
    secret = other(root)

    def build(file, rows, keys):
        data = {"row": rows, "key": keys}
        for name, values in data.items():
            if name != dataset:
                file[name] = values
            elif how == "external":
                file.create_dataset(name, values.shape, values.dtype, external=[(secret, 2048, values.nbytes)])
            else:
                layout = h5py.VirtualLayout(values.shape, values.dtype)
                layout[:] = h5py.VirtualSource(secret, name, values.shape)
                file.create_virtual_dataset(name, layout)

    refused(rebuilt(root, forging, reader, build), *READS)


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
    "rows compressed": changed("row", lambda rows: {"data": rows, "chunks": (6, 4), "compression": "gzip"}),
    "rows float32": changed("row", lambda rows: rows.astype("f4")),
    "rows integers": changed("row", lambda rows: rows.astype("i2")),
    "rows big-endian": changed("row", lambda rows: rows.astype(">f2")),
    "rows complex": changed("row", lambda rows: rows.astype("c8")),
    "rows of strings": changed("row", lambda rows: rows.astype("S4")),
    "rows of records": changed("row", lambda rows: np.zeros(rows.shape, [("a", "f2")])),
    "rows of arrays": changed("row", lambda rows: {"shape": (6,), "dtype": np.dtype(("f2", (4,)))}),
    "rows of references": changed("row", lambda rows: {"shape": rows.shape, "dtype": h5py.ref_dtype}),
    "rows of another dim": changed("row", lambda rows: rows[:, :3]),
    "rows too few": changed("row", lambda rows: rows[:5]),
    "rows too many": changed("row", lambda rows: np.concatenate([rows, rows])),
    "rows flat": changed("row", lambda rows: rows.reshape(-1)),
    "rows scalar": changed("row", lambda rows: np.float16(1)),
    "rows absurd": changed("row", lambda rows: {"shape": (2**40, 4), "dtype": "f2", "chunks": (1, 4)}),
    "rows null": changed("row", lambda rows: h5py.Empty("f2")),
    "rows with an unlimited dim": changed("row", lambda rows: {"data": rows, "maxshape": (None, 4)}),
    "keys of variable length": changed("key", lambda keys: {"data": keys.astype(object), "dtype": VLEN}),
    "keys as numbers": changed("key", lambda keys: np.arange(6)),
    "keys in two dims": changed("key", lambda keys: keys.reshape(2, 3)),
    "keys too few": changed("key", lambda keys: keys[:5]),
    "keys not UTF-8": changed("key", lambda keys: np.array([b"\xff\xfe"] * 6)),
    "keys null": changed("key", lambda keys: h5py.Empty("S4")),
    "keys beyond 64 KiB": changed("key", lambda keys: keys.astype("S100000")),
    "keys in huge chunks": changed(
        "key", lambda keys: {"data": keys, "chunks": (2**20,), "maxshape": (None,), "compression": "gzip"}
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_hdf5_datasets_of_another_form_are_refused(made, forging, reader, name):
    refused(rebuilt(made("hdf5"), forging, reader, SHAPES[name]), *READS)


def test_hdf5_keys_that_unpack_to_a_thousandfold_are_refused_or_read_in_bounded_memory(made, forging, reader):
    """65,535 bytes a key, 16,384 keys: a file of a megabyte, a gigabyte of zeros."""
    root, rows = made("hdf5", counts=(6, 1)), BLOCK

    def build(file, _, keys):
        file["row"] = np.zeros((rows, 4), "f2")
        made = file.create_dataset("key", (rows,), "S65535", chunks=(4096,), compression="gzip")
        made[:1] = keys[:1]

    forging.forge(root)
    digest = forging.keys_sha256(["k-0"] + [""] * (rows - 1))
    rebuilt(root, forging, reader, build, rows=rows, source_rows=rows + 1, keys_sha256=digest, offset=None)


# TSV


def indexed(root, lines):
    """Replace the index of shard 0."""
    index = next(file for file in files(root, 0) if file.suffix == ".lineidx")
    starts = [int(line) for line in index.read_text().split()]
    index.write_bytes(b"".join(b"%b\n" % (line if isinstance(line, bytes) else b"%d" % line) for line in lines(starts)))


INDICES = {
    "outside": lambda starts: [*starts[:-1], 10**9],
    "far outside": lambda starts: [*starts[:-1], 10**30],
    "negative": lambda starts: [-1, *starts[1:]],
    "in the middle of a line": lambda starts: [starts[0], starts[1] + 1, *starts[2:]],
    "out of order": lambda starts: [starts[1], starts[0], *starts[2:]],
    "twice the same": lambda starts: [starts[0], starts[0], *starts[2:]],
    "too few": lambda starts: starts[:-1],
    "too many": lambda starts: [*starts, starts[-1]],
    "empty": lambda starts: [],
    "words": lambda starts: [b"abc", *starts[1:]],
    "padded": lambda starts: [b"0" * 30, *starts[1:]],
    "no numbers": lambda starts: [b"\xff\xfe\0", *starts[1:]],
}


@pytest.mark.parametrize("name", INDICES)
def test_a_line_index_that_does_not_fit_is_refused(made, forging, reader, name):
    root = made("tsv")
    indexed(root, INDICES[name])
    found = reader(root)
    refused(found, "read", "rows", "some", "verify all")
    forging.forge(root)
    refused(reader(root), "read", "rows", "some", "verify all")


def test_a_missing_line_index_is_refused_and_named(made, reader):
    root = made("tsv")
    (root / "0.feat.lineidx").unlink()
    found = reader(root)
    refused(found, "read", "rows", "some", "verify", "verify all")
    assert "0.feat.lineidx is missing" in found["rows"]


def test_a_line_index_that_is_a_link_to_outside_is_refused(made, reader, tmp_path):
    root = made("tsv")
    shutil.move(root / "0.feat.lineidx", tmp_path / "x")
    (root / "0.feat.lineidx").symlink_to(tmp_path / "x")
    refused(reader(root), "read", "rows", "some", "verify", "verify all")


LINES = {
    "no tab": lambda line: line.replace(b"\t", b" "),
    "not base64": lambda line: line.split(b"\t")[0] + b"\t!!!!\n",
    "too few numbers": lambda line: line.split(b"\t")[0] + b"\tAAAA\n",
    "too many numbers": lambda line: line.strip() + b"AAAA\n",
    "a megabyte": lambda line: line.strip() + b"A" * 2**20 + b"\n",
    "key not UTF-8": lambda line: b"\xff" + line,
    "empty": lambda line: b"\n",
    "another key": lambda line: b"x" + line,
    "a third column": lambda line: line.strip() + b"\tAAAA\n",
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_another_form_is_refused_and_its_row_named(made, forging, reader, name):
    root = made("tsv")
    lines = shard(root).read_bytes().splitlines(keepends=True)
    lines[2] = LINES[name](lines[2])
    shard(root).write_bytes(b"".join(lines))
    indexed(root, lambda _: np.cumsum([0, *map(len, lines[:-1])]).tolist())
    forging.forge(root)
    found = reader(root)
    refused(found, "read", "rows", "some", "verify all")
    assert "row 2" in found["read"] or name == "another key"


# Parquet


def column(rows, dim=4, kind=None):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1), kind), dim)


def with_nulls(rows):
    return pa.array([None if i == 2 else row.tolist() for i, row in enumerate(rows)], pa.list_(pa.float16(), 4))


def with_null_numbers(rows):
    return pa.array(
        [[None, *row.tolist()[1:]] if i == 2 else row.tolist() for i, row in enumerate(rows)], pa.list_(pa.float16(), 4)
    )


TABLES = {
    "rows of float32": lambda rows, keys: {"key": keys, "row": column(rows.astype("f4"))},
    "rows of float64": lambda rows, keys: {"key": keys, "row": column(rows.astype("f8"))},
    "rows of int8": lambda rows, keys: {"key": keys, "row": column(rows.astype("i1"))},
    "rows of another dim": lambda rows, keys: {"key": keys, "row": column(rows[:, :2], 2)},
    "rows of any length": lambda rows, keys: {"key": keys, "row": pa.array(rows.tolist(), pa.list_(pa.float16()))},
    "rows as numbers": lambda rows, keys: {"key": keys, "row": pa.array(rows[:, 0])},
    "rows as bytes": lambda rows, keys: {"key": keys, "row": pa.array([row.tobytes() for row in rows])},
    "rows missing": lambda rows, keys: {"key": keys},
    "rows null": lambda rows, keys: {"key": keys, "row": with_nulls(rows)},
    "numbers null": lambda rows, keys: {"key": keys, "row": with_null_numbers(rows)},
    "rows too few": lambda rows, keys: {"key": keys[:5], "row": column(rows[:5])},
    "rows too many": lambda rows, keys: {"key": [*keys, "x"], "row": column(np.concatenate([rows, rows[:1]]))},
    "keys missing": lambda rows, keys: {"row": column(rows)},
    "keys null": lambda rows, keys: {"key": [None, *keys[1:]], "row": column(rows)},
    "keys all null": lambda rows, keys: {"key": pa.array([None] * 6, pa.string()), "row": column(rows)},
    "keys of numbers": lambda rows, keys: {"key": list(range(6)), "row": column(rows)},
    "keys of bytes": lambda rows, keys: {"key": [key.encode() for key in keys], "row": column(rows)},
    "keys in a dictionary": lambda rows, keys: {"key": pa.array(keys).dictionary_encode(), "row": column(rows)},
}


@pytest.mark.parametrize("name", TABLES)
def test_parquet_columns_of_another_form_are_refused(made, forging, reader, name):
    root = made("parquet")
    cache = FeatureCache(root)
    keys, rows = cache.read(cache.manifest.shards[0])
    pq.write_table(pa.table(TABLES[name](rows, keys)), shard(root))
    forging.forge(root)
    refused(reader(root), "read", "rows", "some", "verify all")


def test_a_parquet_row_group_beyond_the_largest_that_is_written_is_refused(made, forging, reader):
    root, rows = made("parquet", counts=(6, 1)), BLOCK + 1
    schema = pa.schema([("key", pa.string()), ("row", pa.list_(pa.float16(), 4))])
    table = pa.table([["k"] * rows, column(np.zeros((rows, 4), "f2"))], schema=schema)
    digest = forging.keys_sha256(["k"] * rows)
    for group in (rows, BLOCK):
        pq.write_table(table, shard(root), row_group_size=group)
        forging.forge(root, lambda fields: fields["shards"][0].update(rows=rows, source_rows=rows + 1, keys_sha256=digest))
        found = reader(root)
        if group > BLOCK:
            refused(found, "read", "rows", "some", "verify all")
        else:
            assert found["read"] == "fine"


# quarantine.jsonl, and what an interrupted run left


LISTED = [
    "{",
    "[]",
    "5",
    "null",
    '{"source": "0.tar"}',
    '{"source": [], "row": 1, "key": "", "reason": ""}',
    "\0",
    "\udcff",
    "[" * 9999,
]


@pytest.mark.parametrize("line", LISTED, ids=[ascii(line)[:20] for line in LISTED])
def test_a_damaged_quarantine_is_one_cache_error_that_names_the_line_and_hides_no_row(made, reader, forging, line):
    root = made("hdf5")
    path = root / "quarantine.jsonl"
    path.write_bytes(path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    found = reader(root)
    refused(found, "quarantined")
    assert "quarantine.jsonl" in found["quarantined"]
    assert found["rows"] == found["read"] == found["verify all"] == "fine"


UNREADABLE = [line for line in LISTED if line != '{"source": "0.tar"}']


@pytest.mark.parametrize("line", UNREADABLE, ids=[ascii(line)[:20] for line in UNREADABLE])
def test_a_damaged_quarantine_stops_an_append_with_a_cache_error(made, line):
    root = made("hdf5")
    path = root / "quarantine.jsonl"
    path.write_bytes(path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    manifest = Manifest.read(root)
    header = Manifest.of({**manifest.header(), "shards": ()})
    with pytest.raises(CacheError, match="quarantine"):
        writer = CacheWriter(root, header, [("2.tar", 1)], append=True)
        writer.write("2.tar", ["new"], np.ones((1, 4), np.float32))
        writer.seal()


def test_a_lost_quarantine_still_lists_every_row(made):
    root = made("hdf5")
    (root / "quarantine.jsonl").unlink()
    cache = FeatureCache(root)
    listed = list(quarantined(cache.store, cache.manifest))
    assert [(source, bad.row, bad.reason) for source, bad in listed] == [
        (f"{i}.tar", 1, "not listed in quarantine.jsonl") for i in range(2)
    ]


PLANS = ["", "{", "[]", "{}", "null", "\udcff", '{"kind": "image"}', "[" * 9999]


@pytest.mark.parametrize("plan", PLANS, ids=[ascii(plan)[:20] for plan in PLANS])
def test_a_damaged_plan_of_an_interrupted_run_is_a_cache_error_that_names_it(made, tmp_path, plan):
    header = Manifest.of({**Manifest.read(made("hdf5")).header(), "shards": ()})
    CacheWriter(tmp_path / "new", header, [("0.tar", 1)])
    (tmp_path / "new/.partial/plan.json").write_bytes(plan.encode("utf-8", "surrogateescape"))
    with pytest.raises(CacheError, match=r"plan\.json"):
        CacheWriter(tmp_path / "new", header, [("0.tar", 1)])


RECORDS = ["", "{", "[]", "{}", "null", "5", "\udcff", "[" * 9999, '{"file": "../x"}']


@pytest.mark.parametrize("record", RECORDS, ids=[ascii(record)[:20] for record in RECORDS])
def test_a_damaged_record_of_an_interrupted_run_makes_its_shard_be_written_again(made, tmp_path, record):
    header = Manifest.of({**Manifest.read(made("hdf5")).header(), "shards": ()})
    sources = [("0.tar", 1), ("1.tar", 1)]
    CacheWriter(tmp_path / "new", header, sources).write("0.tar", ["k"], np.ones((1, 4), np.float32))
    (path,) = (tmp_path / "new/.partial").glob("0.feat*.json")
    path.write_bytes(record.encode("utf-8", "surrogateescape"))
    assert "0.tar" not in CacheWriter(tmp_path / "new", header, sources)

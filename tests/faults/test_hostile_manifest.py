"""Manifests that are edited or forged: a CacheError or the right rows, no other exception, no
memory for what they claim.
"""

import json
import math

import numpy as np
import pytest

from dimefm import plugins
from dimefm.cache import FeatureCache
from dimefm.errors import CacheError
from tests.faults import forging
from tests.faults.conftest import refused, shard


def test_a_manifest_of_a_newer_version_says_what_to_do(made, reader):
    root = made("hdf5")
    forging.forge(root, lambda fields: fields.update(version=2, something="new"))
    found = reader(root)
    refused(found)
    assert "version 2, this dimefm reads version 1. Fix: install a newer dimefm" in found["rows"]


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
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, each in inner:
        yield from leaves(each, (*path, name))


def holder(fields, path):
    """Return the table or list that holds the value at a path."""
    for name in path[:-1]:
        fields = fields[name]
    return fields


FIELDS = [
    *("version", "kind", "format", "dtype", "dim", "normalized", "encoder", "how", "libraries"),
    *("shards", "code", "effect", "fingerprint", "seal"),
]


def test_every_field_is_tried(made):
    fields = json.loads((made("tsv", dtype="int8") / "manifest.json").read_text())
    assert sorted(fields) == sorted(FIELDS)


def paths(root):
    """Return the path of every value in the manifest, of lists the first."""
    every = leaves(json.loads((root / "manifest.json").read_text()))
    return [path for path in every if not any(isinstance(part, int) and part > 0 for part in path)]


def edits(root, field, step=1):
    """Yield (path, value, fields of the manifest with it) for all inside one field; every
    ``step``-th value.
    """
    text = (root / "manifest.json").read_text()
    for number, path in enumerate(paths(root)):
        for value in VALUES[number % step :: step] if path[0] == field else []:
            fields = json.loads(text)
            holder(fields, path)[path[-1]] = value
            yield path, value, fields


@pytest.mark.parametrize("field", FIELDS)
def test_an_edited_manifest_is_refused_by_name_or_harmless(made, field):
    formats = plugins.names("caches")
    root = made(formats[FIELDS.index(field) % len(formats)], dtype="int8")
    before = FeatureCache(root, root.with_name("flat"))
    rows, keys = before[:], [before.read(info)[0] for info in before.manifest.shards]
    refusals = 0
    for path, value, fields in edits(root, field):
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


def misread(root, reader, manifests):
    """Return edit -> what is wrong with how the manifest is read that it makes, of all (edit,
    fields), sealed here.
    """
    wrong = {}
    for edit, fields in manifests:
        (root / "manifest.json").write_text(forging.sealed(fields))
        try:
            reader(root)
        except AssertionError as error:
            wrong[edit] = str(error).splitlines()[0]
    return wrong


def forged(root, field, step):
    """Yield (edit, fields) for edits of one field, with a fingerprint that fits."""
    for path, value, fields in edits(root, field, step):
        yield f"{path} = {value!r}", fields if field == "fingerprint" else forging.signed(fields)


@pytest.mark.parametrize("field", FIELDS)
def test_a_forged_manifest_gives_a_cache_error_and_nothing_else(made, reader, field):
    root = made("tsv", dtype="int8")
    assert not misread(root, reader, forged(root, field, 6))


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_all_forged_values_give_a_cache_error_and_nothing_else(made, reader, format_, field):
    root = made(format_, dtype="int8")
    assert not misread(root, reader, forged(root, field, 1))


def test_a_manifest_that_lacks_a_field_is_refused_or_harmless(made, reader):
    root = made("hdf5", dtype="int8")
    text, lacking = (root / "manifest.json").read_text(), {}
    for path in paths(root):
        fields = json.loads(text)
        del holder(fields, path)[path[-1]]
        lacking[path] = forging.signed(fields)
    assert not misread(root, reader, lacking.items())


def enlarge(shards, rows):
    """Let every shard claim ``rows`` rows."""
    for fields in shards:
        fields.update(rows=rows, source_rows=rows + len(fields["bad"]))


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
def test_absurd_dimensions_are_refused_before_memory_is_asked_for(made, reader, format_, name):
    root = made(format_)
    forging.forge(root, HUGE[name])
    refused(reader(root), "read", "rows", "some", "verify all")


@pytest.mark.parametrize("offset", [-1, 10**15, 2**64, 4000.5, True, "0"])
def test_an_offset_outside_the_file_is_refused(made, reader, format_, offset):
    root = made(format_)
    forging.forge(root, lambda fields: fields["shards"][0].update(offset=offset))
    refused(reader(root))


@pytest.mark.parametrize("from_end", [0, 1, 47])
def test_rows_that_reach_beyond_the_file_are_refused(made, reader, format_, from_end):
    root = made(format_)
    size = shard(root).stat().st_size
    forging.forge(root, lambda fields: fields["shards"][0].update(offset=size - from_end))
    refused(reader(root), "rows", "some", "compare", "verify all")


def test_an_offset_that_points_at_other_bytes_is_found_by_verify(made, reader):
    root = made("hdf5")
    forging.forge(
        root, lambda fields: fields["shards"][0].update(offset=fields["shards"][0]["offset"] - 8)
    )
    found = reader(root)
    refused(found, "verify all")
    assert "are not those of the shard" in found["verify all"]

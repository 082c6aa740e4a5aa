"""Shards of any format that are cut, exchanged, renamed or lead outside: whoever reads one gets a
CacheError that names it.

"Forged" means that the attacker made every digest fit again.
"""

import os
import shutil

import pytest

from tests.faults import forging
from tests.faults.conftest import READS, files, is_copied, refused, shard


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
def test_a_truncated_shard_that_is_forged_is_refused(made, reader, format_, part):
    root = made(format_)
    raw = shard(root, 1).read_bytes()
    shard(root, 1).write_bytes(raw[: int(part * len(raw))])
    forging.forge(root)
    refused(reader(root), *READS)


def exchange(a, b):
    for one, other in zip(a, b, strict=True):
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)


def test_two_shards_that_changed_places_are_refused(made, reader, format_):
    root = made(format_)
    exchange(files(root, 0), files(root, 1))
    found = reader(root)
    refused(found, *READS, *(["rows", "some"] if is_copied(format_) else []))
    assert "0.feat" in found["read"]
    forging.forge(root)
    refused(reader(root), *READS)


def test_a_shard_of_another_cache_of_the_same_shape_is_refused(made, reader, format_):
    root, other = made(format_), made(format_, "other", seed=1)
    exchange(files(root, 0), files(other, 0))
    found = reader(root)
    refused(found, "verify all")
    assert "0.feat" in found["verify all"] and "SHA-256" in found["verify all"]


def test_a_shard_with_other_keys_is_refused_when_it_is_forged_too(made, reader, format_):
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
def test_a_shard_name_that_leaves_the_folder_is_refused(made, reader, tmp_path, format_, name):
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


def test_a_folder_that_is_a_link_is_refused_too(made, reader, tmp_path, format_):
    root = made(format_)
    (tmp_path / "elsewhere").mkdir()
    for file in files(root, 0):
        shutil.move(file, tmp_path / "elsewhere" / file.name)
    (root / "in").symlink_to(tmp_path / "elsewhere")

    def edit(fields):
        fields["shards"][0]["file"] = f"in/{fields['shards'][0]['file']}"

    forging.forge(root, edit)
    refused(reader(root), "read", "rows", "some", "verify", "verify all")

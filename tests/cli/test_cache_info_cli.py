"""dimefm cache info and verify: what they say of a finished cache, of a damaged one and of other
folders.
"""

import re

import pytest
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cli import main
from tests.cli.conftest import run


@pytest.fixture
def cache(raw):
    """Return the folder of a cache of images/ and texts/, in that of its sources."""
    assert run("--images", raw / "photos", "--texts", raw / "s.txt", "--out", raw / "o")[0] == 0
    return raw / "o"


def look(*arguments):
    return CliRunner().invoke(main, ["cache", *map(str, arguments)])


def test_cache_info_tells_rows_teacher_and_settings(cache):
    for root, expected in (
        (cache, ["4 image rows", "3 text rows"]),
        (cache / "texts", ["3 text rows"]),
    ):
        result = look("info", root)
        assert result.exit_code == 0
        assert [
            text for text in ("4 image rows", "3 text rows") if text in result.output
        ] == expected
    assert "ResNet-mini-64/random:0" in result.output and "float16[128]" in result.output


@pytest.mark.parametrize("flags", [[], ["--sha256"]])
def test_cache_verify_passes_a_whole_cache(cache, flags):
    result = look("verify", cache, *flags)
    assert result.exit_code == 0 and result.output.count("as recorded") == 2


def test_cache_verify_finds_a_cut_and_a_changed_shard(cache):
    features = FeatureCache(cache / "texts")
    shard = cache / "texts" / features.manifest.shards[0].file
    raw = shard.read_bytes()
    place = raw.index(features[0].tobytes())
    shard.write_bytes(raw[:-1])
    result = look("verify", cache)
    assert result.exit_code == 1 and re.search(
        rf"{shard.name}: {len(raw) - 1} bytes, the manifest says {len(raw)}", result.output
    )
    changed = bytearray(raw)
    changed[place] ^= 1
    shard.write_bytes(changed)
    assert look("verify", cache).exit_code == 0
    result = look("verify", cache, "--sha256")
    assert (
        result.exit_code == 1 and "SHA-256" in result.output and result.output.count("Error") == 1
    )


def test_cache_commands_on_something_else_are_one_line(raw):
    for command, folder in (("info", "photos"), ("verify", "photos"), ("verify", "nowhere")):
        result = look(command, raw / folder)
        assert (
            result.exit_code == 1
            and "no manifest.json, so no cache. Fix: check the path" in result.output
        )

"""Every command that writes a folder leaves one alone that is not empty and not its own."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm import plugins
from dimefm.cache import FeatureCache
from dimefm.cache.plan import write_lock
from dimefm.cli import main
from dimefm.errors import CacheError, DimefmError
from dimefm.storage.out_folder import UNNOTICED, refuse_foreign

TEACHER = "ResNet-mini-64/random:0"
CPU = ("--device", "cpu")
TRAIN = ("--student", "ResNet-mini-32", "--crops", "free", "--steps", 2, "--batch-size", 4, *CPU)


def dimefm(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def succeed(*words):
    result = dimefm(*words)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with photos, texts, caches, a dataset and a pipeline file."""
    root = tmp_path_factory.mktemp("made")
    for folder in ("photos", "sets/colors/test/red", "sets/colors/test/blue"):
        (root / folder).mkdir(parents=True)
        for number in range(6):
            image = Image.new("RGB", (24, 20), (40 * number, 90, 250 - 40 * number))
            image.save(root / folder / f"{number}.png")
    (root / "texts.txt").write_text("".join(f"sentence {number}\n" for number in range(6)))
    sources = ("--images", root / "photos", "--texts", root / "texts.txt")
    succeed("extract-features", "--teacher", TEACHER, *sources, "--out", root / "cache", *CPU)
    pipeline = {"teacher": [TEACHER], "images": [str(root / "photos")], "device": "cpu"}
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in pipeline.items()]
    (root / "pipeline.toml").write_text("[extract]\n" + "".join(lines))
    return root


def commands(root, out):
    """Return the commands that write a folder, by name."""
    images, texts = root / "cache/images", root / "cache/texts"
    sources = ("--images", root / "photos")
    caches = ("--image-cache", images, "--text-cache", texts)
    return {
        "extract": ("extract-features", "--teacher", TEACHER, *sources, "--out", out, *CPU),
        "train": ("train", *sources, *caches, *TRAIN, "--out", out),
        "resume": ("train", *sources, *caches, *TRAIN, "--out", out, "--resume"),
        "elevater": (
            *("eval", "elevater", "--model", TEACHER, "--root", root / "sets"),
            *("--datasets", "colors", "--out", out, *CPU),
        ),
        "retrieval": ("eval", "retrieval", "--images", images, "--texts", images, "--out", out),
        "convert": ("cache", "convert", images, out, "--format", "parquet"),
        "adopt": (
            *("cache", "adopt", root / "features.npy", "--kind", "image", "--out", out),
            *("--teacher", TEACHER, "--rows-of", root / "photos"),
        ),
        "neighbours": ("cache", "neighbours", images, "--out", out, "--k", 2),
        "pack": ("pack", root / "photos", "--out", out),
        "quickstart": ("quickstart", "--scale", 0.02, "--out", out),
        "run": ("run", root / "pipeline.toml", "--out", out),
    }


NAMES = [
    "extract",
    "train",
    "resume",
    "elevater",
    "retrieval",
    "convert",
    "adopt",
    "neighbours",
    "pack",
    "quickstart",
    "run",
]


@pytest.fixture
def place(made, tmp_path):
    """Return a copy of the folder, with features to adopt."""
    shutil.copytree(made, tmp_path / "place")
    np.save(tmp_path / "place/features.npy", FeatureCache(made / "cache/images")[:])
    return tmp_path / "place"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("foreign", ["photos", "home"])
def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(place, digests, name, foreign):
    (place / "home/.config").mkdir(parents=True)
    for file in (".config/settings", ".profile"):
        (place / "home" / file).write_text("x")
    before = digests(place)
    result = dimefm(*commands(place, place / foreign)[name])
    assert result.exit_code == 1, result.output
    last = result.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("Error: ") and "Fix: choose a new or empty folder" in last
    assert f"{place / foreign}: holds other files, e.g. " in last
    assert digests(place) == before
    assert not (place / foreign / "images").exists()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("quickstart", "retrieval")])
def test_a_folder_that_looks_empty_is_taken_and_its_own_again(place, name):
    out = place / "out"
    out.mkdir()
    for unnoticed in UNNOTICED:
        (out / unnoticed).touch()
    succeed(*commands(place, out)[name])
    result = dimefm(*commands(place, out)[name])
    assert "holds other files" not in result.output


def test_classes_of_photos_are_no_place_for_their_own_caches(place, digests):
    before = digests(place)
    red = place / "sets/colors/test"
    words = ("extract-features", "--teacher", TEACHER, "--images", red, "--out", red, *CPU)
    assert "holds other files, e.g. 'blue'" in dimefm(*words).stderr
    assert digests(place) == before


def test_marks_are_patterns_and_urls_are_not_looked_at(tmp_path):
    (tmp_path / "ids.npy.1.part").touch()
    refuse_foreign(tmp_path, "neighbours", ["ids.npy*"])
    refuse_foreign("memory://x", "cache", [])
    refuse_foreign(tmp_path / "none", "cache", [])
    with pytest.raises(DimefmError, match="no cache of before"):
        refuse_foreign(tmp_path, "cache", ["manifest.json"])


def test_a_name_in_the_message_is_short_and_without_control_characters(tmp_path):
    (tmp_path / ("\x1b[31m" + "a" * 200)).touch()
    with pytest.raises(DimefmError) as error:
        refuse_foreign(tmp_path, "cache", [])
    assert str(error.value).isprintable() and len(str(error.value)) < len(str(tmp_path)) + 250


@pytest.mark.parametrize("format_", plugins.names("caches"))
def test_the_shards_of_every_format_are_a_caches_own(tmp_path, format_):
    """A cache that has lost its manifest is not taken for something else."""
    suffix = plugins.module("caches", format_, CacheError).SUFFIXES[-1]
    (tmp_path / f"texts.feat{suffix}").touch()
    with write_lock(tmp_path, shared=False):
        pass

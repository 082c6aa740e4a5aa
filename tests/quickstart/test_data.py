"""The quickstart's raw data: same bytes for a seed, splits that share nothing, true captions and
labels.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimefm.quickstart import data
from dimefm.quickstart.captions import DIGITS, SCENES
from dimefm.quickstart.pictures import COLORS, SIDE

pytest.importorskip("sklearn")

SCALE = 0.02


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, data.Sizes]:
    """Return the folder and the counts of a small data set."""
    folder = tmp_path_factory.mktemp("quickstart") / "raw"
    return folder, data.write(folder, seed=3, scale=SCALE)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def samples(path: Path) -> dict[str, dict[str, bytes]]:
    """Return the samples of a webdataset shard: key -> extension -> bytes."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return found


def parts(folder: Path) -> dict[str, dict[str, dict[str, bytes]]]:
    """Return the samples of all four shards by name."""
    names = ("pairs.tar", "images.tar", "eval/digits/test.tar", "eval/shapes/test.tar")
    return {name: samples(folder / name) for name in names}


def test_layout_and_counts(made):
    folder, sizes = made
    found = parts(folder)
    assert set(digests(folder)) == {
        *found,
        "sentences.txt",
        *(
            f"eval/{name}/{file}.txt"
            for name in ("digits", "shapes")
            for file in ("classnames", "templates")
        ),
    }
    assert len(found["pairs.tar"]) == sizes.pairs
    assert len(found["images.tar"]) == sizes.images
    assert (
        len((folder / "sentences.txt").read_text().splitlines()) == sizes.sentences != sizes.images
    )
    assert len(found["eval/digits/test.tar"]) == sizes.test_digits
    assert len(found["eval/shapes/test.tar"]) == sizes.test_shapes
    assert {frozenset(sample) for sample in found["pairs.tar"].values()} == {
        frozenset({"png", "txt"})
    }
    assert {frozenset(sample) for sample in found["images.tar"].values()} == {frozenset({"png"})}


def test_same_seed_same_bytes(made, tmp_path):
    folder, sizes = made
    assert data.write(tmp_path, seed=3, scale=SCALE) == sizes
    assert digests(tmp_path) == digests(folder)


def test_another_seed_other_bytes(made, tmp_path):
    folder, _ = made
    data.write(tmp_path, seed=4, scale=SCALE)
    first, second = digests(folder), digests(tmp_path)
    assert {name for name in first if first[name] == second[name]} == {
        f"eval/{name}/{file}.txt"
        for name in ("digits", "shapes")
        for file in ("classnames", "templates")
    }


def test_tar_members_carry_nothing_of_the_machine(made):
    folder, _ = made
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert [member.name for member in members] == sorted(member.name for member in members)
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_every_image_decodes(made):
    folder, _ = made
    for shard in parts(folder).values():
        for sample in shard.values():
            with Image.open(io.BytesIO(sample["png"])) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (SIDE, SIDE))
                assert np.asarray(image).std() > 5


def test_no_image_is_in_two_places(made):
    folder, sizes = made
    hashes = [
        hashlib.sha256(s["png"]).digest()
        for shard in parts(folder).values()
        for s in shard.values()
    ]
    assert (
        len(set(hashes))
        == len(hashes)
        == sizes.pairs + sizes.images + sizes.test_digits + sizes.test_shapes
    )


def test_no_scan_is_in_two_splits():
    rows = [set(range(1797)[mix.scans]) for mix in (data.PAIRS, data.UNPAIRED, data.TEST)]
    assert len(set.union(*rows)) == sum(map(len, rows)) == 1797
    scans = data._Scans(seed=0).images
    used = [{scans[row].tobytes() for row in part} for part in rows]
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]


@pytest.mark.parametrize(("name", "classes"), [("digits", DIGITS), ("shapes", SCENES)])
def test_labels_are_in_range_and_cover_all_classes(made, name, classes):
    folder, _ = made
    home = folder / "eval" / name
    assert tuple((home / "classnames.txt").read_text().splitlines()) == classes
    templates = (home / "templates.txt").read_text().splitlines()
    assert templates and all(template.count("{}") == 1 for template in templates)
    labels = [int(sample["cls"]) for sample in samples(home / "test.tar").values()]
    assert set(labels) <= set(range(len(classes)))
    if name == "shapes":
        assert set(labels) == set(range(len(classes)))


def test_captions_name_the_class():
    random = np.random.default_rng(0)
    for item in data._scenes(480, random):
        colour, shape = SCENES[item.label].split()
        assert re.search(rf"\b{colour}\b", item.text) and re.search(rf"\b{shape}\b", item.text), (
            item.text
        )
    scans = data._Scans(seed=0)
    for item in data._digits(scans, data.Mix(200, 0, slice(0, 50)), random):
        assert re.search(rf"\b{DIGITS[item.label]}\b", item.text), item.text


def test_the_scene_has_the_colour_that_its_caption_names():
    random = np.random.default_rng(1)
    for item in data._scenes(96, random):
        colour = np.array(COLORS[SCENES[item.label].split()[0]], float)
        with Image.open(io.BytesIO(item.image)) as image:
            near = np.abs(np.asarray(image, float) - colour).max(axis=2) < 40
        assert near.mean() > 0.02, item.text


def test_sentences_use_correct_articles(made):
    folder, _ = made
    text = (folder / "sentences.txt").read_text()
    assert not re.search(r"\ba [aeiu]|\ba o(?!ne)|\ban [^aeiou]", text)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
def test_scale_must_be_positive(tmp_path, scale):
    with pytest.raises(ValueError, match="scale must be above 0"):
        data.write(tmp_path, scale=scale)


def test_an_interrupted_file_leaves_nothing(tmp_path):
    def broken():
        yield {"png": b"x"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data._write_tar(tmp_path / "a.tar", broken())
    assert list(tmp_path.iterdir()) == []

"""``dimefm train --cache DIR``: one folder stands for the caches below it."""

import pytest
from click.testing import CliRunner
from PIL import Image

import dimefm as package
from dimefm.cli import main
from dimefm.errors import RecipeError

TEACHER = "ResNet-mini-64/random:0"


def dimefm(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def refusal(*words, code=1):
    """Return the last line of a command that ends with ``code``."""
    result = dimefm(*words)
    assert result.exit_code == code, result.output
    return result.stderr.rstrip("\n").split("\n")[-1]


def test_a_folder_of_caches_stands_for_both(tmp_path):
    (tmp_path / "texts.txt").write_text("a cat\na dog\na tree\n")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        image = Image.new("RGB", (70, 70), (number * 60, 90, 20))
        image.save(tmp_path / f"photos/{number}.png")
    sources = ("--images", tmp_path / "photos")
    texts = ("--texts", tmp_path / "texts.txt")
    teacher = ("--teacher", TEACHER, "--device", "cpu", "--out", tmp_path / "cache")
    result = dimefm("extract-features", *teacher, *sources, *texts)
    assert result.exit_code == 0, result.output
    common = (*sources, "--student", "ResNet-mini-32", "--crops", "free", "--use-pvl-loss")
    common += ("--batch-size", 2, "--steps", 2, "--device", "cpu")
    by_folder = ("--cache", tmp_path / "cache")
    both = ("--image-cache", tmp_path / "cache/images", "--text-cache", tmp_path / "cache/texts")
    for name, caches in (("one", by_folder), ("two", both)):
        result = dimefm("train", *common, *caches, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    one, two = [(tmp_path / name / "recipe.toml").read_text() for name in ("one", "two")]
    assert "cache/texts" in one
    assert one.replace("/one", "/two").splitlines()[3:] == two.splitlines()[3:]
    (tmp_path / "several").mkdir()
    (tmp_path / "cache").rename(tmp_path / "several/teacher")
    out = ("--out", tmp_path / "three")
    line = refusal("train", *common, "--cache", tmp_path / "several", *out)
    assert f"name the folder of each teacher: {tmp_path / 'several/teacher'}" in line
    line = refusal("train", *common, "--cache", tmp_path / "none", *out)
    assert "there is no such folder. Fix: check the path" in line
    line = refusal("train", *common, *by_folder, *both, *out, code=2)
    assert "stands for --image-cache and --text-cache, too" in line


@pytest.mark.parametrize("key", ["image_cache", "text_cache"])
def test_in_python_a_folder_of_caches_and_one_cache_exclude_each_other(key, tmp_path):
    with pytest.raises(RecipeError, match=f"cache stands for {key}, too. Fix: remove one"):
        package.train(None, tmp_path / "run", cache="cache", **{key: ["other"]})

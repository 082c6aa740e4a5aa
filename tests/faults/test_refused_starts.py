"""A start that is refused leaves the disk as it was, so that the next one meets nothing of it."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cache.plan import write_lock
from dimefm.cli import main
from dimefm.errors import CacheError

ONE, OTHER = "ResNet-mini-64/random:0", "ResNet-mini-64/random:1"
HOLD = """
import sys
from dimefm.cache.plan import write_lock
with write_lock(sys.argv[1], shared=True):
    print("here", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, picture, monkeypatch) -> Path:
    """Return a folder, which is the working one, with four images and four sentences."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / f"photos/{number}.png").write_bytes(picture(number))
    (tmp_path / "texts.txt").write_text("one\ntwo\nthree\nfour\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args) -> str:
    """Run dimefm and return what it says; "" when it succeeds."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output if result.exit_code else ""


def extracted(*args) -> str:
    return call("extract-features", "--device", "cpu", *args)


def trained(*args) -> str:
    return call("train", "--device", "cpu", "--crops", "free", "--student", "ResNet-mini-64", *args)


def entries(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--image-cache", "nowhere", "--text-cache", "nowhere"), "no manifest.json"),
        (
            ("--image-cache", "c/images", "--text-cache", "c/texts", "--batch-size", 400),
            "fewer than a batch of 400",
        ),
        (
            (
                "--image-cache",
                "c/images",
                "--text-cache",
                "c/texts",
                "--batch-size",
                2,
                "--student",
                "ViT-B-99",
            ),
            "ViT-B-99",
        ),
    ],
)
def test_a_refused_training_leaves_no_folder(place, flags, says):
    assert not extracted(
        "--teacher", ONE, "--images", "photos", "--texts", "texts.txt", "--out", "c"
    )
    before = entries(place)
    assert says in trained("--images", "photos", *flags, "--out", "runs/new/first")
    assert entries(place) == before
    (place / "mine").mkdir()
    assert says in trained("--images", "photos", *flags, "--out", "mine/run")
    assert entries(place) == before | {"mine"}


@pytest.mark.parametrize("mode", ["--append", "--retry-bad"])
def test_a_cache_that_is_not_there_is_not_begun_by_a_refused_mode(place, mode):
    before = entries(place)
    assert "holds no finished cache" in extracted(
        "--teacher", ONE, "--images", "photos", "--out", "new", mode
    )
    assert entries(place) == before


def test_of_several_teachers_one_that_is_refused_leaves_no_plan_of_the_others(place):
    assert not extracted(
        "--teacher", OTHER, "--images", "photos", "--out", "c", "--dtype", "float32"
    )
    (place / "both").mkdir()
    (place / "c").rename(place / "both/ResNet-mini-64_random_1")
    before = entries(place)
    several = ("--teacher", ONE, OTHER, "--images", "photos", "--out", "both")
    assert "holds a cache made otherwise (dtype" in extracted(*several, "--dtype", "float16")
    assert entries(place) == before
    assert not extracted(
        *several, "--dtype", "float32"
    )  # what the refused call would have made otherwise


def test_sources_without_a_usable_row_leave_nothing(place):
    (place / "broken").mkdir()
    (place / "broken/a.png").write_bytes(b"no image")
    before = entries(place)
    none = "none of the 1 rows could be used"
    for flags, says in (
        ((), none),
        (("--format", "tsv"), none),
        (("--dtype", "int8"), "no row could be encoded to fit"),
    ):
        assert says in extracted("--teacher", ONE, "--images", "broken", "--out", "c", *flags)
        assert entries(place) == before


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("error", "records", "left"),
    [(CacheError, (), False), (CacheError, ("a.json",), True), (KeyboardInterrupt, (), True)],
)
def test_an_error_before_the_first_shard_leaves_nothing_and_an_interrupt_or_a_shard_the_plan(
    place, shared, error, records, left
):
    plan = place / "new/.partial/plan.json"
    with pytest.raises(error), write_lock("new", shared=shared):
        for name in ("plan.json", *records):
            (plan.parent / name).write_text("{}")
        raise error
    assert plan.exists() == (place / "new").exists() == left


def test_one_that_fails_beside_others_leaves_them_what_they_share(place):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, "new"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "here\n"
        with pytest.raises(CacheError), write_lock("new", shared=True):
            (place / "new/.partial/plan.json").write_text("{}")
            raise CacheError("refused")
        assert (place / "new/.partial/plan.json").exists()
        with (
            pytest.raises(CacheError, match="another process is writing there"),
            write_lock("new", shared=False),
        ):
            pass
    finally:
        other.communicate()
    with pytest.raises(CacheError, match="refused"), write_lock("new", shared=True):
        raise CacheError("refused")
    assert entries(place / "new") == set()


def test_what_was_there_stays(place):
    assert not extracted("--teacher", ONE, "--images", "photos", "--out", "c")
    before = entries(place)
    assert "made otherwise" in extracted("--teacher", OTHER, "--images", "photos", "--out", "c")
    assert entries(place) == before
    assert len(FeatureCache(place / "c/images")) == 4

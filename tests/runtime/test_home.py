"""dimefm under a user who is a bare number, as in containers: no HOME, no name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dimefm.runtime import home

PACKAGE = Path(__file__).parents[2]
BARE_NUMBER = """
import os, pwd, sys

def nobody(number):
    raise KeyError(number)

pwd.getpwuid = nobody
os.chdir(sys.argv[1])
"""
VERBS = """
from dimefm.cli import main
from torch._inductor.runtime.cache_dir_utils import cache_dir
import matplotlib.pyplot
from dimefm.storage.remote import scratch_folder

def dimefm(*words):
    main([*words, "--device", "cpu"], standalone_mode=False)

cache_dir()
scratch_folder(None)
dimefm("extract-features", "--teacher", "ResNet-mini-64/random:0",
       "--images", "photos", "--texts", "texts.txt", "--out", "cache")
dimefm("train", "--images", "photos", "--image-cache", "cache/images",
       "--text-cache", "cache/texts", "--student", "ResNet-mini-32", "--crops", "free",
       "--use-pvl-loss", "--batch-size", "2", "--steps", "1", "--out", "run")
dimefm("eval", "elevater", "--model", "run", "--root", "sets", "--datasets", "shapes",
       "--out", "scores")
print("all done")
"""
LIBRARIES = """
import getpass, pathlib
import dimefm
from dimefm.storage.remote import scratch_folder

assert getpass.getuser()
assert pathlib.Path.home() in scratch_folder(None).parents
assert os.path.expanduser("~/x") == str(pathlib.Path.home() / "x")
print("all done")
"""


@pytest.fixture
def folder(tmp_path, picture):
    """Return a folder with photos, texts and one dataset."""
    root = tmp_path / "work"
    for part in ("photos", "sets/shapes/test/cat", "sets/shapes/test/dog"):
        (root / part).mkdir(parents=True)
        for number in range(2):
            (root / part / f"{number}.png").write_bytes(picture(number))
    (root / "sets/shapes/classnames.txt").write_text("cat\ndog\n")
    (root / "texts.txt").write_text("a cat\ntwo dogs\na red boat\n")
    return root


@pytest.mark.parametrize(
    "home_setting", [pytest.param({}, id="unset"), pytest.param({"HOME": "/"}, id="root")]
)
@pytest.mark.parametrize(
    "program", [LIBRARIES, pytest.param(VERBS, marks=pytest.mark.slow)], ids=["libraries", "verbs"]
)
def test_what_asks_for_a_home_runs(folder, program, home_setting):
    environment = {"PATH": os.defpath, "PYTHONPATH": str(PACKAGE), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", BARE_NUMBER + program, str(folder)]
    done = subprocess.run(
        command,
        env=environment | home_setting,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.endswith("all done\n"), done.stderr
    assert not (folder / "~").exists()
    private = list(folder.glob("dimefm-*"))
    assert len(private) == (not home_setting)
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in private)


@pytest.fixture
def bare_number(monkeypatch, tmp_path):
    """Make this process run under a bare number."""
    for name in ("HOME", *home.NAMES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(home, "_home_in_list", lambda: None)
    monkeypatch.setattr(home.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(home.tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"dimefm-{os.getuid()}"


def test_a_home_that_is_set_stays(monkeypatch, bare_number):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("USER", "somebody")
    home.ensure_home()
    assert (os.environ["HOME"], os.environ["USER"]) == ("/somewhere", "somebody")
    assert not bare_number.exists()


@pytest.mark.parametrize("planted", ["file", "link"])
def test_what_lies_where_the_home_should_be_is_not_used(bare_number, tmp_path, planted):
    """The name is known to everybody, so another user can put a link or a file there."""
    (tmp_path / "theirs").mkdir()
    if planted == "file":
        bare_number.write_text("")
    else:
        bare_number.symlink_to(tmp_path / "theirs")
    home.ensure_home()
    chosen = Path(os.environ["HOME"])
    assert chosen != bare_number
    assert chosen.resolve() != tmp_path / "theirs"


def test_the_home_is_the_same_each_time(bare_number):
    home.ensure_home()
    assert os.environ["HOME"] == str(bare_number)
    del os.environ["HOME"]
    home.ensure_home()
    assert os.environ["HOME"] == str(bare_number)

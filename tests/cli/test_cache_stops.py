"""Commands for caches that are stopped, and places that would end with the command."""

import os
import signal

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cache.writer import CacheWriter
from dimefm.cli import main
from dimefm.curate.neighbours.search import Searcher

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def cache(tmp_path):
    rows = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    run("cache", "adopt", tmp_path / "rows.npy", "--kind", "text", "--out", tmp_path / "cache")
    return tmp_path / "cache"


def run(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def commands(cache, out):
    return {
        "convert": (CacheWriter, "write", ["convert", cache, out, "--format", "tsv"], "goes on"),
        "adopt": (
            CacheWriter,
            "write",
            ["adopt", cache.with_name("rows.npy"), "--kind", "text", "--out", out],
            "goes on",
        ),
        "neighbours": (Searcher, "search", ["neighbours", cache, "--out", out], "starts again"),
        "verify": (FeatureCache, "blocks", ["verify", cache, "--sha256"], "nothing was changed"),
        "diff": (FeatureCache, "verify", ["diff", cache, cache], "nothing was changed"),
    }


@pytest.fixture(autouse=True)
def hangup_counts():
    """Let a hangup end a process also where nohup runs the tests."""
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name)
@pytest.mark.parametrize("name", ["convert", "adopt", "neighbours", "verify", "diff"])
def test_a_stopped_command_says_in_one_line_how_to_go_on(cache, tmp_path, monkeypatch, name, stop):
    owner, method, words, line = commands(cache, tmp_path / "out")[name]
    whole = run("cache", *words)
    assert "interrupted" not in whole
    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()

    def stopped(*arguments, **settings):
        os.kill(os.getpid(), stop)
        raise AssertionError("the signal did not end the command")

    before = signal.getsignal(stop)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, stopped)
        output = run("cache", *words, code=130)
    assert signal.getsignal(stop) == before
    lines = [text for text in output.splitlines() if text.startswith("interrupted")]
    assert len(lines) == 1 and line in lines[0] and "Traceback" not in output
    assert run("cache", *words).splitlines()[-1] == whole.splitlines()[-1]
    left = [path.name for path in (tmp_path / "out").glob(".*")]
    assert not left


@pytest.mark.parametrize(
    "words",
    [
        ["cache", "convert", "CACHE", "memory://new"],
        ["cache", "adopt", "ROWS", "--kind", "text", "--out", "memory://new/deep"],
        ["cache", "neighbours", "CACHE", "--out", "memory://new"],
        ["extract-features", "--teacher", "x", "--texts", "ROWS", "--out", "memory://new"],
    ],
    ids=lambda words: words[1],
)
def test_memory_is_no_place_for_what_a_command_writes(cache, words):
    places = {"CACHE": cache, "ROWS": cache.with_name("rows.npy")}
    output = run(*[places.get(word, word) for word in words], code=2)
    assert "ends with this command. Fix: give a folder" in output

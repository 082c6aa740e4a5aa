"""Mutated shards and manifests: a CacheError or rows, and never a crash, a hang, another exception
or unbounded memory.

Each worker process reads forged caches of one target and format; the seeds of what went wrong are
in the message.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dimefm import plugins

FORMATS = plugins.names("caches")
TARGETS = [*(("shards", name) for name in FORMATS), ("manifests", "hdf5"), ("tables", "hdf5")]
WORKER = Path(__file__).with_name("fuzzing.py")


def fuzz(folder, target, format_, first, count):
    """Run one worker; fail when it crashed, when an input raised what it should not, or when all
    went one way.
    """
    done = subprocess.run(
        [sys.executable, str(WORKER), target, format_, str(first), str(count), str(folder)],
        capture_output=True,
        text=True,
    )
    seed = (folder / "seed").read_text() if (folder / "seed").exists() else "the start"
    assert done.returncode == 0, f"ended with {done.returncode} at {seed}: {done.stderr[-800:]}"
    found = json.loads(done.stdout)
    assert not found["wrong"], (
        f"{len(found['wrong'])} of {count} inputs ({target} {format_}):"
        f" {dict(list(found['wrong'].items())[:8])}"
    )
    assert found["refused"] > count // 10
    assert found["peak"] < 600, f"{found['peak']} MiB"


@pytest.mark.parametrize(("target", "format_"), TARGETS)
def test_a_hundred_mutations_are_refused_or_read(tmp_path, target, format_):
    fuzz(tmp_path, target, format_, 0, 100)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1000, 2000, 3000])
@pytest.mark.parametrize(("target", "format_"), TARGETS)
def test_thousands_of_mutations_are_refused_or_read(tmp_path, target, format_, first):
    fuzz(tmp_path, target, format_, first, 1000)

"""Claims: one process at a time, whatever becomes of it, and no trace of what nobody shares."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dimefm.storage.locks import claim

HOLDER = """
import sys, time
from pathlib import Path
from dimefm.storage.locks import claim
held = claim(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
print("held" if held else "refused", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder():
    """Return a function that starts a process which claims a path and keeps it."""
    started = []

    def start(path, how="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, path, how], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_another_process_holds_is_not_granted_until_it_is_killed(tmp_path, holder):
    path = tmp_path / "folder/lock"
    process, said = holder(path)
    assert said == "held"
    assert claim(path) is None
    assert claim(path, shared=True) is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with claim(path, wait=True) as held:
        assert held is not None


def test_shared_claims_go_together_and_keep_out_one_that_is_alone(tmp_path, holder):
    path = tmp_path / "lock"
    with claim(path, shared=True):
        _, said = holder(path, "shared")
        assert said == "held"
        assert holder(path)[1] == "refused"


def test_within_one_process_a_claim_is_held_too(tmp_path):
    path = tmp_path / "lock"
    with claim(path) as first:
        assert claim(path) is None
        first.release()
        first.release()
        assert claim(path) is not None


def test_a_claim_alone_leaves_no_trace_and_a_shared_one_its_file(tmp_path):
    with claim(tmp_path / "a/lock"):
        assert (tmp_path / "a/lock").exists()
    assert not (tmp_path / "a").exists()
    with claim(tmp_path / "b/lock", shared=True):
        pass
    assert (tmp_path / "b/lock").exists()


def test_whoever_waits_takes_over_although_the_file_is_made_anew(tmp_path, holder):
    path = tmp_path / "folder/lock"
    process, _ = holder(path)
    waiting = subprocess.Popen(
        [sys.executable, "-c", HOLDER.replace('"shared")', '"shared", wait=True)'), path, "alone"],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.5)
    path.unlink()
    path.write_text("")
    process.kill()
    process.wait()
    try:
        assert waiting.stdout.readline().strip() == "held"
        assert claim(path) is None
    finally:
        waiting.kill()
        waiting.wait()
        waiting.stdout.close()

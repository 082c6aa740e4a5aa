"""One process at a time trains into a run folder, and what a killed one leaves is no trouble."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dimefm.errors import DimefmError, ModelError
from dimefm.storage import locks
from dimefm.storage.files import is_running
from dimefm.storage.locks import claim_alone
from dimefm.train import run_folder
from dimefm.train.run_writer import explained
from dimefm.train.signals import Stopping, raised
from dimefm.train.trainer import train

HOLDER = """
import sys, time
from pathlib import Path
from dimefm.storage.files import is_running
from dimefm.storage.locks import claim_alone
print("held" if claim_alone(Path(sys.argv[1])) else "refused", flush=True)
time.sleep(60)
"""


def quiet(line):
    """Take a line of progress and say nothing."""


@pytest.fixture
def other_process():
    """Return a function that starts a process which holds the claim of a run folder."""
    started = []

    def hold(out):
        words = [sys.executable, "-c", HOLDER, out / run_folder.LOCK]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline().strip() == "held"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def without_locks(monkeypatch):
    """Let flock fail as on a network file system without locks."""

    def fails(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", fails)


def test_a_second_trainer_is_refused_whatever_it_asks_for(world, other_process, digests):
    recipe = world.recipe(save_every=3)
    out = world.root / "run"
    process = other_process(out)
    before = digests(out)
    for settings in ({}, {"resume": True}):
        with pytest.raises(ModelError, match="another process trains there") as error:
            train(recipe, out, echo=quiet, **settings)
        assert f"process {process.pid} on " in str(error.value)
        assert digests(out) == before
    process.kill()
    process.wait()
    assert train(recipe, out, echo=quiet) == out
    assert not (out / run_folder.LOCK).exists()


def test_a_run_holds_its_folder_from_the_first_check_to_the_last_file(world, monkeypatch):
    out = world.root / "run"
    seen = []

    def look(line):
        seen.append((line, claim_alone(out / run_folder.LOCK)))

    train(world.recipe(warmup=100.0), out, echo=look, ready=lambda: look("ready"))
    assert [line for line, _ in seen if line == "ready"]
    assert len(seen) >= 3 and all(claim is None for _, claim in seen)
    assert claim_alone(out / run_folder.LOCK) is not None


def test_a_refused_run_leaves_no_folder_and_no_claim(world):
    out = world.root / "deep" / "er" / "run"
    with pytest.raises(DimefmError):
        train(world.recipe(images=[str(world.root / "none")]), out, echo=quiet)
    assert not (world.root / "deep").exists()


def test_without_locks_a_file_names_the_owner_and_a_dead_one_does_not_count(
    world, without_locks, monkeypatch
):
    out = world.root / "run"
    owner = out / f"{run_folder.LOCK}.owner"
    held = run_folder.hold(out)
    with pytest.raises(ModelError, match=f"process {os.getpid()} on .*; if it has ended, remove "):
        train(world.recipe(), out, echo=quiet)
    held.release()
    assert not owner.exists()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner.parent.mkdir(exist_ok=True)
    owner.write_text(f"{locks.this_host()} {ended.pid}\n")
    assert train(world.recipe(), out, echo=quiet) == out
    for text in (f"another-machine {ended.pid}\n", "", "nonsense", "a b c"):
        owner.write_text(text)
        with pytest.raises(ModelError, match="another process trains there"):
            run_folder.hold(out)


def test_what_a_killed_process_left_half_written_is_removed(world):
    recipe = world.recipe(save_every=2)
    out = train(recipe, world.root / "run", echo=quiet)
    (out / "run.json").unlink()
    left = [out / "checkpoints" / name for name in ("00000004.part", "best.part")]
    for folder in left:
        folder.mkdir()
        (folder / "model.safetensors.part").write_bytes(b"half")
    left += [out / "recipe.toml.part", out / "image_tower.safetensors.part"]
    for path in left[2:]:
        path.write_bytes(b"half")
    train(recipe, out, resume=True, echo=quiet)
    assert not [path for path in out.rglob("*.part*")]


def test_the_parts_of_a_folder_that_is_refused_stay(world):
    out = train(world.recipe(), world.root / "run", echo=quiet)
    (out / "x.part").write_text("a download")
    with pytest.raises(ModelError, match="finished run already"):
        train(world.recipe(), out, echo=quiet)
    assert (out / "x.part").exists()


def test_a_log_line_that_cannot_be_read_is_dropped_on_resume(world):
    recipe = world.recipe(save_every=3)
    out = train(recipe, world.root / "run", echo=quiet)
    (out / "run.json").unlink()
    whole = (out / "log.jsonl").read_bytes()
    (out / "log.jsonl").write_bytes(whole + b"\0\0\xff\n[1]\n")
    train(recipe, out, resume=True, echo=quiet)
    lines = (out / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, 7))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("step", [None, 4])
def test_a_disk_that_takes_no_more_is_one_line_that_says_what_is_left(tmp_path, number, step):
    if step is not None:
        (tmp_path / f"checkpoints/{step:08d}").mkdir(parents=True)
        (tmp_path / f"checkpoints/{step:08d}/state.json").write_text("{}")
    with pytest.raises(DimefmError) as error, explained(tmp_path):
        raise OSError(number, os.strerror(number))
    line = str(error.value)
    assert line.startswith(f"{tmp_path}: cannot be written ({os.strerror(number)}); ")
    assert ("of step 4. Fix: run the same command with --resume" in line) == (step == 4)
    assert ("no checkpoint was written yet. Fix: run the same command again" in line) != (step == 4)


def test_a_hangup_that_nohup_ignores_is_left_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for context in (Stopping(), raised()):
            with context:
                assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
                signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_outside_of_the_steps_a_signal_interrupts_as_ctrl_c_does(number):
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
    try:
        with pytest.raises(KeyboardInterrupt), raised():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


ORPHAN = """
import os, subprocess, sys
word = "import sys, time; sys.path[:0] = %r; from dimefm.runtime import torchrun;" % (sys.path,)
word += "torchrun.end_with_torchrun(); print('up', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", word], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("started_by", ["torchrun", "a shell"])
def test_a_process_ends_when_torchrun_is_gone(started_by):
    environment = dict(os.environ)
    if started_by == "torchrun":
        environment["TORCHELASTIC_RUN_ID"] = "1"
    parent = subprocess.run(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, env=environment
    )
    pid = int(parent.stdout)
    try:
        deadline = time.monotonic() + (30 if started_by == "torchrun" else 2)
        while is_running(pid) and _state(pid) != "Z" and time.monotonic() < deadline:
            time.sleep(0.1)
        has_ended = not is_running(pid) or _state(pid) == "Z"
        assert has_ended == (started_by == "torchrun")
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def _state(pid):
    """Return the letter of a process's state, "Z" when only its entry is left."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"

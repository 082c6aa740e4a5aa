"""Real training processes: killed at random moments, two in one folder, without torchrun, without a
terminal.

A default test interrupts one process; the others are marked slow.
"""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from dimefm.storage.files import is_running
from dimefm.train import checkpoint
from dimefm.train.trainer import train
from tests.train.conftest import DistributedContext as World

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
MODULE = (sys.executable, "-m", "dimefm")
LIMIT = 60  # seconds that a test waits for something


def quiet(line):
    """Take a line of progress and say nothing."""


@pytest.fixture
def place(tmp_path):
    """Return (a folder, the words of a training command in it)."""
    world = World(tmp_path)
    recipe = world.recipe(steps=60, save_every=2, keep=3)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    words = ("train", "--recipe", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    return tmp_path, [str(word) for word in words]


def endless(folder):
    """Let the run of a place go on until it is stopped."""
    path = folder / "recipe.toml"
    path.write_text(path.read_text().replace("steps = 60", "steps = 100000"))


def start(words, **options):
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*MODULE, *words], env=ENVIRONMENT, **{**settings, **options})


def wait_for(condition, what):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def has_checkpoint(folder):
    return bool(checkpoint.checkpoints(folder / "run"))


def weights(folder):
    return (folder / "image_tower.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_stopped_process_prints_one_line_that_says_how_to_continue(place, number):
    folder, words = place
    endless(folder)
    process = start(words)
    wait_for(lambda: has_checkpoint(folder), "no checkpoint")
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT)[0].strip().splitlines()
    assert process.returncode == 130
    step = int(checkpoint.checkpoints(folder / "run")[-1].name)
    assert said[-1] == (
        f"interrupted; the newest checkpoint is of step {step}. Fix: run the same command with"
        " --resume to continue from it"
    )
    assert not (folder / "run/.lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_at_any_moment_it_says_how_to_continue_and_that_is_true(place, number):
    folder, words = place
    whole = train_whole(folder)
    moments = random.Random(0)
    for _ in range(8):
        process = start([*words, "--resume"])
        time.sleep(moments.uniform(0.05, 6))
        process.send_signal(number)
        said = process.communicate(timeout=LIMIT)[0]
        assert "Traceback" not in said
        if process.returncode == 0:
            break
        assert process.returncode in (130, -number, -signal.SIGINT), said
        if process.returncode == 130:
            assert said.strip().splitlines()[-1].startswith("interrupted; "), said
    assert subprocess.run([*MODULE, *words, "--resume"], env=ENVIRONMENT).returncode == 0
    assert weights(folder / "run") == weights(whole)


def train_whole(folder):
    from dimefm.recipe import read

    return train(read(folder / "recipe.toml"), folder / "whole", echo=quiet)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_weights_of_an_undisturbed_run(place):
    folder, words = place
    whole = train_whole(folder)
    moments = random.Random(1)
    for _ in range(12):
        process = start([*words, "--resume"])
        time.sleep(moments.uniform(1, 6))
        process.send_signal(signal.SIGTERM if moments.random() < 0.5 else signal.SIGKILL)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
    assert subprocess.run([*MODULE, *words, "--resume"], env=ENVIRONMENT).returncode == 0
    assert weights(folder / "run") == weights(whole)
    assert not [path for path in (folder / "run").rglob("*.part*")]
    steps = [json.loads(line)["step"] for line in (folder / "run/log.jsonl").open()]
    assert steps == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_of_two_trainers_in_one_folder_one_is_refused(place, options):
    folder, words = place
    for attempt in range(2):
        out = folder / f"run-{attempt}"
        pair = [[*words[:-1], str(out), "--seed", str(seed), *options] for seed in range(2)]
        processes = [start(one) for one in pair]
        said = [process.communicate(timeout=2 * LIMIT)[0] for process in processes]
        codes = [process.returncode for process in processes]
        assert sorted(codes) == [0, 1], said
        winner = codes.index(0)
        assert any(
            reason in said[1 - winner]
            for reason in ("another process trains there", "holds a", "another recipe")
        )
        recipe = (out / "recipe.toml").read_text()
        assert f"seed = {winner}\n" in recipe
        assert len((out / "log.jsonl").read_text().splitlines()) == 60
        alone = folder / f"alone-{attempt}"
        assert start([*words[:-1], str(alone), "--seed", str(winner)]).wait() == 0
        assert weights(out) == weights(alone)


@pytest.mark.slow
def test_processes_end_with_a_checkpoint_when_torchrun_is_killed(place):
    folder, words = place
    endless(folder)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611")
    parent = subprocess.Popen([sys.executable, *torchrun, "-m", "dimefm", *words], env=ENVIRONMENT)
    wait_for(lambda: has_checkpoint(folder), "no checkpoint")
    ranks = children_of(parent.pid)
    assert len(ranks) == 2
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(map(is_running, ranks)), "a process goes on")
    newest = checkpoint.checkpoints(folder / "run")[-1]
    assert load_file(newest / "model.safetensors")
    assert not list((folder / "run/checkpoints").glob("*.part"))


def children_of(pid):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(line) for line in listed.stdout.split()]


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_checkpoint(place):
    folder, words = place
    endless(folder)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*MODULE, *words], ENVIRONMENT)
    wait_for(lambda: has_checkpoint(folder), "no checkpoint")
    os.close(terminal)  # the kernel sends SIGHUP, and writing to the terminal fails from now on
    wait_for(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "the process goes on")
    steps = [int(folder.name) for folder in checkpoint.checkpoints(folder / "run")]
    logged = [json.loads(line)["step"] for line in (folder / "run/log.jsonl").open()]
    assert steps[-1] == logged[-1]
    assert not (folder / "run/.lock").exists()

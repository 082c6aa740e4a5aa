"""kill -9, a full disk and a read-only folder: the next run goes on, and ends with the bytes of an
undisturbed run.

A runner process imports torch and loads the teacher once and forks a child for every command; each
child is the real ``python -m dimefm``.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from dimefm.cache import FeatureCache
from dimefm.errors import CacheError
from tests.faults.conftest import FORMATS

RUNNER = """
import json, os, resource, runpy, sys, warnings
import torch
# a forked child would wait for ever for OpenMP threads that only its parent has
torch.set_num_threads(1)
import dimefm.extract.extract, dimefm.models.loading, dimefm.data, dimefm.cli.extract_features
from dimefm import plugins
for name in plugins.names("caches"):
    plugins.module("caches", name)
warnings.simplefilter("ignore")
ENCODER = dimefm.models.loading.load_encoder("ResNet-mini-64/random:0", "cpu")
dimefm.models.loading.load_encoder = lambda *_: ENCODER
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if job["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
        sys.argv = ["dimefm", *job["arguments"]]
        try:
            runpy.run_module("dimefm", run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(99)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
SHARDS = 40


class Runner:
    """Starts commands in forked children of one warm process."""

    def __init__(self, folder):
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments, limit=0):
        """Start ``dimefm ARGUMENTS``; return the process id."""
        job = {
            "arguments": [str(argument) for argument in arguments],
            "limit": limit,
            "log": str(self.log),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        """Wait; return (exit code, output)."""
        return int(self.process.stdout.readline()), self.log.read_text()

    def __call__(self, arguments, limit=0):
        self.start(arguments, limit)
        return self.end()


@pytest.fixture(scope="module")
def dimefm(tmp_path_factory):
    runner = Runner(tmp_path_factory.mktemp("runner"))
    yield runner
    runner.process.stdin.close()
    runner.process.wait()
    runner.process.stdout.close()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Return a folder of 40 text shards with a bad row each."""
    folder = tmp_path_factory.mktemp("raw") / "texts"
    folder.mkdir()
    for i in range(SHARDS):
        lines = [f"photo {j} of shard {i}" for j in range(24)]
        lines[i % 24] = ""
        (folder / f"{i:02d}.txt").write_text("\n".join(lines))
    return folder


def arguments(texts, out, format_="hdf5"):
    teacher = ["--teacher", "ResNet-mini-64/random:0", "--device", "cpu"]
    return [
        "extract-features",
        *teacher,
        "--texts",
        texts,
        "--out",
        out,
        "--format",
        format_,
        "--batch-size",
        "8",
    ]


@pytest.fixture(scope="module")
def undisturbed(dimefm, texts, tmp_path_factory, digests):
    """Return format -> digests of a cache that nothing disturbed."""
    found = {}

    def of(format_):
        if format_ not in found:
            out = tmp_path_factory.mktemp("whole") / "cache"
            code, output = dimefm(arguments(texts, out, format_))
            assert code == 0, output
            found[format_] = digests(out)
        return found[format_]

    return of


def finished(out):
    return len(list(out.glob("texts/.partial/*.feat.*.json")))


def kill_at(runner, command, out, shards, delay):
    """Start ``command``, kill it ``delay`` seconds after ``shards`` are finished; return the exit
    code.
    """
    child = runner.start(command)
    deadline = time.monotonic() + 600
    while (
        finished(out) < shards
        and not (out / "texts/manifest.json").exists()
        and time.monotonic() < deadline
    ):
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return runner.end()[0]


@pytest.mark.parametrize("format_", FORMATS)
def test_killed_again_and_again_it_ends_with_the_bytes_of_an_undisturbed_run(
    dimefm, texts, tmp_path, undisturbed, digests, format_
):
    whole, draw, out = undisturbed(format_), random.Random(format_), tmp_path / "cache"
    killed = 0
    for shards in sorted(draw.sample(range(SHARDS - 6), 5)):
        killed += (
            kill_at(dimefm, arguments(texts, out, format_), out, shards, draw.uniform(0, 0.01))
            == -signal.SIGKILL
        )
        with pytest.raises(CacheError, match="unfinished"):
            FeatureCache(out / "texts")
    assert killed == 5
    code, output = dimefm(arguments(texts, out, format_))
    assert code == 0, output
    assert "shards were finished by an earlier run" in output
    assert digests(out) == whole
    code, output = dimefm(arguments(texts, out, format_))
    assert code == 0 and "finished already" in output
    assert digests(out) == whole


def test_killed_before_the_first_shard_it_starts_anew(
    dimefm, texts, tmp_path, undisturbed, digests
):
    out = tmp_path / "cache"
    child = dimefm.start(arguments(texts, out))
    while not (out / "texts/.partial").is_dir():
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    assert dimefm.end()[0] == -signal.SIGKILL
    assert dimefm(arguments(texts, out))[0] == 0
    assert digests(out) == undisturbed("hdf5")


def test_interrupted_by_the_keyboard_it_says_how_to_go_on(
    dimefm, texts, tmp_path, undisturbed, digests
):
    out = tmp_path / "cache"
    child = dimefm.start(arguments(texts, out))
    while finished(out) < 5:
        time.sleep(0.0005)
    os.kill(child, signal.SIGINT)
    code, output = dimefm.end()
    assert (
        code == 130
        and "the same command goes on from there" in output
        and "Traceback" not in output
    )
    assert dimefm(arguments(texts, out))[0] == 0
    assert digests(out) == undisturbed("hdf5")


@pytest.mark.parametrize(
    ("format_", "limit"), [(FORMATS[0], 300), *((name, 4600) for name in FORMATS)]
)
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    dimefm, texts, tmp_path, undisturbed, digests, format_, limit
):
    """No file may grow beyond ``limit`` bytes: the plan (300), or the shards (about 5,900 to
    17,000) cannot be written.
    """
    out = tmp_path / "cache"
    quiet = [*arguments(texts, out, format_), "-q"]  # the limit holds for the output, too
    code, output = dimefm(quiet, limit=limit)
    assert code == 1, output
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and str(out / "texts") in errors[0]
    assert "File too large" in errors[0]
    with pytest.raises(CacheError):
        FeatureCache(out / "texts")
    code, output = dimefm(arguments(texts, out, format_))
    assert code == 0, output
    assert digests(out) == undisturbed(format_)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(dimefm, texts, tmp_path):
    tmp_path.chmod(0o500)
    try:
        code, output = dimefm(arguments(texts, tmp_path / "cache"))
    finally:
        tmp_path.chmod(0o700)
    assert code == 1 and "cannot be written" in output and "Traceback" not in output

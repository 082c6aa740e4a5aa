"""A warm process that runs commands in forked children, and caches to damage with what reading them
in a child gives.
"""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dimefm import plugins
from tests.faults import forging

FORMATS = plugins.names("caches")

RUNNER = """
import json, os, resource, runpy, signal, sys, threading, warnings
import torch
# a forked child would wait for ever for OpenMP threads that only its parent has
torch.set_num_threads(1)
import dimefm.extract.extract, dimefm.extract.estimate, dimefm.models.loading, dimefm.data
import dimefm.cli.extract_features, dimefm.cli.cache.convert
import dimefm.cache.convert, dimefm.cache.compare
from dimefm import plugins
for name in plugins.names("caches"):
    plugins.module("caches", name)
warnings.simplefilter("ignore")
ENCODER = dimefm.models.loading.load_encoder("ResNet-mini-64/random:0", "cpu")
dimefm.models.loading.load_encoder = lambda *_: ENCODER
PLACES = [("cache", ""), ("storage", ""), ("extract", "extract.py"), ("extract", "pipeline.py")]
WATCHED = [os.path.join("dimefm", *place) for place in PLACES]


def watch(kill_at):
    # Count the lines of the cache, the storage and extract that run; die at number kill_at.
    def line(frame, event, argument):
        if event == "line":
            lines[0] += 1
            if lines[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame, event, argument):
        return line if any(part in frame.f_code.co_filename for part in WATCHED) else None

    threading.settrace(call)
    sys.settrace(call)


def work(job):
    signal.alarm(300)
    output = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if job["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
    if job["kill_at"] is not None:
        watch(job["kill_at"])
    if job["program"]:
        exec(job["program"], {"__name__": "__main__"})
    else:
        sys.argv = ["dimefm", *job["arguments"]]
        runpy.run_module("dimefm", run_name="__main__")


for text in sys.stdin:
    job, lines = json.loads(text), [0]
    count, counted = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work(job)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.settrace(None)
            os.write(counted, str(lines[0]).encode())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(counted)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, int(os.read(count, 20) or 0)]), flush=True)
    os.close(count)
"""


class Warm:
    """Runs ``dimefm ARGUMENTS``, each in a child forked from a process that has imported everything
    and has the teacher.
    """

    def __init__(self, folder):
        self.log, self.lines = folder / "log.txt", 0
        single = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=single,
        )

    def __call__(self, *arguments, kill_at=None, largest_file=0, program=""):
        """Return (exit code, output); ``kill_at`` kills at that line of the cache code, 0 only
        counts them in ``lines``.
        """
        given = {
            "arguments": [str(each) for each in arguments],
            "program": program,
            "log": str(self.log),
        }
        self.process.stdin.write(
            json.dumps({**given, "kill_at": kill_at, "largest_file": largest_file}) + "\n"
        )
        self.process.stdin.flush()
        code, self.lines = json.loads(self.process.stdout.readline())
        return code, self.log.read_text()

    def done(self, *arguments, **options):
        """Run a command that must succeed; return its output."""
        code, output = self(*arguments, **options)
        assert code == 0, output
        return output

    def refused(self, *arguments, **options):
        """Run a command that must end with exit code 1 and one line of error; return that line."""
        code, output = self(*arguments, **options)
        assert code == 1 and "Traceback" not in output, output
        assert output.count("Error: ") == 1, output
        error = output[output.index("Error: ") :].strip()
        assert "\n" not in error, output
        return error


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    runner = Warm(tmp_path_factory.mktemp("warm"))
    yield runner
    runner.process.stdin.close()
    runner.process.wait()
    runner.process.stdout.close()


@pytest.fixture(scope="session")
def reader():
    """Return a :class:`forging.Reader`."""
    found = forging.Reader()
    yield found
    found.close()


@pytest.fixture(params=FORMATS)
def format_(request):
    return request.param


@pytest.fixture
def made(tmp_path):
    """Return ``made(format_, name="cache", **options)``: the folder of a new cache of two
    shards.
    """

    def make(format_, name="cache", **options):
        forging.make(tmp_path / name, format_, **options)
        return tmp_path / name

    return make


def is_copied(format_):
    """Say whether rows of a format are read from a flat copy, not where they lie in the shard."""
    module = plugins.module("caches", format_)
    files = {suffix: io.BytesIO() for suffix in module.SUFFIXES}
    return module.write(files, ["key"], np.zeros((1, 2), module.DEFAULT_DTYPE)) is None


def another(format_):
    """Return a format that is not ``format_``."""
    return next(name for name in FORMATS if name != format_)


READS = ("read", "verify all")  # every byte passes through the format


def shard(root, number=0):
    """Return the file of a shard."""
    return root / json.loads((root / "manifest.json").read_text())["shards"][number]["file"]


def files(root, number):
    """Return the file of a shard and its companions."""
    stem = shard(root, number).name.split(".feat.")[0]
    return sorted(root.glob(f"{stem}.feat.*"))


def refused(found, *operations):
    """Fail unless every one of these operations, or else all, ended with a CacheError."""
    assert [
        name for name in operations or found if not found[name].startswith("CacheError: ")
    ] == [], found

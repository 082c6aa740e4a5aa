"""A warm process that runs dimefm commands in forked children and measures them.

As a program it reads lines ``{"words": [...], "folder": ..., "seconds": ...}`` and answers each
with ``{"code": ..., "seconds": ..., "peak": bytes, "output": ..., "error": ...}``. The code is -1
when a command ran out of time, and minus the signal when it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Outcome:
    """What came of one command; ``peak`` is the largest resident memory in bytes."""

    code: int
    seconds: float
    peak: int
    output: str
    error: str


class LimitedRunner:
    """Runs commands one after another; close it at the end."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def run(self, words: list, folder: Path, seconds: float = SECONDS) -> Outcome:
        """Run ``dimefm WORDS`` in ``folder`` and return what came of it."""
        job = {"words": [str(word) for word in words], "folder": str(folder), "seconds": seconds}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the warm process."""
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def _work(job: dict, output: Path, error: Path) -> None:
    """Run a command in this process, which then ends; its lines go to the two files."""
    from dimefm.cli import main

    os.setsid()
    for number, path in ((1, output), (2, error)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    os.chdir(job["folder"])
    code = 0
    try:
        main(job["words"])
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _measured(job: dict, scratch: Path) -> dict:
    """Run a job in a child, and return its outcome."""
    output = scratch / "output"
    error = scratch / "error"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _work(job, output, error)
    finished = 0
    while not finished and time.monotonic() - started < job["seconds"]:
        time.sleep(0.02)
        finished, status, usage = os.wait4(child, os.WNOHANG)
    timed_out = not finished
    if timed_out:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    return {
        "code": -1 if timed_out else os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - started,
        "peak": usage.ru_maxrss * 1024,
        "output": output.read_text(encoding="utf-8", errors="replace"),
        "error": error.read_text(encoding="utf-8", errors="replace"),
    }


def _serve() -> None:
    """Import what commands need once, then answer jobs until stdin ends."""
    import importlib
    import tempfile

    import torch

    torch.set_num_threads(1)  # a forked child would wait for threads that only its parent has
    for name in ("extract_features", "train", "eval", "pack", "cache.adopt", "quickstart"):
        importlib.import_module(f"dimefm.cli.{name}")
    for name in ("extract.extract", "train.trainer", "evaluate.zero_shot", "models.loading"):
        importlib.import_module(f"dimefm.{name}")
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            outcome = _measured(json.loads(line), Path(folder))
            print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    _serve()

"""Real processes at one extraction: many small shards, what one undisturbed process makes of them,
and digests.
"""

import hashlib
import os
import subprocess
import sys
import time

import pytest

SHARDS, ROWS = 200, 12
TEACHER = "ResNet-mini-64/random:0"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def command(raw, out, *flags, launcher=(sys.executable,)):
    """Return the words that extract the sentences in ``raw`` into ``out``."""
    sources = (
        "--teacher",
        TEACHER,
        "--device",
        "cpu",
        "--texts",
        f"{raw}/*.txt",
        "--dataroot",
        raw,
    )
    return [
        *map(
            str,
            (
                *launcher,
                "-m",
                "dimefm",
                "extract-features",
                *sources,
                "--workers",
                1,
                "--out",
                out,
                *flags,
            ),
        )
    ]


def torchrun(ranks):
    """Return what starts so many ranks on this machine."""
    return (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        ranks,
    )


def start(words, **environment):
    """Start a command in a process group of its own, with more environment variables."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        words, **pipes, env={**ENVIRONMENT, **environment}, start_new_session=True
    )


def ended(process):
    """Return (exit code, output, errors) of a started command."""
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


def run(words):
    """Run a command that is expected to succeed; return its output."""
    code, output, errors = ended(start(words))
    assert code == 0, f"{' '.join(words)}\n{output}\n{errors}"
    return output


def wait_for_shards(out, count, process):
    """Return when ``count`` shards are finished; fail when the command ends before."""
    while len(list((out / "texts/.partial").glob("*.json"))) <= count:  # the plan is one of them
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def digests(folder):
    """Return the SHA-256 of every file of a cache."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Return a folder of text files, one shard each, with an empty sentence here and there."""
    top = tmp_path_factory.mktemp("raw")
    for i in range(SHARDS):
        lines = [
            "" if (i + j) % 31 == 0 else f"sentence {j} of shard {i} " + "and more " * (j % 5)
            for j in range(ROWS)
        ]
        (top / f"{i:03d}.txt").write_text("\n".join(lines) + "\n")
    return top


@pytest.fixture(scope="session")
def undisturbed(raw, tmp_path_factory):
    """Return the digests of the cache that one process makes."""
    out = tmp_path_factory.mktemp("undisturbed")
    run(command(raw, out))
    return digests(out)

"""What users and machines cause ends in one line and exit code 1, whatever raised it; Ctrl-C says
how to go on.
"""

import errno

import pytest
from click.testing import CliRunner

from dimefm.cli import explain, main
from dimefm.errors import DataError


class OutOfMemoryError(RuntimeError):
    """Called like torch's own, which can only be raised with a GPU."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("x.txt: no such file"), "x.txt: no such file"),
        (PermissionError(errno.EACCES, "Permission denied", "out/x"), "out/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EIO, "Input/output error", b"a/\xff"), "a/\udcff: Input/output error"),
        (OSError("Can't read\n data"), "Can't read data"),
        (MemoryError(), "out of memory. Fix: lower --batch-size"),
        (
            OutOfMemoryError("CUDA out of memory.\nTried"),
            "out of memory: CUDA out of memory.. Fix: lower --batch-size",
        ),
    ],
)
def test_errors_of_the_machine_become_one_line(error, line):
    assert explain(error).startswith(line)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), RuntimeError("x"), KeyError("x"), BrokenPipeError(errno.EPIPE, "pipe")],
)
def test_other_errors_keep_their_traceback(error):
    assert explain(error) is None


def failing(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("dimefm.evaluate.benchmark.load", fail)


def test_a_full_disk_ends_with_1_and_one_line(monkeypatch):
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "run/x"))
    result = CliRunner().invoke(main, ["prompts", "mnist"])
    line = (
        "Error: run/x: No space left on device. Fix: make room, or name a folder on another disk\n"
    )
    assert (result.exit_code, result.stderr) == (1, line)


@pytest.mark.parametrize(
    "words", [["--debug", "prompts", "mnist"], ["prompts", "mnist", "--debug"]]
)
def test_debug_shows_the_traceback_before_and_after_the_command(monkeypatch, words):
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "run/x"))
    assert isinstance(CliRunner().invoke(main, words).exception, OSError)


def test_a_file_that_ends_early_is_no_interrupt(monkeypatch):
    failing(monkeypatch, EOFError("No data left in file"))
    result = CliRunner().invoke(main, ["prompts", "mnist"])
    assert isinstance(result.exception, RuntimeError)
    assert "Aborted" not in result.stderr and "interrupted" not in result.stderr


@pytest.mark.parametrize(
    ("words", "target", "expected"),
    [
        (["prompts", "mnist"], "dimefm.evaluate.benchmark.load", "interrupted\n"),
        (
            ["train", "--out", "x"],
            "dimefm.train.trainer.train",
            "interrupted; no checkpoint was written yet. Fix: run the same command again\n",
        ),
        (
            ["quickstart", "--out", "x"],
            "dimefm.quickstart.run.quickstart",
            "interrupted; finished parts are kept, the same command goes on from there\n",
        ),
    ],
)
def test_an_interrupt_says_how_to_go_on(monkeypatch, words, target, expected):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupt)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130
    assert result.stderr.endswith("\n" + expected)


def test_prompts_makes_the_folder_of_its_file(tmp_path):
    result = CliRunner().invoke(main, ["prompts", "mnist", "--out", str(tmp_path / "new/p.txt")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new/p.txt").read_text().count("\n") > 9


def test_quickstart_refuses_a_folder_that_cannot_be_and_a_negative_seed(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["quickstart", "--out", str(tmp_path / "file/q")])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "file/q" in result.stderr and "Not a directory" in result.stderr
    result = CliRunner().invoke(main, ["quickstart", "--out", str(tmp_path / "q"), "--seed", "-1"])
    assert result.exit_code == 2 and "--seed" in result.stderr

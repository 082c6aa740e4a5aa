"""Several processes extract into one folder: they share the shards, and the bytes are those of one
process alone.
"""

import os
import signal
from pathlib import Path

import pytest

from dimefm.cache.plan import write_lock
from tests.extract.engines.conftest import (
    command,
    digests,
    ended,
    run,
    start,
    torchrun,
    wait_for_shards,
)


def test_two_processes_with_one_folder_share_the_work(raw, undisturbed, tmp_path):
    both = [start(command(raw, tmp_path)) for _ in range(2)]
    for code, output, errors in map(ended, both):
        assert code == 0, errors
        assert (
            "2,400 rows in = 2,327 rows out + 73 quarantined" in output
            or "finished already" in output
        )
    assert digests(tmp_path) == undisturbed


@pytest.mark.slow
def test_when_one_of_two_processes_is_killed_the_other_does_its_work(raw, undisturbed, tmp_path):
    first = start(command(raw, tmp_path))
    wait_for_shards(tmp_path, 5, first)
    second = start(command(raw, tmp_path, "--shuffle-shards", 3))
    wait_for_shards(tmp_path, 20, first)
    os.kill(first.pid, signal.SIGKILL)
    assert ended(first)[0] == -signal.SIGKILL
    code, _, errors = ended(second)
    assert code == 0, errors
    assert digests(tmp_path) == undisturbed


def test_ranks_of_torchrun_make_the_same_cache(raw, undisturbed, tmp_path):
    output = run(command(raw, tmp_path, launcher=torchrun(2)))
    assert {line[:7] for line in output.splitlines() if line.startswith("rank")} == {
        "rank 0:",
        "rank 1:",
    }
    assert digests(tmp_path) == undisturbed


@pytest.mark.slow
def test_ranks_share_the_shards_of_several_teachers(raw, undisturbed, tmp_path):
    output = run(command(raw, tmp_path, "--teacher", "RN-mini-32/random:1", launcher=torchrun(2)))
    assert sum(line.startswith("rank") for line in output.splitlines() if "rows in =" in line) == 4
    assert digests(tmp_path / "ResNet-mini-64_random_0") == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "RN-mini-32_random_1",
        "ResNet-mini-64_random_0",
    ]


@pytest.mark.slow
def test_when_a_rank_is_killed_the_same_command_goes_on(raw, undisturbed, tmp_path):
    whole = start(command(raw, tmp_path, launcher=torchrun(2)))
    wait_for_shards(tmp_path, 20, whole)
    ranks = Path(f"/proc/{whole.pid}/task/{whole.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    assert ended(whole)[0] != 0
    assert not (tmp_path / "texts/manifest.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "texts").glob("*.h5")}
    run(command(raw, tmp_path, launcher=torchrun(2)))
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "texts").glob("*.h5")}
    assert sum(before[name] == after[name] for name in before) >= len(before) - 2
    assert digests(tmp_path) == undisturbed


@pytest.mark.slow
def test_parts_make_the_same_cache_and_the_last_one_seals_it(raw, undisturbed, tmp_path):
    for part in (2, 0):
        output = run(command(raw, tmp_path, "--shard-range", f"{part}/3"))
        assert (
            "shards of other parts are not there yet; the cache is finished with the last" in output
        )
        assert not (tmp_path / "texts/manifest.json").exists()
    assert "2,400 rows in" in run(command(raw, tmp_path, "--shard-range", "1/3"))
    assert digests(tmp_path) == undisturbed


@pytest.mark.slow
def test_processes_that_begin_together_have_one_int8_code(raw, tmp_path):
    both = [start(command(raw, tmp_path / "both", "--dtype", "int8")) for _ in range(2)]
    for code, _, errors in map(ended, both):
        assert code == 0, errors
    run(command(raw, tmp_path / "one", "--dtype", "int8"))
    assert digests(tmp_path / "both") == digests(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--append", "--retry-bad"])
def test_what_changes_a_finished_cache_works_alone(raw, tmp_path, flag):
    run(command(raw, tmp_path, "--limit", 24))
    before = digests(tmp_path)
    with write_lock(tmp_path / "texts", shared=False):
        code, _, errors = ended(start(command(raw, tmp_path, "--limit", 24, flag)))
    assert code == 1
    assert errors.splitlines()[-1].endswith(
        "another process is writing there. Fix: wait until it has ended, or stop it"
    )
    assert digests(tmp_path) == before

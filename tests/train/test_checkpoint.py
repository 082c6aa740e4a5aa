"""Checkpoints on a disk that fills up, and the folder of the best weights."""

import shutil
import subprocess

import pytest
import torch
from torch import nn

from dimefm.train import checkpoint
from dimefm.train.early_stopping import EarlyStopping


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a tmpfs of so many kilobytes, or changes its size; skip where
    that is not permitted.
    """
    folder = tmp_path / "disk"

    def of(kilobytes):
        options = f"{'remount,' if folder.exists() else ''}size={kilobytes}k"
        where = [] if folder.exists() else ["-t", "tmpfs", "tmpfs"]
        folder.mkdir(exist_ok=True)
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command")
        done = subprocess.run(
            ["mount", "-o", options, *where, str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"mounting is not permitted ({done.stderr.strip()})")
        return folder

    yield of
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def trained(seed):
    """Return a model of 66 kB and its optimizer after a step."""
    torch.manual_seed(seed)
    model = nn.Linear(128, 129, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 128)).sum().backward()
    optimizer.step()
    return model, optimizer


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_disk_leaves_the_checkpoint_before_and_no_crumbs(disk):
    out = disk(320) / "run"
    model, optimizer = trained(0)
    before = contents(checkpoint.save(out, 1, model, optimizer, 2, {"image_cache": ["x"]}))
    later, its_optimizer = trained(1)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(out, 2, later, its_optimizer, 2, {})
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["00000001"]
    (folder,) = checkpoint.checkpoints(out)
    assert contents(folder) == before
    assert checkpoint.load(folder, later, its_optimizer) == (1, {"image_cache": ["x"]})
    assert torch.equal(later.weight, model.weight)
    disk(4000)
    checkpoint.save(out, 2, later, its_optimizer, 2, {})
    assert [int(path.name) for path in checkpoint.checkpoints(out)] == [1, 2]


def test_a_full_disk_leaves_the_best_weights_before(disk):
    out = disk(64) / "run"
    checkpoint.save_best(out, lambda folder: (folder / "w").write_bytes(b"1" * 30_000))
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_best(out, lambda folder: (folder / "w").write_bytes(b"2" * 50_000))
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["best"]
    assert contents(checkpoint.best(out)) == {"w": b"1" * 30_000}


def test_the_best_weights_are_replaced_whole_and_are_no_checkpoint(tmp_path):
    assert checkpoint.best(tmp_path) is None
    for text in ("one", "two"):
        found = checkpoint.save_best(
            tmp_path, lambda folder, text=text: (folder / text).write_text(text)
        )
    assert contents(found) == {"two": b"two"}
    (found / checkpoint.STATE).write_text("{}")
    assert checkpoint.checkpoints(tmp_path) == []
    model, optimizer = trained(0)
    for step in range(1, 5):
        checkpoint.save(tmp_path, step, model, optimizer, 1, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "00000004",
        "best",
    ]


@pytest.mark.parametrize("present", [("best.old",), ("best.old", "best")])
def test_a_process_that_died_between_two_renames_leaves_the_best_weights(tmp_path, present):
    for name in present:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "w").write_text(name)
    assert contents(checkpoint.best(tmp_path)) == {"w": present[-1].encode()}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["best"]


def test_the_watch_goes_on_where_the_checkpoint_was_taken(tmp_path):
    model, optimizer = trained(0)
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.7])

    def score(_):
        return {"a": next(scores), "b": 0.0}

    watch = EarlyStopping(score, patience=3)
    for step in (10, 20, 30):
        watch.measure(step, model)
    folder = checkpoint.save(tmp_path, 30, model, optimizer, 1, {}, watch=watch)
    again = EarlyStopping(score, patience=3)
    checkpoint.load(folder, model, optimizer, watch=again)
    assert again.record() == {"step": 20, "mean": 0.35, "scores": {"a": 0.7, "b": 0.0}}
    assert (again.without, again.exhausted) == (1, False)
    assert again.measure(40, model) == {"eval/a": 0.7, "eval/b": 0.0, "eval/mean": 0.35}
    assert not again.improved(40) and not again.exhausted
    again.measure(50, model)
    assert again.exhausted


def test_a_watch_without_patience_never_ends_a_run():
    watch = EarlyStopping(lambda _: {"a": 0.0})
    for step in range(9):
        watch.measure(step, None)
    assert not watch.exhausted and watch.best_step == 0

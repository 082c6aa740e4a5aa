"""Any number of processes learn the same: the loss, the gradient and the batches are those of one
process alone.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dimefm.errors import DataError, DimefmError, RecipeError
from dimefm.recipe import read
from dimefm.train import checkpoint
from dimefm.train.distributed import DistributedContext, GlobalBatch, init_distributed
from dimefm.train.trainer import Trainer, train
from tests.train.conftest import TINY

SCRIPT = Path(__file__).with_name("process.py")
MIX = {
    name: {"weight": 1.0}
    for name in ("clip.contrastive", "clip_kd.crd", "clip_kd.icl", "clip_kd.fd", "clip_kd.gd")
}
DECLIP = {
    "clip.contrastive": {"weight": 0.4},
    "declip.simsiam": {"weight": 0.2, "width": 16},
    "declip.simclr": {"weight": 0.2, "width": 16, "dim": 8},
    "declip.mlm": {"weight": 0.2},
    "declip.nns": {"weight": 0.2, "size": 64},
    "declip.filip": {"weight": 0.2, "width": 8, "tokens": 2},
}
DECLIP_SHOWN = {
    "views_per_step": 2,
    "captions_per_step": 2,
    "text_augment": "eda",
    "mask_words": 0.5,
}
FURTHER = {
    name: {"weight": 1.0}
    for name in ("clip_kd.afd", "clip_kd.cross_kd", "tinyclip.affinity", "open_clip.distill")
}
FURTHER |= {
    "declip.nns_cached": {"weight": 1.0, "size": 64},
    "declip.filip_pooled": {"weight": 1.0},
}
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def quiet(line):
    """Take a line of progress and say nothing."""


def start(size, *words):
    """Start ``size`` processes as torchrun does, without the seconds that torchrun itself takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "LOCAL_WORLD_SIZE": str(size),
    }
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **QUIET, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def recipes(world):
    """Return recipes by name; those called "run" are trained, of the others the first step
    counts.
    """
    pairs = world.clip_recipe(images=[str(world.pairs([f"number {n} of many" for n in range(12)]))])
    cases = {
        "image": world.recipe(),
        "teachers": world.recipe(**world.second_teacher()),
        "pairs": pairs,
        "text": world.text_recipe(texts_per_step=None),
        "captions": world.text_recipe(per_row=2),
        "declip": pairs.replace(losses=DECLIP, **DECLIP_SHOWN),
        "distilled": world.distilled_recipe({**MIX, **FURTHER}),
    }
    (world.root / "siglip.json").write_text(
        json.dumps({**TINY, "custom_text": True, "init_logit_bias": -10.0})
    )
    cases["pairs_of_siglip"] = pairs.replace(student=str(world.root / "siglip.json"))
    cut = {"prune": 0.4, "prune_steps": 3, "prune_warmup": 1, "prune_lr": 1.5, "steps": 6}
    whole = {name: case.replace(batch_size=8) for name, case in cases.items()}
    micro_batches = {
        f"{name}_portions": case.replace(batch_size=4, accum_freq=2) for name, case in cases.items()
    }
    running = {
        "run": world.recipe(batch_size=7, save_every=3),
        "run_half": world.recipe(batch_size=7, steps=3, save_every=3),
        "run_cut": world.recipe(batch_size=4, accum_freq=2, **cut, **world.second_teacher()),
    }
    return {**whole, **micro_batches, **running}


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory, make_world):
    """Return (world of files, folder, number of processes) after the processes have done all
    recipes.
    """
    world = make_world(tmp_path_factory.mktemp("world"))
    world.write_images(broken={3, 4, 5, 6, 11})
    folder = world.root / "recipes"
    folder.mkdir()
    for name, recipe in recipes(world).items():
        (folder / f"{name}.toml").write_text(recipe.to_toml())
    for number in (2, 3, 7, 8):  # of the pairs
        (world.root / f"{number}.png").write_bytes(b"no image")
    processes = start(request.param, str(SCRIPT), str(folder))
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * request.param, said
    return world, folder, request.param


@pytest.fixture(scope="module")
def make_world():
    from tests.train.conftest import DistributedContext as Files

    return Files


CASES = ["image", "teachers", "pairs", "pairs_of_siglip", "text", "captions", "declip", "distilled"]


@pytest.mark.parametrize("name", [*CASES, *(f"{name}_portions" for name in CASES)])
def test_loss_and_gradient_are_those_of_one_process(together, name):
    """Rows that cannot be read, more of them in one process than in another, do not change that."""
    _, folder, size = together
    recipe = read(folder / f"{name.removesuffix('_portions')}.toml")
    alone = Trainer(recipe, folder / f"{name}.{size}.alone", False, quiet)
    alone.student.double()
    losses, rows = alone.backward(0, [alone.task.batches(0)])
    found = torch.load(folder / f"{name}.pt", weights_only=True)
    assert found["rows"] == rows
    loose = (
        100 if "declip" in name else 1
    )  # batch normalisation of views of one colour, which hardly vary
    torch.testing.assert_close(found["losses"], losses, rtol=loose * 1e-11, atol=0)
    loss_modules = {
        key: parameter
        for key, parameter in alone.student.named_parameters()
        if parameter.requires_grad
    }
    gradients = {key: parameter.grad for key, parameter in loss_modules.items()}
    torch.testing.assert_close(found["gradients"], gradients, rtol=loose * 1e-8, atol=loose * 1e-13)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-4
    digests = {(folder / f"{name}.{rank}.sha256").read_text() for rank in range(size)}
    assert len(digests) == 1


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_of_several_processes_is_the_run_of_one(together):
    world, folder, size = together
    ours, alone = (
        folder / "run.run",
        train(read(folder / "run.toml"), folder / f"alone.{size}", echo=quiet),
    )
    for name in ("total", "grad_norm", "lr", "bad_rows"):
        np.testing.assert_allclose(
            [line[name] for line in log_of(ours)], [line[name] for line in log_of(alone)], rtol=1e-4
        )
    assert (ours / "bad_rows.jsonl").read_text() == (alone / "bad_rows.jsonl").read_text()
    assert log_of(ours)[-1]["bad_rows"] > 0
    weights, expected = (load_file(run / "image_tower.safetensors") for run in (ours, alone))
    undetermined = (  # keys' biases have no gradient but rounding errors
        "visual.transformer.resblocks.0.attn.in_proj_bias"
    )
    for found in (weights, expected):
        del found[undetermined]
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)


def test_a_run_goes_on_with_another_number_of_processes(together):
    """The half run of several processes, finished by one, is the run of several."""
    world, folder, size = together
    whole, half = folder / "run.run", world.root / f"half.{size}"
    newest = checkpoint.checkpoints(whole)[0]
    assert newest.name == "00000003"
    (half / "checkpoints").mkdir(parents=True)
    os.rename(newest, half / "checkpoints" / newest.name)
    for name in ("recipe.toml", "log.jsonl", "bad_rows.jsonl"):
        (half / name).write_text((whole / name).read_text())
    train(read(folder / "run.toml"), half, resume=True, echo=quiet)
    np.testing.assert_allclose(
        [line["total"] for line in log_of(half)],
        [line["total"] for line in log_of(whole)],
        rtol=1e-4,
    )
    assert (half / "bad_rows.jsonl").read_text() == (whole / "bad_rows.jsonl").read_text()


def test_several_processes_draw_the_same_gates_and_cut_the_same(together):
    _, folder, size = together
    ours, recipe = folder / "run_cut.run", read(folder / "run_cut.toml")
    alone = train(recipe, folder / f"cut.{size}", echo=quiet)
    assert ["prune_share" in line for line in log_of(ours)] == [True] * 3 + [False] * 3
    for name in ("total", "prune_share", "prune_penalty"):
        values = [[line[name] for line in log_of(run)[:3]] for run in (ours, alone)]
        np.testing.assert_allclose(*values, rtol=1e-3)
    removed = []
    for run in (ours, alone):
        record = json.loads((run / "run.json").read_text())
        removed.append(record["pruned"]["removed"]["all"])
        assert record["model_cfg"]["vision_cfg"]["pruned"]["width"] <= 16
    assert 0.02 < removed[0] and abs(removed[0] - removed[1]) < 0.05


def test_more_processes_than_rows_of_a_batch_are_refused(world):
    with pytest.raises(RecipeError, match="--batch-size 5: 6 processes share a batch"):
        Trainer(world.recipe(), world.root / "run", False, quiet, Alone(0, 6))


def test_fewer_rows_than_a_batch_are_refused(world):
    with pytest.raises(
        DataError,
        match=(
            r"17 rows, fewer than a batch of 18 \(image_0.tsv, image_1.tsv\). Fix: lower"
            r" --batch-size"
        ),
    ):
        train(world.recipe(batch_size=18), world.root / "run", echo=quiet)


class Alone(DistributedContext):
    """A process of several that never meets the others."""

    def gather(self, value):
        return value[None]


class Elsewhere(Alone):
    """A process whose partner finds one more of everything."""

    def gather(self, value):
        return torch.stack([value, value + 1])


def test_processes_that_find_other_rows_or_checkpoints_are_refused(world):
    with pytest.raises(
        DimefmError,
        match=r"process 0 found 17 rows and the run after step 0, process 1 18 rows and step 1",
    ):
        Trainer(world.recipe(), world.root / "run", False, quiet, Elsewhere(0, 2))


def test_processes_that_would_share_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    many = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for device, here, said in (
        ("cuda", "3", "3 processes on a machine with 2 GPUs"),
        ("cuda:0", "2", "--device cuda:0: 2 "),
    ):
        with (
            pytest.raises(RecipeError, match=said),
            init_distributed(torch.device(device), {**many, "LOCAL_WORLD_SIZE": here}),
        ):
            pass


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("batch", [8, 9, 15, 16, 17])
def test_every_place_belongs_to_one_process(size, batch):
    parts = [DistributedContext(rank, size).places(batch) for rank in range(size)]
    assert [place for part in parts for place in part] == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rows_meet_in_the_order_of_their_places():
    world = DistributedContext(0, 1)
    meeting = GlobalBatch(world, np.array([0, 2, 5, 7]), 8)
    assert meeting.places.tolist() == [0, 2, 5, 7]
    assert meeting.mine.tolist() == [0, 1, 2, 3]
    rows = torch.arange(8.0).reshape(4, 2)
    assert torch.equal(meeting.rows(rows), rows)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_ends_the_run_and_it_can_be_resumed(make_world, tmp_path, number):
    """Killed, the others say in one line what happened; asked to stop, all stop after the same step
    with a checkpoint.
    """
    world = make_world(tmp_path)
    recipe = world.recipe(steps=4000, save_every=5, batch_size=8)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    words = (
        "-m",
        "dimefm",
        "train",
        "--recipe",
        str(tmp_path / "recipe.toml"),
        "--out",
        str(tmp_path / "run"),
    )
    processes = start(2, *words)
    deadline = time.monotonic() + 600
    while not checkpoint.checkpoints(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.2)
    processes[1].send_signal(number)
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert processes[0].returncode not in (0, None)
    kept = checkpoint.checkpoints(tmp_path / "run")
    assert kept
    if number == signal.SIGKILL:
        last = said[0].strip().splitlines()[-1]
        assert "process 0 of 2: another process of this run has ended" in last, said[0]
        assert "Traceback" not in said[0]
    assert Trainer(recipe, tmp_path / "run", True, quiet).done == int(kept[-1].name)

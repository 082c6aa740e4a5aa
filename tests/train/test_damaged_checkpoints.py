"""A checkpoint folder that was changed: it is refused by name, and the one before serves.

Each change is made to a sealed checkpoint and to one of an earlier version, which has no seal.
"""

import dataclasses
import json
import os
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dimefm.cache import CacheWriter, FeatureCache
from dimefm.cache.convert import convert
from dimefm.errors import CacheError, ModelError
from dimefm.train import checkpoint, resuming
from dimefm.train.trainer import Trainer, train

OPTIMIZER = "optimizer.safetensors"


def quiet(line):
    """Take a line of progress and say nothing."""


@pytest.fixture(scope="module")
def done(make_world, tmp_path_factory):
    """Return (a recipe, its finished run) with checkpoints after steps 2, 4 and 6."""
    world = make_world(tmp_path_factory.mktemp("world"))
    recipe = world.recipe(save_every=2, keep=9, ema=0.9)
    return recipe, train(recipe, world.root / "whole", echo=quiet)


@pytest.fixture(params=["sealed", "of an earlier version"])
def half(done, tmp_path, request):
    """Return a copy of the run that is not finished."""
    shutil.copytree(done[1], tmp_path / "half")
    (tmp_path / "half/run.json").unlink()
    if request.param != "sealed":
        for folder in checkpoint.checkpoints(tmp_path / "half"):
            make_former(folder)
    return tmp_path / "half"


def make_former(folder):
    """Make a checkpoint one that an earlier version wrote: without seal, version and marks."""
    (folder / "SHA256SUMS").unlink()
    state = json.loads((folder / "state.json").read_text())
    former = {"step": state["step"], "caches": state["caches"]}
    (folder / "state.json").write_text(json.dumps(former))
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), path)


def with_state(**changes):
    def spoil(folder):
        path = folder / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def as_text(text):
    def spoil(folder):
        (folder / "state.json").write_text(text)

    return spoil


def with_tensors(change, name=OPTIMIZER):
    """Let ``change`` change a dictionary of the tensors of a file, whose marks stay."""

    def spoil(folder):
        path = folder / name
        with safe_open(path, "pt") as file:
            marks = file.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, marks)

    return spoil


def first(tensors, ending):
    """Return the first name with an ending of a tensor that has more than one dimension."""
    return next(n for n, t in tensors.items() if n.endswith(ending) and t.ndim != 1)


def lacks_a_moment(tensors):
    del tensors[first(tensors, "/exp_avg_sq")]


def broadcasts_a_moment(tensors):
    name = first(tensors, "/exp_avg")
    tensors[name] = tensors[name].flatten()[:1].clone()


def has_a_wide_moment(tensors):
    name = first(tensors, "/exp_avg")
    tensors[name] = tensors[name].double()


def has_a_stranger(tensors):
    tensors["stranger/exp_avg"] = torch.zeros(3)


def lacks_a_weight(tensors):
    del tensors[next(iter(tensors))]


def broadcasts_a_weight(tensors):
    name = first(tensors, "weight")
    tensors[name] = tensors[name][:1].clone()


def is_not_finite(ending, value):
    def change(tensors):
        name = first(tensors, ending)
        tensors[name].view(-1)[-1] = value

    return change


def has_negative_squares(tensors):
    name = first(tensors, "/exp_avg_sq")
    tensors[name].view(-1)[0] = -1e-3


def node(name, device=None):
    """Put a pipe, or a link to a device, in the place of a file."""

    def spoil(folder):
        (folder / name).unlink()
        if device is None:
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to(device)

    return spoil


def from_another_step(name):
    def spoil(folder):
        shutil.copy(folder.with_name("00000002") / name, folder / name)

    return spoil


def cut(name, share):
    def spoil(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return spoil


def without(name):
    def spoil(folder):
        (folder / name).unlink()

    return spoil


KINDS = {
    "another step": with_state(step=5),
    "a step of the past": with_state(step=2),
    "a negative step": with_state(step=-6),
    "a huge step": with_state(step=10**30),
    "a step of 5,000 digits": as_text('{"step": ' + "9" * 5000 + ', "caches": {}}'),
    "a step that is text": with_state(step="6"),
    "a step that is true": with_state(step=True),
    "no step": as_text('{"caches": {}}'),
    "no caches": with_state(caches=None),
    "a list": as_text("[]"),
    "nested state": as_text("[" * 100_000),
    "no JSON": as_text("{"),
    "an empty state": as_text(""),
    "an optimizer of another step": from_another_step(OPTIMIZER),
    "a lacking moment": with_tensors(lacks_a_moment),
    "a moment that broadcasts": with_tensors(broadcasts_a_moment),
    "a moment of another type": with_tensors(has_a_wide_moment),
    "a moment of a stranger": with_tensors(has_a_stranger),
    "a lacking weight": with_tensors(lacks_a_weight, "model.safetensors"),
    "a weight that broadcasts": with_tensors(broadcasts_a_weight, "model.safetensors"),
    "a lacking average": with_tensors(lacks_a_weight, "ema.safetensors"),
    "no average": without("ema.safetensors"),
    "no model": without("model.safetensors"),
    "no state": without("state.json"),
    "half a model": cut("model.safetensors", 0.5),
    "an empty optimizer": cut(OPTIMIZER, 0),
    "a header alone": cut(OPTIMIZER, 0.02),
    "a weight that is NaN": with_tensors(
        is_not_finite("weight", float("nan")), "model.safetensors"
    ),
    "an average that is infinite": with_tensors(
        is_not_finite("weight", float("inf")), "ema.safetensors"
    ),
    "a moment that is NaN": with_tensors(is_not_finite("/exp_avg", float("nan"))),
    "a moment that is infinite": with_tensors(is_not_finite("/exp_avg_sq", float("inf"))),
    "squares below zero": with_tensors(has_negative_squares),
    "a pipe for a state": node("state.json"),
    "a pipe for a model": node("model.safetensors"),
    "an endless optimizer": node(OPTIMIZER, "/dev/zero"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_checkpoint_is_refused_by_name_and_the_one_before_serves(done, half, kind):
    recipe, _ = done
    newest = half / "checkpoints/00000006"
    KINDS[kind](newest)
    said = []
    assert Trainer(recipe, half, True, said.append).done == 4
    assert len(said) == 2
    assert said[0].startswith(f"note: {newest}: the checkpoint is damaged (")
    assert len(said[0]) - len(str(newest)) <= 400
    assert said[0].isprintable()
    assert said[1] == f"resumed after step 4 from {half / 'checkpoints/00000004'}"


@pytest.mark.parametrize(
    "name", ["state.json", "model.safetensors", OPTIMIZER, "ema.safetensors", "SHA256SUMS"]
)
def test_a_flipped_bit_anywhere_is_noticed(done, tmp_path, name):
    recipe, whole = done
    size = (whole / "checkpoints/00000006" / name).stat().st_size
    for place in (0, size // 3, size // 2, size - 2):
        copy = tmp_path / f"{place}"
        shutil.copytree(whole / "checkpoints", copy / "checkpoints")
        shutil.copy(whole / "recipe.toml", copy)
        path = copy / "checkpoints/00000006" / name
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        said = []
        assert Trainer(recipe, copy, True, said.append).done == 4
        assert "00000006: the checkpoint is damaged (" in said[0]


@pytest.mark.parametrize("name", [OPTIMIZER, "model.safetensors", "ema.safetensors", "state.json"])
def test_files_of_another_run_or_step_are_no_part_of_a_sealed_checkpoint(done, tmp_path, name):
    recipe, whole = done
    other = train(recipe.replace(seed=1), tmp_path / "other", echo=quiet)
    for source in (other / "checkpoints/00000006", whole / "checkpoints/00000004"):
        shutil.rmtree(tmp_path / "half", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "half")
        shutil.copy(source / name, tmp_path / "half/checkpoints/00000006" / name)
        (tmp_path / "half/run.json").unlink()
        said = []
        if name == "state.json" and source.parts[-3] == "other":
            continue  # its state is the same to the byte
        assert Trainer(recipe, tmp_path / "half", True, said.append).done == 4
        assert said[0].startswith("note: ")


def test_a_seal_that_was_removed_is_missed(done, tmp_path):
    recipe, whole = done
    shutil.copytree(whole, tmp_path / "half")
    (tmp_path / "half/run.json").unlink()
    (tmp_path / "half/checkpoints/00000006/SHA256SUMS").unlink()
    said = []
    assert Trainer(recipe, tmp_path / "half", True, said.append).done == 4
    assert "its seal, SHA256SUMS, is missing" in said[0]


def test_a_folder_of_a_later_step_than_the_run_has_is_refused(done, half):
    """Renamed with its state, without a seal nothing but the recipe tells that it is wrong."""
    recipe, _ = done
    newest = half / "checkpoints/00000006"
    with_state(step=600)(newest)
    newest.rename(half / "checkpoints/00000600")
    said = []
    assert Trainer(recipe, half, True, said.append).done == 4
    assert "00000600" in said[0]


def test_without_a_whole_checkpoint_the_run_is_refused_with_the_newest_and_stays(
    done, half, digests
):
    recipe, _ = done
    for folder in checkpoint.checkpoints(half):
        with_state(step=9)(folder)
    before = digests(half)
    with pytest.raises(ModelError, match="00000006: .* no whole one before it. Fix: ") as error:
        train(recipe, half, resume=True, echo=quiet)
    assert "\n" not in str(error.value)
    assert digests(half) == before


def test_the_damaged_one_is_set_aside_and_does_not_count_as_kept(done, half):
    recipe, whole = done
    KINDS["half a model"](half / "checkpoints/00000006")
    recipe = recipe.replace(keep=1, save_every=5)
    train(recipe, half, resume=True, echo=quiet)
    names = sorted(path.name for path in (half / "checkpoints").iterdir())
    assert names == ["00000006", "00000006.damaged"]
    name = "image_tower.safetensors"
    assert (half / name).read_bytes() == (whole / name).read_bytes()


def test_an_error_of_the_machine_is_not_taken_for_damage(done, half, monkeypatch):
    recipe, _ = done

    def fails(folder, name):
        raise OSError(5, "Input/output error", str(folder / name))

    monkeypatch.setattr("dimefm.train.saved._read_file", fails)
    with pytest.raises(OSError, match="Input/output error"):
        train(recipe, half, resume=True, echo=quiet)
    assert [folder.name for folder in checkpoint.checkpoints(half)][-1] == "00000006"


def test_the_seal_is_one_that_sha256sum_checks(done):
    seal = (done[1] / "checkpoints/00000006/SHA256SUMS").read_text()
    names = ["ema.safetensors", "model.safetensors", OPTIMIZER, "state.json"]
    assert re.findall(r"^[0-9a-f]{64}  (.+)$", seal, re.MULTILINE) == names


@pytest.mark.parametrize("folder", ["images", "texts"])
def test_a_cache_that_was_replaced_by_one_of_another_dtype_is_refused(world, folder):
    recipe = world.recipe(save_every=3, keep=9)
    out = train(recipe, world.root / "run", echo=quiet)
    (out / "run.json").unlink()
    shutil.rmtree(out / "checkpoints/00000006")
    for dtype, stored in (("int8", "int8"), ("float16", "float16")):
        copy = world.root / f"{dtype}-{folder}"
        shutil.copytree(world.root / folder, world.root / "kept")
        convert(FeatureCache(world.root / folder), copy, "hdf5", dtype)
        shutil.rmtree(world.root / folder)
        copy.rename(world.root / folder)
        with pytest.raises(CacheError, match=f"float32 [0-9a-f]{{12}}.*now .*{stored}") as error:
            train(recipe, out, resume=True, echo=quiet)
        assert len(str(error.value)) <= 500 + len(str(out))
        shutil.rmtree(world.root / folder)
        (world.root / "kept").rename(world.root / folder)
    assert train(recipe, out, resume=True, echo=quiet) == out


def test_another_number_of_threads_is_recorded_and_said(done, half, monkeypatch):
    recipe, whole = done
    record = json.loads((whole / "run.json").read_text())
    assert record["machine"]["threads"] == torch.get_num_threads()
    other = {**record["machine"], "threads": 9999, "torch": "1.0"}
    monkeypatch.setattr(resuming, "machine_of", lambda context: other)
    said = []
    assert Trainer(recipe, half, True, said.append).done == 6
    is_sealed = (half / "checkpoints/00000006/SHA256SUMS").exists()
    assert len(said) == 1 + is_sealed
    if is_sealed:
        threads = torch.get_num_threads()
        assert said[1].startswith(f"note: the run had threads {threads}, now 9999; torch ")


# Sources that were exchanged between the first start and now


@pytest.fixture
def folder_run(world):
    """Return (world, recipe, images): a recipe of a folder of PPMs, which are of one size."""
    images = world.root / "ppms"
    images.mkdir()
    for number in range(12):
        Image.new("RGB", (16, 12), (number, 0, 0)).save(images / f"{number:02d}.ppm")
    keys = [f"{number:02d}.ppm" for number in range(12)]
    header = FeatureCache(world.root / "images").manifest
    header = dataclasses.replace(header, shards=())
    writer = CacheWriter(world.root / "ppm_cache", header, [("ppms", 12)])
    vectors = np.eye(12, 8, dtype=np.float32) + 0.1
    writer.write("ppms", keys, vectors)
    writer.seal()
    recipe = world.recipe(
        images=[str(images)], image_cache=str(world.root / "ppm_cache"), save_every=3, keep=9
    )
    return world, recipe, images


def exchange(images):
    contents = [(images / f"{number:02d}.ppm").read_bytes() for number in (3, 4)]
    for number, content in zip((4, 3), contents, strict=True):
        (images / f"{number:02d}.ppm").write_bytes(content)


def test_exchanged_images_of_one_size_are_noticed_when_both_starts_verify(folder_run):
    world, recipe, images = folder_run
    for first, again in ((True, True), (True, False), (False, True)):
        out = train(recipe, world.root / f"run-{first}-{again}", echo=quiet, verify=first)
        (out / "run.json").unlink()
        shutil.rmtree(out / "checkpoints/00000006")
        exchange(images)
        said = []
        if first and again:
            with pytest.raises(CacheError, match="images or texts of the run have another content"):
                train(recipe, out, resume=True, echo=said.append, verify=again)
            exchange(images)
        train(recipe, out, resume=True, echo=said.append, verify=again)
        recorded = json.loads((out / "checkpoints/00000006/state.json").read_text()).get("raw")
        assert recorded
        assert ("note: the first start has not recorded" in " ".join(said)) == (not first)


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_a_cache_that_was_changed_is_refused_when_it_is_verified(world, monkeypatch, limit):
    monkeypatch.setattr("dimefm.cache.reader.MMAP_LIMIT", limit)
    path = world.root / "images/image_1.feat.h5"
    with h5py.File(path, "r+") as file:
        rows = file["row"][:]
        rows[[0, 1]] = rows[[1, 0]]
        file["row"][:] = rows
    with pytest.raises(CacheError, match=r"image_1\.feat\.h5: SHA-256"):
        train(world.recipe(), world.root / "run", echo=quiet, verify=True)
    assert not (world.root / "run").exists()

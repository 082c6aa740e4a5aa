"""A run that was interrupted ends with the bytes of one that was not."""

import dataclasses
import json
import shutil
import signal

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dimefm.errors import CacheError, DataError, DimefmError, ModelError, RecipeError
from dimefm.train import checkpoint
from dimefm.train.trainer import Trainer, train

TIMINGS = ("rows_per_s", "data_share", "data_s", "compute_s")
WEIGHTS = ("image_tower.safetensors", "open_clip_model.safetensors", "text_tower.safetensors")


def quiet(line):
    """Take a line of progress and say nothing."""


def lines(out):
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in found]


def outcome(out):
    """Return everything of a finished run that must not depend on when it was interrupted."""
    weights = next(out / name for name in WEIGHTS if (out / name).exists())
    newest = checkpoint.checkpoints(out)[-1]
    record = json.loads((out / "run.json").read_text())
    bad = (out / "bad_rows.jsonl").read_text() if (out / "bad_rows.jsonl").exists() else ""
    optimizer = (newest / "optimizer.safetensors").read_bytes()
    return (
        weights.read_bytes(),
        (newest / "model.safetensors").read_bytes(),
        optimizer,
        lines(out),
        record,
        bad,
    )


def runs_of(world, captions=tuple(f"number {n} of many" for n in range(9))):
    """Return the recipes that resuming is tested on."""
    return {
        "image tower": world.recipe(student=str(world.noisy), save_every=3),
        "clip from pairs": world.clip_recipe(images=[str(world.pairs(captions))], save_every=3),
        "two teachers": world.recipe(
            student=str(world.noisy), save_every=3, **world.second_teacher()
        ),
        "accumulated": world.recipe(
            student=str(world.noisy), image_mask=0.5, save_every=3, accum_freq=2, log_every=2
        ),
        "text tower": world.text_recipe(save_every=3),
        "text tower from pairs": world.text_recipe(per_row=2, save_every=3),
    }


@pytest.fixture(
    scope="module",
    params=[
        "image tower",
        "two teachers",
        "clip from pairs",
        "accumulated",
        "text tower",
        "text tower from pairs",
    ],
)
def done(make_world, tmp_path_factory, request):
    """Return (a recipe, the folder of its finished run that nothing disturbed)."""
    world = make_world(tmp_path_factory.mktemp("world"))
    recipe = runs_of(world)[request.param]
    return recipe, train(recipe, world.root / "whole", echo=quiet)


def back_to(run, copy, step):
    """Copy a finished run's folder as it stood right after checkpoint ``step``."""
    shutil.copytree(run, copy)
    for name in ("run.json", "open_clip_config.json", *WEIGHTS):
        (copy / name).unlink(missing_ok=True)
    for folder in checkpoint.checkpoints(copy):
        if int(folder.name) > step:
            shutil.rmtree(folder)
    assert [int(folder.name) for folder in checkpoint.checkpoints(copy)] == [step]


def test_six_steps_equal_three_and_three(done, tmp_path):
    recipe, whole = done
    back_to(whole, tmp_path / "halves", 3)
    said = []
    halves = train(recipe, tmp_path / "halves", resume=True, echo=said.append)
    assert said[0] == f"resumed after step 3 from {halves / 'checkpoints' / '00000003'}"
    assert said[1].startswith("6 steps (3 of them in this call), ")
    assert outcome(halves) == outcome(whole)


def test_twice_the_same_run_is_the_same_run(done, tmp_path):
    recipe, whole = done
    assert outcome(train(recipe, tmp_path / "again", echo=quiet)) == outcome(whole)


def test_another_seed_is_another_run(done, tmp_path):
    recipe, whole = done
    other = train(recipe.replace(seed=1), tmp_path / "other", echo=quiet)
    assert outcome(other)[0] != outcome(whole)[0]


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_killed_in_the_middle_it_goes_on_as_if_nothing_had_been(
    done, tmp_path, monkeypatch, killed_at
):
    (recipe, whole), step = done, Trainer.step

    def dies(self, number, loading):
        if number == killed_at:
            raise KeyboardInterrupt
        return step(self, number, loading)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "killed", echo=quiet)
    assert not (tmp_path / "killed" / "run.json").exists()
    assert outcome(train(recipe, tmp_path / "killed", resume=True, echo=quiet)) == outcome(whole)


def test_rows_left_out_before_the_interruption_are_listed_and_counted_once(world, monkeypatch):
    world.write_images(broken={1, 8, 14})
    recipe = world.recipe(save_every=2, steps=8)
    whole = train(recipe, world.root / "whole", echo=quiet)
    step = Trainer.step

    def dies(self, number, loading):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number, loading)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, world.root / "killed", echo=quiet)
    found = outcome(train(recipe, world.root / "killed", resume=True, echo=quiet))
    assert found == outcome(whole)
    assert found[3][-1]["bad_rows"] == len(found[5].splitlines()) > 3


def test_resuming_where_nothing_is_starts_anew(world):
    recipe = world.recipe(steps=2)
    fresh = train(recipe, world.root / "fresh", resume=True, echo=quiet)
    assert outcome(fresh) == outcome(train(recipe, world.root / "plain", echo=quiet))


def test_an_unfinished_run_is_not_overwritten_and_another_recipe_does_not_resume_it(world):
    whole = train(world.recipe(save_every=3), world.root / "whole", echo=quiet)
    back_to(whole, world.root / "half", 3)
    with pytest.raises(ModelError, match="unfinished run. Fix: pass --resume"):
        train(world.recipe(save_every=3), world.root / "half", echo=quiet)
    with pytest.raises(RecipeError, match="another recipe .*lr: 0.01 against 0.0008"):
        train(world.recipe(save_every=3, lr=0.01), world.root / "half", resume=True, echo=quiet)
    said = []
    assert train(world.recipe(save_every=3), whole, resume=True, echo=said.append) == whole
    assert said == [f"{whole}: finished already; nothing to do"]
    with pytest.raises(ModelError, match="finished run already"):
        train(world.recipe(save_every=3, lr=0.01), whole, resume=True, echo=quiet)
    assert train(
        world.recipe(save_every=2, workers=1), world.root / "half", resume=True, echo=quiet
    )


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(world):
    recipe = world.recipe(save_every=2)
    whole = train(recipe, world.root / "whole", echo=quiet)
    half = world.root / "half"
    shutil.copytree(whole, half)
    (half / "run.json").unlink()
    newest, optimizer = checkpoint.checkpoints(half)[-1], "optimizer.safetensors"
    (newest / optimizer).write_bytes((newest / optimizer).read_bytes()[:100])
    said = []
    assert outcome(train(recipe, half, resume=True, echo=said.append)) == outcome(whole)
    assert said[0].startswith(f"note: {newest}: the checkpoint is damaged (optimizer.safetensors ")
    assert "\n" not in said[0]
    assert said[1] == f"resumed after step 4 from {half / 'checkpoints' / '00000004'}"
    assert (half / "checkpoints" / "00000006.damaged").is_dir()


def test_a_checkpoint_without_its_last_file_is_not_one(world):
    recipe = world.recipe(save_every=3)
    whole = train(recipe, world.root / "whole", echo=quiet)
    (checkpoint.checkpoints(whole)[-1] / "state.json").unlink()
    assert [folder.name for folder in checkpoint.checkpoints(whole)] == ["00000003"]


def test_only_the_newest_checkpoints_are_kept(world):
    out = train(world.recipe(save_every=1, keep=2), world.root / "run", echo=quiet)
    assert [folder.name for folder in checkpoint.checkpoints(out)] == ["00000005", "00000006"]


def gradients(run, batches):
    """Return the loss of the first step and its gradients, in float64, without touching the run's
    optimizer.
    """
    run.student.double().zero_grad(set_to_none=True)
    losses, rows = run.backward(0, batches)
    assert rows == sum(map(len, batches))
    return losses["total"], {
        name: parameter.grad for name, parameter in run.student.named_parameters()
    }


@pytest.mark.parametrize(
    "what",
    ["image tower", "two teachers", "clip from pairs", "text tower", "text tower from pairs"],
)
def test_a_batch_in_portions_has_the_loss_and_the_gradient_of_the_whole(world, what):
    captions = {"captions": [f"number {n} of many" for n in range(12)]}
    recipe = runs_of(world, **captions)[what]
    recipe = recipe.replace(batch_size=6, texts_per_step=None, accum_freq=1)
    if not recipe.text_student:
        recipe = recipe.replace(student=str(world.tiny))
    micro_batches = recipe.replace(batch_size=2, accum_freq=3)
    whole, parts = (
        Trainer(each, world.root / f"{each.accum_freq}", False, quiet)
        for each in (recipe, micro_batches)
    )
    expected = gradients(whole, [whole.task.batches(0)])
    found = gradients(parts, [parts.task.batches(number) for number in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-3


def test_portions_update_running_statistics_once_each(world):
    """Everything is encoded twice, but normalisation counts each portion once."""
    run = Trainer(
        world.recipe(student=str(world.noisy), batch_size=5, accum_freq=3),
        world.root / "run",
        False,
        quiet,
    )
    run.backward(0, [run.task.batches(number) for number in range(3)])
    counted = {
        int(value)
        for name, value in run.student.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    assert counted == {3}


def test_a_portion_without_a_readable_row_leaves_running_statistics_alone(world):
    """Blank images stand in for it, and nothing is learnt from them."""
    recipe = world.recipe(student=str(world.noisy), batch_size=5)
    one, two = (
        Trainer(recipe.replace(accum_freq=n), world.root / f"{n}", False, quiet) for n in (1, 2)
    )
    batch = one.task.batches(0)
    none = dataclasses.replace(
        batch, pixels=batch.pixels[:0], places=batch.places[:0], bad=[{}] * 5
    )
    one.backward(0, [batch])
    two.backward(0, [batch, none])
    found, expected = two.student.state_dict(), one.student.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {
        int(value) for name, value in found.items() if name.endswith("num_batches_tracked")
    } == {1}


def test_a_run_stopped_after_its_last_step_ends_without_a_further_one(world, monkeypatch):
    """All that is left is to write the weights, and no loss is told that was never computed."""
    whole, step = train(world.recipe(), world.root / "whole", echo=quiet), Trainer.step

    def interrupted(self, at, loading):
        if at == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, at, loading)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(world.recipe(), world.root / "stopped", echo=quiet)
    said = []
    stopped = train(world.recipe(), world.root / "stopped", resume=True, echo=said.append)
    assert "no step was left to do" in said[-1] and "nan" not in said[-1]
    assert (stopped / WEIGHTS[0]).read_bytes() == (whole / WEIGHTS[0]).read_bytes()


def test_the_gradient_is_clipped_to_the_recipes_norm(world):
    free = Trainer(world.recipe(), world.root / "free", False, quiet)
    clipped = Trainer(world.recipe(grad_clip_norm=0.01), world.root / "clipped", False, quiet)
    norms = [run.step(0, iter([run.task.batches(0)]))["grad_norm"] for run in (free, clipped)]
    assert norms[0] == norms[1] > 0.01
    found = torch.stack([p.grad.norm() for p in clipped.student.parameters()]).norm().item()
    assert found == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(world):
    recipe = world.recipe(lr=1e12, warmup=0.0, save_every=1)
    with pytest.raises(
        DimefmError, match=r"step \d: the .* is (nan|inf); .*checkpoints/0000000\d. Fix: lower --lr"
    ) as error:
        train(recipe, world.root / "run", echo=quiet)
    step = int(str(error.value).split()[1].rstrip(":"))
    newest = checkpoint.checkpoints(world.root / "run")[-1]
    assert int(newest.name) == step - 1
    assert all(
        torch.isfinite(tensor).all() for tensor in load_file(newest / "model.safetensors").values()
    )
    assert not (world.root / "run" / "run.json").exists()


def test_a_loss_that_is_not_finite_at_once_says_that_there_is_no_checkpoint(world):
    recipe = world.recipe().model_copy(update={"logit_scale": 1e38})
    with pytest.raises(
        DimefmError,
        match="step 1: the (loss|gradient's norm) is (nan|inf); no checkpoint was written yet",
    ):
        train(recipe, world.root / "run", echo=quiet)


def test_the_learned_scale_stays_within_clips_bounds(world):
    recipe = world.clip_recipe(
        images=[str(world.pairs(["a", "b", "c", "d"]))], lr=1.0, warmup=0.0, steps=8, batch_size=4
    )
    out = train(recipe, world.root / "run", echo=quiet)
    assert 0 <= load_file(out / "open_clip_model.safetensors")["logit_scale"].item() <= 4.6053


def test_bf16_autocast_trains_and_keeps_float32_weights(world):
    out = train(world.recipe(precision="bf16", steps=2), world.root / "run", echo=quiet)
    assert {tensor.dtype for tensor in load_file(out / "image_tower.safetensors").values()} == {
        torch.float32
    }
    ours, exact = lines(out), lines(train(world.recipe(steps=2), world.root / "exact", echo=quiet))
    assert ours[0]["total"] == pytest.approx(exact[0]["total"], rel=0.05)
    assert ours[0]["total"] != exact[0]["total"]


def test_the_loss_falls(world):
    recipe = world.recipe(steps=60, lr=3e-3, log_every=60, batch_size=17, crops="center")
    first = lines(
        train(world.recipe(steps=1, batch_size=17, crops="center"), world.root / "one", echo=quiet)
    )[0]["total"]
    assert lines(train(recipe, world.root / "run", echo=quiet))[-1]["total"] < 0.8 * first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(
    done, tmp_path, monkeypatch, number
):
    (recipe, whole), step = done, Trainer.step

    def interrupted(self, at, loading):
        if at == 1:
            signal.raise_signal(number)
        return step(self, at, loading)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "stopped", echo=quiet)
    assert [int(folder.name) for folder in checkpoint.checkpoints(tmp_path / "stopped")] == [2]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert outcome(train(recipe, tmp_path / "stopped", resume=True, echo=quiet)) == outcome(whole)


def test_a_run_does_not_go_on_with_another_teachers_cache(world):
    recipe = world.recipe(save_every=3)
    back_to(train(recipe, world.root / "run", echo=quiet), world.root / "copy", 3)
    for folder in ("images", "texts"):
        shutil.rmtree(world.root / folder)
    world.cache("images", "image", list(zip(world.names, world.shards, strict=True)), teacher="b")
    world.cache("texts", "text", [("sentences.txt", 9)], teacher="b")
    with pytest.raises(CacheError, match="the run was trained on image_cache"):
        train(recipe, world.root / "copy", resume=True, echo=quiet)


@pytest.mark.parametrize("change", ["dimension", "rows"])
def test_another_cache_is_no_damaged_checkpoint(world, change):
    """The weights of the run have another shape then, or the run has fewer steps."""
    recipe = world.recipe(steps=None, epochs=2, warmup=0, save_every=1, keep=1)
    whole = train(recipe, world.root / "run", echo=quiet)
    last = int(checkpoint.checkpoints(whole)[-1].name)
    back_to(whole, world.root / "copy", last)
    dim = 8
    sources = list(zip(world.names, world.shards, strict=True))
    if change == "dimension":
        dim = 9
    else:
        for name in world.names[1:]:
            (world.root / name).unlink()
        sources = sources[:1]
    for folder in ("images", "texts"):
        shutil.rmtree(world.root / folder)
    world.cache("images", "image", sources, dim=dim)
    world.cache("texts", "text", [("sentences.txt", 9)], dim=dim)
    said = []
    with pytest.raises(CacheError, match="the run was trained on image_cache"):
        train(recipe, world.root / "copy", resume=True, echo=said.append)
    assert not [line for line in said if "damaged" in line]


def test_pairs_that_have_changed_do_not_go_on(world):
    table = world.pairs([f"number {n} of many" for n in range(9)])
    recipe = world.clip_recipe(images=[str(table)], save_every=3)
    back_to(train(recipe, world.root / "run", echo=quiet), world.root / "copy", 3)
    table.write_text(table.read_text().replace("number 4", "number 5"))
    with pytest.raises(
        CacheError, match="the run was trained on pairs [0-9a-f]{12}, now there are pairs"
    ):
        train(recipe, world.root / "copy", resume=True, echo=quiet)


def test_one_row_alone_cannot_be_normalised_and_that_is_said(world):
    world.write_images(broken=set(range(16)))
    recipe = world.recipe(student=str(world.noisy), batch_size=17)
    with pytest.raises(DataError, match="step 1: one row alone is left to a process") as error:
        train(recipe, world.root / "run", echo=quiet)
    assert "\n" not in str(error.value)


def test_a_feature_that_was_damaged_later_is_named_with_shard_and_row(world):
    shard = world.root / "images" / "image_1.feat.h5"
    with h5py.File(shard, "r+") as file:
        file["row"][2] = np.nan
    with pytest.raises(CacheError, match=r"image_1\.feat\.h5, row 2: the vector has length nan"):
        train(world.recipe(steps=20), world.root / "run", echo=quiet)


def test_a_warm_up_longer_than_the_run_is_shortened_and_said(world):
    said = []
    run = train(
        world.recipe(steps=20, warmup=100.0, warmup_lr=0.0, lr=0.1),
        world.root / "run",
        echo=said.append,
    )
    assert "note: warm-up of 340 steps is longer than the run of 20; shortened to 2" in said
    assert max(line["lr"] for line in lines(run)) > 0.09

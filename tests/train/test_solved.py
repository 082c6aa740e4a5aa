"""The last projection in closed form: it is the least-squares solution, once, before step 0."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from dimefm.errors import ModelError, RecipeError
from dimefm.models import least_squares, projection
from dimefm.models.encoder import weights_sha256
from dimefm.recipe import refuse_idle
from dimefm.runs import folder as runs
from dimefm.train import start as starting
from dimefm.train.trainer import Trainer, train
from tests.models.test_projection import IMAGES, TEXTS, image_tower, text_tower
from tests.train.test_distributed import SCRIPT
from tests.train.test_distributed import start as start_processes

SOLVED = {"init_projection": "least-squares"}


def quiet(line):
    """Take a line of progress and say nothing."""


def rows_of(run):
    """Return what the last projection reads in the first epoch, and the teacher's embeddings."""
    features, targets = [], []
    count = -(-len(run.sources) // run.recipe.batch_size)
    run.student.eval()
    for number in range(count):
        batch = run.task.batches(number)
        with torch.no_grad():
            if batch.pixels is None:
                inputs, encode = batch.tokens, run.student.model.encode_text
            else:
                inputs, encode = run.student.prepared(batch.pixels), run.student.model.encode_image
            if isinstance(run.student.projection, torch.nn.Linear):
                features.append(encode(inputs))
            else:
                with projection.removed(run.student.model):
                    features.append(encode(inputs))
        targets.append(batch.same_modality[0][torch.from_numpy(batch.places)])
    rows = len(run.sources)  # the last batch reaches into the next pass
    return torch.cat(features)[:rows].double(), torch.cat(targets)[:rows].double()


def recipe_of(world, kind, **over):
    if kind == "projected":
        config = json.loads(world.tiny.read_text())
        world.tiny.write_text(json.dumps({**config, "embed_dim": 5}))
        return world.recipe(projection="linear", **SOLVED, **over)
    if kind == "text":
        return world.text_recipe(**SOLVED, **over)
    return world.recipe(**SOLVED, **over)


@pytest.mark.parametrize("kind", ["image", "text", "projected"])
def test_the_projection_is_the_ridge_solution_on_one_pass(world, kind):
    lines = []
    run = Trainer(recipe_of(world, kind), world.root / "run", False, lines.append)
    record = run.begun.record["projection"]
    x, y = rows_of(run)
    every = min(10, len(x))
    held_out = [place for place in range(len(x)) if place % every == every - 1]
    assert record["rows"] == len(x) == len(run.sources)
    assert record["held_out"] == len(held_out)
    strength = record["ridge"] * (x * x).sum(0).mean()
    gram = x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype)
    wanted = torch.linalg.solve(gram, x.T @ y)
    matrix = run.student.get_parameter(record["parameters"][0]).detach().double()
    found = x @ (matrix.T if kind == "projected" else matrix)
    scale = matrix.norm() / wanted.norm()  # rows are compared by their direction alone
    torch.testing.assert_close(found, scale * (x @ wanted), rtol=1e-3, atol=1e-4)
    plain = Trainer(run.recipe.replace(init_projection="random"), world.root / "o", False, quiet)
    replaced = plain.student.get_parameter(record["parameters"][0]).detach().norm()
    assert float(matrix.norm()) == pytest.approx(float(replaced), rel=1e-4)
    assert record["ridge"] in least_squares.RIDGES
    assert any(line.startswith("last projection: solved by least squares on") for line in lines)


def test_held_out_rows_say_how_good_it_is(world):
    """Features that are a linear map of what they should become are learned exactly."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=noise)
    target = torch.randn(12, 5, generator=noise)
    for bias, sigma, low, high in ((0.0, 0.0, 0.9999, 1.0), (3.0, 1.0, 0.85, 0.97)):
        y = x @ target + bias + sigma * torch.randn(400, 5, generator=noise)
        kept = least_squares.NormalEquations(12, 5, torch.device("cpu"))
        held_out = least_squares.NormalEquations(12, 5, torch.device("cpu"))
        for part in range(0, 400, 40):
            (held_out if part == 360 else kept).add(x[part : part + 40], y[part : part + 40])
        solution = least_squares.solve(kept, held_out, has_bias=True)
        assert low <= solution.r2 <= high
        design = np.hstack([x.numpy(), np.ones((400, 1))])
        wanted = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
        np.testing.assert_allclose(solution.weight.numpy(), wanted[:-1].T, atol=0.05)
        np.testing.assert_allclose(solution.bias.numpy(), wanted[-1], atol=0.05)
        rows = x[360:].double() @ kept.solve(solution.ridge, True)[:, :-1].T
        rows += kept.solve(solution.ridge, True)[:, -1]
        left = ((rows - y[360:]) ** 2).sum() / ((y[360:] - y[360:].mean(0)) ** 2).sum()
        assert solution.r2 == pytest.approx(1 - float(left), abs=1e-6)


@pytest.mark.parametrize("family", [*IMAGES, *TEXTS])
def test_every_family_gives_what_its_last_projection_reads(tmp_path, family):
    is_text = family in TEXTS
    if is_text:
        tower, _ = text_tower(tmp_path, TEXTS[family])
        inputs, encode = torch.randint(50, (3, 8)), "encode_text"
    else:
        tower, spec = image_tower(tmp_path, IMAGES[family])
        inputs, encode = (
            torch.randn(3, 3, spec.image_size, spec.image_size).double(),
            "encode_image",
        )
    tower.eval()
    before = weights_sha256(tower)
    owner, name = projection.last_projection(tower)
    layer = getattr(owner, name)
    with torch.no_grad():
        expected = getattr(tower, encode)(inputs)
        with projection.removed(tower):
            features = getattr(tower, encode)(inputs)
        found = layer(features) if isinstance(layer, torch.nn.Linear) else features @ layer
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert weights_sha256(tower) == before and getattr(owner, name) is layer


def test_a_run_without_steps_is_the_student_as_it_starts(world):
    out = train(recipe_of(world, "image", steps=0), world.root / "run", echo=quiet)
    record = runs.read(out)
    assert record.steps == 0 and record.start["projection"]["by"] == "least-squares"
    run = Trainer(recipe_of(world, "image"), world.root / "other", False, quiet)
    weights = safetensors.torch.load_file(out / runs.IMAGE_TOWER)
    own = run.student.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())
    lines = []
    train(recipe_of(world, "image", steps=0), out, resume=True, echo=lines.append)
    assert lines == [f"{out}: finished already; nothing to do"]


def test_a_frozen_start_may_stay_without_steps(world):
    first = train(recipe_of(world, "image"), world.root / "first", echo=quiet)
    start = {"init": f"run:{first}", "init_projection": "random", "init_lr_scale": 0.0, "steps": 0}
    out = train(world.recipe(**start), world.root / "run", echo=quiet)
    weights = [safetensors.torch.load_file(path / runs.IMAGE_TOWER) for path in (first, out)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_a_resumed_run_does_not_solve_it_again(world, monkeypatch):
    recipe = recipe_of(world, "image", save_every=2)
    whole = train(recipe, world.root / "whole", echo=quiet)
    step = Trainer.step

    def interrupted(self, number, loading):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, loading)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", interrupted)
        train(recipe, world.root / "parts", echo=quiet)
    monkeypatch.setattr(starting.solved, "solve_projection", None)
    parts = train(recipe, world.root / "parts", resume=True, echo=quiet)
    assert (whole / runs.IMAGE_TOWER).read_bytes() == (parts / runs.IMAGE_TOWER).read_bytes()
    assert runs.read(whole).start == runs.read(parts).start


def test_a_frozen_tower_learns_its_projection_alone(world):
    """Running statistics stay, too."""
    first = train(
        world.recipe(student=str(world.noisy), steps=1, seed=3), world.root / "first", echo=quiet
    )
    weights = safetensors.torch.load_file(first / runs.IMAGE_TOWER)
    recipe = world.recipe(
        student=str(world.noisy), init=f"run:{first}", init_lr_scale=0, save_every=2, **SOLVED
    )
    out = train(recipe, world.root / "run", echo=quiet)
    own = safetensors.torch.load_file(out / runs.IMAGE_TOWER)
    changed = [name for name in weights if not torch.equal(weights[name], own[name])]
    assert changed == ["visual.head.proj.weight"]
    with pytest.raises(RecipeError, match="keeps every weight of the student as it is"):
        recipe = recipe.replace(init_projection="random")
        Trainer(recipe, world.root / "other", False, quiet)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"init_rows": 5}, "init_rows is for init_projection = 'least-squares'"),
        ({"text": "student", **SOLVED}, "init_projection = 'least-squares' is for one tower"),
        (
            {"steps": 0},
            "'steps' is 0; expected a positive number for a student that starts from random",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(world, change, reason):
    with pytest.raises(RecipeError, match=reason):
        refuse_idle(world.recipe(**change))


def test_a_text_tower_without_features_of_texts_is_refused(world):
    with pytest.raises(RecipeError, match="init_projection .* is for towers that have features"):
        refuse_idle(world.text_recipe(per_row=2, **SOLVED))


def test_a_tower_without_a_last_projection_is_refused(world):
    config = json.loads(world.noisy.read_text())
    config["vision_cfg"] |= {"timm_pool": "avg", "timm_proj": "none"}
    config["embed_dim"] = 96
    world.noisy.write_text(json.dumps(config))
    world.images("images_96", dim=96)
    world.texts("texts_96", dim=96)
    names = {f"{kind}_cache": str(world.root / f"{kind}s_96") for kind in ("image", "text")}
    recipe = world.recipe(student=str(world.noisy), **names, **SOLVED)
    with pytest.raises(ModelError, match="the student cannot take it: its last layer is no linear"):
        Trainer(recipe, world.root / "run", False, quiet)


def test_few_rows_may_be_read(world):
    run = Trainer(recipe_of(world, "image", init_rows=10), world.root / "run", False, quiet)
    assert run.begun.record["projection"]["rows"] == 10
    world.write_images(broken=(2, 3))
    run = Trainer(recipe_of(world, "image"), world.root / "other", False, quiet)
    assert run.begun.record["projection"]["rows"] == sum(world.shards) - 2


@pytest.mark.slow
def test_two_processes_solve_what_one_does(world, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    recipe = recipe_of(world, "image", steps=1, batch_size=6)
    (folder / "run.toml").write_text(recipe.to_toml())
    for process in start_processes(2, str(SCRIPT), str(folder)):
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told
    two = runs.read(folder / "run.run").start["projection"]
    one = Trainer(recipe, world.root / "one", False, quiet).begun.record["projection"]
    assert two["rows"] == one["rows"] and two["ridge"] == one["ridge"]
    assert two["cosine"] == pytest.approx(one["cosine"], abs=1e-3)

"""A run whose student keeps its own dimension while it learns."""

import json

import pytest
import torch

from dimefm.errors import ModelError
from dimefm.models import open_clip
from dimefm.models import projection as bridges
from dimefm.models.towers import ImageTower, TextTower
from dimefm.runs import folder
from dimefm.train.student import Student
from dimefm.train.trainer import Trainer, train


def quiet(line):
    """Take a line of progress and say nothing."""


def recipe_of(world, kind, **over):
    """Return a recipe whose teachers have 8 and 6 dimensions, the student 5."""
    config = json.loads(world.tiny.read_text())
    world.tiny.write_text(json.dumps({**config, "embed_dim": 5}))
    if kind == "text":
        return world.text_recipe(projection="linear", **over)
    return world.recipe(projection="linear", **{**world.second_teacher(), **over})


@pytest.mark.parametrize(("kind", "ema"), [("image", None), ("text", None), ("image", 0.5)])
def test_its_run_holds_an_ordinary_tower_with_the_rows_of_both(world, kind, ema):
    run = Trainer(recipe_of(world, kind, ema=ema), world.root / "run", resume=False, echo=quiet)
    assert run.student.model is run.task.model and run.student.projection.weight.shape == (8, 5)
    run.loop()
    out = run.finish()
    record = folder.read(out)
    assert record.model_cfg["embed_dim"] == 8
    batch = run.task.batches(0)
    config = record.model_cfg
    tower = (
        TextTower(open_clip.text_tower(config))
        if kind == "text"
        else ImageTower(open_clip.image_tower(config))
    )
    folder.load_weights(tower, out / folder.KINDS[record.kind])
    assert record.parameters == sum(weights.numel() for weights in tower.parameters())
    plain = Student(tower, run.task.preprocess).eval()
    with torch.no_grad():
        counting = run.student if ema is None else run.ema.module
        expected = counting.eval()(batch.pixels, batch.tokens)["rows"]
        torch.testing.assert_close(
            plain(batch.pixels, batch.tokens)["rows"], expected, rtol=1e-5, atol=1e-6
        )
    assert not torch.equal(bridges.draw(5, 8, 0).weight, run.student.projection.weight)


def test_a_student_of_the_teachers_dimension_needs_none(world):
    run = Trainer(world.recipe(projection="linear"), world.root / "run", resume=False, echo=quiet)
    assert [name for name in run.student.state_dict() if not name.startswith("model.")] == []


def test_a_resumed_run_reaches_the_same_weights(world, monkeypatch):
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
    parts = train(recipe, world.root / "parts", resume=True, echo=quiet)
    assert (whole / folder.IMAGE_TOWER).read_bytes() == (parts / folder.IMAGE_TOWER).read_bytes()


def test_a_student_that_cannot_take_it_in_is_refused_before_the_first_step(world):
    recipe = recipe_of(world, "image", student="timm/test_resnet", image_size=32)
    with pytest.raises(ModelError, match="timm/test_resnet: has no dimension of its own"):
        train(recipe, world.root / "run", echo=quiet)
    assert not list((world.root / "run").glob("**/*.safetensors"))

"""A run with ``image_mask`` hides a part of each image while it learns, and leaves nothing of that
behind.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from dimefm.errors import RecipeError
from dimefm.models.patch_dropout import PatchDropout
from dimefm.train.trainer import Trainer, train


def quiet(line):
    """Take a line of progress and say nothing."""


@pytest.mark.parametrize("student", ["tiny", "noisy"])
def test_a_run_learns_from_masked_images_and_writes_the_same_model(world, student):
    name, folders = str(getattr(world, student)), {}
    for share in (0.0, 0.5):
        recipe = world.recipe(student=name, image_mask=share, steps=2)
        folders[share] = train(recipe, world.root / f"run{share}", echo=quiet)
    whole, masked = (load_file(folder / "image_tower.safetensors") for folder in folders.values())
    assert whole.keys() == masked.keys()
    assert not all(torch.equal(whole[key], masked[key]) for key in whole)
    configs = [
        json.loads((folder / "run.json").read_text())["model_cfg"] for folder in folders.values()
    ]
    assert configs[0] == configs[1]


def test_portions_of_a_step_are_masked_alike_both_times(world):
    """A step in portions encodes each twice; the patches hidden by the same seed are the same."""
    run = Trainer(world.recipe(image_mask=0.5, accum_freq=2), world.root / "run", False, quiet)
    module = run.task.model.visual.patch_dropout
    assert isinstance(module, PatchDropout)
    kept = []
    module.register_forward_hook(
        lambda _, inputs, tokens: kept.append(tokens[:, 1:].detach().clone())
    )
    pixels = (
        torch.arange(5 * 16 * 16 * 3, dtype=torch.int64)
        .view(5, 16, 16, 3)
        .remainder(256)
        .to(torch.uint8)
    )
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        run.student.train()(pixels, None)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_a_text_tower_has_no_images_to_mask(world):
    with pytest.raises(
        RecipeError, match="image_mask is for a student of images and would do nothing here"
    ):
        Trainer(world.text_recipe(image_mask=0.5), world.root / "run", False, quiet)

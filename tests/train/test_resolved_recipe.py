"""The resolved recipe that is printed and kept with a run: what the run looks at, and no more."""

import tomllib

import pytest

from dimefm.errors import RecipeError
from dimefm.recipe import Recipe, read, refuse_idle
from dimefm.train.trainer import train

IMAGES = {
    "student",
    "crops",
    "augment",
    "crop_scale",
    "crop_ratio",
    "flip",
    "resize",
    "image_mask",
    "views_per_step",
}
PAIRS = {
    "captions",
    "captions_per_step",
    "text_augment",
    "mask_words",
    "mlm_caption",
    "neighbours_among",
}


def shown(**over):
    """Return the settings of a recipe as it is written, which reads back as the same recipe."""
    recipe = read(None, **over)
    table = tomllib.loads(recipe.to_toml())
    assert read(None, **table) == recipe
    return set(table)


def test_each_kind_of_run_shows_what_it_looks_at():
    tower, text, clip = shown(), shown(text="student:ViT-T-16"), shown(text="student")
    assert IMAGES <= tower & clip and not IMAGES & text
    assert PAIRS <= clip and not PAIRS & (tower | text)
    assert "word_dropout" in text and "word_dropout" not in tower | clip
    assert {"lr", "batch_size", "epochs", "seed"} <= tower & text & clip
    assert not {"eval_every", "patience", "images", "neighbours"} & (tower | text | clip)


def test_what_is_set_is_shown_even_where_nothing_looks_at_it():
    assert {"resize", "captions_per_step"} <= shown(
        text="student:ViT-T-16", resize=0, captions_per_step=2
    )
    assert "eval_every" in shown(eval_root="datasets") and "epochs" not in shown(steps=3)


@pytest.mark.parametrize("over", [{"student": "ViT-T-16"}, {"image_size": 64}])
def test_a_student_of_images_beside_a_text_tower_is_refused(over):
    with pytest.raises(
        RecipeError,
        match=f"{next(iter(over))} is for a student of images and would do nothing here",
    ):
        refuse_idle(read(None, text="student:ViT-T-16", **over))


def test_a_run_of_a_text_tower_names_no_student_of_images_and_is_finished_when_resumed(world):
    recipe, lines = world.text_recipe(steps=2, save_every=1), []
    out = train(recipe, world.root / "run", echo=lines.append)
    assert Recipe().student not in (out / "recipe.toml").read_text()
    assert train(recipe, out, resume=True, echo=lines.append) == out
    assert lines[-1].endswith("finished already; nothing to do")

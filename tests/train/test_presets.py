"""Every recipe runs in its small form.

Recipes with equal losses, which differ in their student and in numbers, share one default test; the
others are marked slow.
"""

import json
import re
from pathlib import Path

import pytest

from dimefm.recipe import read
from dimefm.train.trainer import train

ROOT = Path(__file__).parents[2]
RECIPES = {path: read(path) for path in sorted((ROOT / "pipelines").glob("*.toml"))}
PRESETS = {
    path: recipe
    for path, recipe in RECIPES.items()
    if recipe.text == "student" and recipe.captions == "text"
}


def presets():
    """Return all recipes of two towers, marked slow where an earlier one learns by the same
    losses.
    """
    seen, found = [], []
    for path, recipe in PRESETS.items():
        kind = (recipe.losses, bool(recipe.image_cache), recipe.image_mask)
        found.append(
            pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if kind in seen else [])
        )
        seen.append(kind)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_world):
    """Return a world with pairs and their features, and where these lie."""
    world = make_world(tmp_path_factory.mktemp("presets"))
    found = world.distilled_recipe()
    return world, {name: getattr(found, name) for name in ("images", "image_cache", "text_cache")}


@pytest.fixture(scope="module")
def make_world():
    from tests.train.conftest import DistributedContext

    return DistributedContext


def test_there_are_presets_of_each_paper():
    names = {name.partition(".")[0] for recipe in PRESETS.values() for name in recipe.losses}
    assert {"clip_kd", "tinyclip", "open_clip", "declip"} <= names


def header(path):
    """Return the comment that opens a recipe, in one line."""
    return re.sub(r"\n# ?", " ", path.read_text(encoding="utf-8").split("\n\n")[0])


def test_the_page_lists_the_recipes_of_published_rows_with_their_student_and_figure():
    page = (ROOT / "docs/losses.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"(?m)^\| `([a-z0-9_]+)\.toml` \| ([^ ,|]+)[^|]*\|[^|]*\| ([0-9.]+)[^|]*\|$", page
    )
    assert {name for name, _, _ in listed} == {
        path.stem for path in RECIPES if "IN-1K zero-shot" in header(path)
    }
    for name, student, figure in listed:
        path = ROOT / "pipelines" / f"{name}.toml"
        assert RECIPES[path].student == student
        assert re.search(rf"(?<![0-9.]){re.escape(figure)}(?![0-9])", header(path)), (name, figure)


@pytest.mark.parametrize("path", presets())
def test_a_preset_runs_in_its_small_form(place, path):
    world, sources = place
    known = {name: value for name, value in sources.items() if getattr(PRESETS[path], name)}
    recipe = read(path, small=True, device="cpu", save_every=100, **known)
    out = train(recipe, world.root / path.stem, echo=lambda line: None)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(lines) == recipe.steps
    assert set(recipe.losses) <= set(lines[-1])
    assert json.loads((out / "run.json").read_text())["kind"] == "clip"


@pytest.mark.parametrize(
    "path",
    [path for path, recipe in RECIPES.items() if recipe.text == "teacher"],
    ids=lambda p: p.stem,
)
def test_a_preset_of_an_image_tower_runs_in_its_small_form(place, path):
    world, _ = place
    ours = world.recipe()
    known = {name: getattr(ours, name) for name in ("images", "image_cache", "text_cache")}
    recipe = read(path, small=True, device="cpu", dataroot=None, batch_size=6, steps=2, **known)
    out = train(recipe, world.root / path.stem, echo=lambda line: None)
    assert json.loads((out / "run.json").read_text())["kind"] == "image-tower"
    assert set(recipe.losses) <= set(json.loads((out / "log.jsonl").read_text().splitlines()[-1]))


def test_the_preset_of_a_text_tower_runs_in_its_small_form(place):
    world, _ = place
    ours = world.text_recipe(per_row=2)
    known = {name: getattr(ours, name) for name in ("texts", "image_cache")}
    path = ROOT / "pipelines" / "text_tower_flickr8k.toml"
    recipe = read(path, small=True, device="cpu", batch_size=6, **known)
    out = train(recipe, world.root / path.stem, echo=lambda line: None)
    assert json.loads((out / "run.json").read_text())["kind"] == "text-tower"
    assert len((out / "log.jsonl").read_text().splitlines()) == recipe.steps


def test_a_clip_from_scratch_runs_in_its_small_form(place):
    world, sources = place
    path = ROOT / "pipelines" / "clip_from_scratch.toml"
    recipe = read(
        path, small=True, device="cpu", captions="text", images=sources["images"], batch_size=6
    )
    out = train(recipe, world.root / path.stem, echo=lambda line: None)
    assert json.loads((out / "run.json").read_text())["kind"] == "clip"
    assert len((out / "log.jsonl").read_text().splitlines()) >= 1

"""Each recipe of two towers against a teacher runs in its small form."""

import json
from pathlib import Path

import pytest

from dimefm.recipe import read
from dimefm.train import train

PRESETS = [
    path
    for path in sorted((Path(__file__).parents[2] / "pipelines").glob("*.toml"))
    if read(path).text == "student" and read(path).image_cache
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_world):
    """Return a world with pairs and their features, and where these lie."""
    world = make_world(tmp_path_factory.mktemp("presets"))
    found = world.distilled_recipe()
    return world, {name: getattr(found, name) for name in ("images", "image_cache", "text_cache")}


@pytest.fixture(scope="module")
def make_world():
    from tests.training.conftest import World

    return World


def test_there_are_presets_of_each_paper():
    assert {"clip_kd", "tinyclip", "open_clip"} <= {name.partition(".")[0] for path in PRESETS for name in read(path).losses}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_runs_in_its_small_form(place, path):
    world, sources = place
    recipe = read(path, small=True, device="cpu", save_every=100, **sources)
    out = train(recipe, world.root / path.stem, echo=lambda line: None)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(lines) == recipe.steps
    assert set(recipe.losses) <= set(lines[-1])
    assert json.loads((out / "run.json").read_text())["kind"] == "clip"

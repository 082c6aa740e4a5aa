"""A TOML file, the flags of ``dimefm train`` and Python keyword arguments mean the same."""

import inspect
import json

import pytest

from dimefm import plugins
from dimefm.cli.train import command
from dimefm.errors import RecipeError
from dimefm.recipe import AUGMENTATIONS, KEYS, Recipe, read
from dimefm.recipe.schema.student import DimeLosses
from dimefm.train.trainer import train

LISTS = ["image.list", "image_feat.list", "text.list", "text_feat.list"]
CASES = {
    "nothing": {},
    "numbers": {"lr": 0.5, "steps": 3, "warmup": 2.0, "grad_clip_norm": 1.0},
    "sources": {"images": ["a", "b"], "image_cache": ["c"], "text_cache": ["d", "e"]},
    "weights of sources": {"images": ["a", "b"], "source_weights": [0.7, 0.3], "shuffle": "rows"},
    "DIME-FM's own files": {"tsv_file_list": LISTS},
    "DIME-FM's own files, replayed": {"tsv_file_list": LISTS, "crops": "replay"},
    "DIME-FM's own files at the centre": {"tsv_file_list": LISTS, "crops": "center"},
    "P-VL": {"use_pvl_loss": True},
    "P-VL alone": {"use_pvl_loss": True, "use_vl_loss": False},
    "all three": {"use_pvl_loss": True, "use_udist_loss": True, "w_udist": 0.1, "t_udist": 4.0},
    "weights and temperatures": {"w_vl": 0.5, "t_vl": 2.0, "use_pvl_loss": True, "w_pvl": 0.1},
    "pairs": {"text": "student", "images": ["a"]},
    "pairs with a teacher": {"text": "student", "image_cache": ["a"], "text_cache": ["b"]},
    "a text tower": {"text": "student:ViT-T-16", "texts": ["a"]},
    "crops of a paper": {"augment": "clip-kd"},
    "evaluation": {"eval_root": "sets", "eval_datasets": "dtd, digits", "patience": 3},
}
REFUSED = {
    "a weight without its loss": {"w_pvl": 0.3},
    "a loss with weight 0": {"use_udist_loss": True},
    "a number out of bounds": {"lr": -1.0},
    "unknown losses": {"losses": {"dime.vl": 3}},
}


def from_toml(tmp_path, settings):
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (tmp_path / "recipe.toml").write_text("\n".join(lines))
    return read(tmp_path / "recipe.toml")


def from_flags(monkeypatch, settings):
    words = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if name == "use_vl_loss" and value is False:
            words.append("--no-vl-loss")
        elif value is True:
            words.append(flag)
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    made = []
    monkeypatch.setattr("dimefm.cli.train.refuse_absent_inputs", lambda *_: None)
    monkeypatch.setattr(
        "dimefm.train.trainer.train", lambda recipe, out, *_, **__: made.append(recipe)
    )
    command.main(["--out", "run", *words], standalone_mode=False)
    return made[0]


@pytest.mark.parametrize("case", CASES)
def test_a_file_flags_and_keyword_arguments_make_the_same_recipe(tmp_path, monkeypatch, case):
    settings = CASES[case]
    recipe = Recipe(**settings)
    assert from_toml(tmp_path, settings) == recipe
    assert from_flags(monkeypatch, settings) == recipe
    assert read(None, **settings) == recipe
    (tmp_path / "saved.toml").write_text(recipe.to_toml())
    assert read(tmp_path / "saved.toml") == recipe


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(tmp_path, case):
    settings = REFUSED[case]
    with pytest.raises(RecipeError) as error:
        Recipe(**settings)
    with pytest.raises(RecipeError) as of_read:
        read(None, **settings)
    assert str(of_read.value) == str(error.value)
    if "losses" not in settings:
        with pytest.raises(RecipeError) as of_file:
            from_toml(tmp_path, settings)
        assert str(of_file.value) == f"{tmp_path / 'recipe.toml'}: {error.value}"


def test_implied_settings_are_those_of_their_names():
    assert Recipe().losses == {"dime.vl": {"weight": 0.7}}
    assert Recipe(text="student").losses == {}
    assert Recipe(losses={}).losses == {}
    assert Recipe(tsv_file_list=LISTS).crops == "free"
    for name, crops in AUGMENTATIONS.items():
        settings = Recipe(augment=name).settings()
        assert {key: settings[key] for key in crops} == crops
    assert tuple(AUGMENTATIONS) == KEYS["augment"].choices


def test_dime_fms_files_take_the_place_of_the_sources_of_a_lower_layer(tmp_path):
    (tmp_path / "r.toml").write_text('images = ["a"]\nimage_cache = "b"\ntext_cache = "c"\n')
    recipe = read(tmp_path / "r.toml", tsv_file_list=LISTS)
    assert recipe.images == recipe.image_cache == recipe.text_cache == ()
    assert recipe == read(tmp_path / "r.toml").replace(tsv_file_list=LISTS)
    both = read(tmp_path / "r.toml", tsv_file_list=LISTS, images=["d"])
    assert both.images == ("d",)


def test_temperatures_of_help_are_those_of_the_losses():
    for term in ("vl", "pvl", "udist"):
        function = plugins.module("losses", "dime").__dict__[term]
        default = inspect.signature(function).parameters["temperature"].default
        assert default == getattr(DimeLosses(), f"t_{term}")


def test_a_file_with_dime_fms_own_files_trains(golden_tsv, tmp_path):
    settings = {"dataroot": str(golden_tsv), "tsv_file_list": LISTS, "use_pvl_loss": True}
    settings |= {"student": "ResNet-mini-64", "steps": 1, "batch_size": 3, "logit_scale": 100.0}
    recipe = from_toml(tmp_path, settings | {"device": "cpu"})
    out = train(recipe, tmp_path / "run", echo=lambda line: None)
    assert json.loads((out / "run.json").read_text())["kind"] == "image-tower"

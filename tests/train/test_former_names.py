"""Older names of keys, older values and older flags are read as those of today."""

import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.cli.train import command
from dimefm.errors import RecipeError
from dimefm.recipe import FORMER_NAMES, KEYS, Recipe, changed, read
from dimefm.runs.compare import read_run

CASES = [
    ({"view": "cached"}, {"crops": "replay"}),
    ({"view": "free"}, {"crops": "free"}),
    ({"bridge": "linear"}, {"projection": "linear"}),
    ({"mix": [0.7, 0.3]}, {"source_weights": [0.7, 0.3]}),
    ({"masked": "apart"}, {"mlm_caption": "extra"}),
    ({"masked": "contrast"}, {"mlm_caption": "contrastive"}),
]


def toml_of(settings):
    return "".join(f"{name} = {value!r}\n" for name, value in settings.items())


def test_the_cases_are_all_older_names_and_values():
    assert {name for former, _ in CASES for name in former} == set(FORMER_NAMES)
    values = {value for former, _ in CASES for value in former.values() if isinstance(value, str)}
    assert values >= {value for key in KEYS.values() for value in key.former_values}


@pytest.mark.parametrize(("former", "today"), CASES)
def test_an_older_recipe_means_the_same(tmp_path, former, today):
    expected = Recipe(**today)
    assert Recipe(**former) == read(None, **former) == Recipe().replace(**former) == expected
    for text in (toml_of(former), "[small]\n" + toml_of(former)):
        (tmp_path / "recipe.toml").write_text(text)
        assert read(tmp_path / "recipe.toml", small="small" in text) == expected
    assert changed(read(None, **former), expected) == []
    assert not set(former) & set(expected.settings())


@pytest.mark.parametrize(("former", "today"), CASES)
def test_an_older_run_is_compared_by_the_names_of_today(tmp_path, former, today):
    (tmp_path / "recipe.toml").write_text(toml_of(former))
    (tmp_path / "log.jsonl").write_text("")
    settings = read_run(tmp_path).settings
    assert {name: settings[name] for name in today} == today
    assert not set(former) & set(settings)


def test_a_key_by_both_of_its_names_is_refused():
    with pytest.raises(RecipeError, match="'crops' is set twice, also by its older name 'view'"):
        Recipe(crops="free", view="free")


@pytest.mark.parametrize(
    ("words", "today"),
    [
        (["--view", "cached"], {"crops": "replay"}),
        (["--view", "free"], {"crops": "free"}),
        (["--bridge", "linear"], {"projection": "linear"}),
        (["--mix", "0.7", "0.3"], {"source_weights": [0.7, 0.3]}),
        (["--set", "view='cached'", "masked='contrast'"], {"mlm_caption": "contrastive"}),
    ],
)
def test_older_flags_mean_the_same_and_are_not_in_help(monkeypatch, words, today):
    made = []
    monkeypatch.setattr(
        "dimefm.train.trainer.train", lambda recipe, out, *_, **__: made.append(recipe)
    )
    command.main(["--out", "run", *words], standalone_mode=False)
    assert made == [Recipe(**today)]
    if words[0] != "--set":
        assert f"{words[0]} " not in CliRunner().invoke(main, ["train", "--help"]).output

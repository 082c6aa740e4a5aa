"""``--help`` of every command: no option is lost among the sections, and no line of a list of
commands is cut off.
"""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.cli._options import ManyValues
from dimefm.cli.cache import adopt
from dimefm.evaluate.metrics import METRICS
from dimefm.recipe import FORMER_NAMES, KEYS, Recipe
from dimefm.recipe.page import page
from dimefm.recipe.schema.evaluation import Eval
from dimefm.recipe.schema.extraction import Extract
from dimefm.recipe.schema.student import DimeLosses


def commands(group: click.Group, words: tuple[str, ...] = ()):
    """Yield (words, command) of a group and all below it."""
    yield words, group
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from commands(found, (*words, name))
        else:
            yield (*words, name), found


EVERY = dict(commands(main))


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_command_by_itself_has_the_help_option_that_it_has_below_the_main_one(words):
    """Click keeps the help option of a command's first context, so every context must give one."""
    context = EVERY[words].make_context("alone", [], resilient_parsing=True)
    assert context.help_option_names == ["-h", "--help"]
    assert context.max_content_width == 100


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_each_option_stands_there_once(words):
    result = CliRunner().invoke(main, [*words, "--help"], terminal_width=80)
    assert result.exit_code == 0
    first = [line.split()[0] for line in result.output.splitlines() if line.startswith("  -")]
    named = [
        param.opts[0]
        for param in EVERY[words].params
        if isinstance(param, click.Option) and not param.hidden
    ]
    assert sorted(word.rstrip(",") for word in first) == sorted([*named, "-h"])


@pytest.mark.parametrize(
    "words",
    [words for words, found in EVERY.items() if isinstance(found, click.Group)],
    ids=" ".join,
)
def test_lists_of_commands_are_whole(words):
    result = CliRunner().invoke(main, [*words, "--help"], terminal_width=80)
    listed = result.output.split("Commands:")[1].splitlines()
    assert not [line for line in listed if line.endswith("...")] or words == ("eval",)


@pytest.mark.parametrize(
    "words",
    [words for words, found in EVERY.items() if getattr(found, "sections", None)],
    ids=" ".join,
)
def test_sections_begin_at_options_that_there_are_and_stand_in_their_order(words):
    found = EVERY[words]
    assert isinstance(found, ManyValues)
    assert set(found.sections) <= {param.opts[0] for param in found.params}
    text = CliRunner().invoke(main, [*words, "--help"], terminal_width=80).output
    places = [text.index(f"\n{heading}:\n") for heading in found.sections.values()]
    assert places == sorted(places) and "\nOptions:\n" not in text


def stated_defaults(words):
    """Yield (option, default that its help states) of a command; bounds behind it are left out."""
    context = EVERY[words].make_context("alone", [], resilient_parsing=True)
    for param in EVERY[words].params:
        if isinstance(param, click.Option) and not param.hidden:
            _, text = param.get_help_record(context)
            stated = re.search(r"\[default: ([^\]]*(?:\[[^\]]*\])?[^\]]*)\]", text)
            if stated is not None:
                yield param, re.split(r"; [-\d.<=]*x[<>]", stated[1])[0]


def used_default(words, option):
    """Return what a command uses when an option is not given, None when no value says it."""
    if words == ("cache", "adopt") and option.name == "logit_scale":
        return adopt._card(None, dict.fromkeys(adopt.PROVENANCE))(8).logit_scale
    sections = {
        ("train",): (Recipe(), DimeLosses()),
        ("extract-features",): (Extract(),),
        ("eval", "elevater"): (Eval(),),
    }
    for settings in sections.get(words, ()):
        if option.name in type(settings).model_fields:
            return getattr(settings, option.name)
    return option.default if isinstance(option.default, str | int | float) else None


LEAVES = [words for words, found in EVERY.items() if not isinstance(found, click.Group)]


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_a_default_in_help_is_what_the_command_uses(words):
    for option, stated in stated_defaults(words):
        used = used_default(words, option)
        if used is None or used == ():
            assert not re.match(r"[-+.]?\d", stated), option.name
            assert stated not in getattr(option.type, "choices", ())
        elif isinstance(used, int | float):
            assert float(stated) == used, option.name
        else:
            assert stated.partition(";")[0] == used, option.name


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_a_default_is_stated_in_one_way(words):
    context = EVERY[words].make_context("alone", [], resilient_parsing=True)
    for param in EVERY[words].params:
        if isinstance(param, click.Option) and not param.hidden:
            _, text = param.get_help_record(context)
            brackets = re.findall(r"  \[([^\]]*)", text)
            assert all(re.match(r"default: |required|.*x[<>]", each) for each in brackets), text


def test_train_has_a_flag_for_each_key_that_should_have_one_with_its_default():
    stated = {option.name: default for option, default in stated_defaults(("train",))}
    flags = {option.name for option in EVERY[("train",)].params}
    for name, key in KEYS.items():
        assert (name in flags) == bool(key.flag)
        if key.flag and key.default not in (None, False, (), ""):
            assert name in stated, name
    assert set(FORMER_NAMES) <= flags | {"masked"}


def test_eval_has_the_keys_of_its_table_with_their_defaults():
    words = ("eval", "elevater")
    stated = {option.name: default for option, default in stated_defaults(words)}
    flags = {option.name for option in EVERY[words].params}
    for name, key in Eval.schema_keys().items():
        assert (name in flags) == bool(key.flag)
        if key.flag and key.default not in (None, False, ()):
            assert stated[name].partition(";")[0] == str(key.default), name


def test_eval_has_every_metric_and_decoder():
    keys = Eval.schema_keys()
    assert set(keys["metric"].choices) == set(METRICS)
    assert keys["decoder"].choices == Extract.schema_keys()["decoder"].choices


def test_the_reference_page_is_what_the_schema_says():
    text = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
    assert text == page(), "run: python -m dimefm.recipe > docs/recipes.md"
    for keys in (KEYS, Extract.schema_keys(), Eval.schema_keys()):
        for name in keys:
            assert f"\n| `{name}` | " in text

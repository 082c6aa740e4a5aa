"""``--help`` of every command: no option is lost among the sections, and no line of a list of
commands is cut off.
"""

import click
import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.cli._options import ManyValues


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

"""What ``ManyValues`` makes of a command line."""

import ast

import click
import pytest
from click.testing import CliRunner

from dimefm.cli._options import ManyValues


@click.command(cls=ManyValues)
@click.option("--images", multiple=True)
@click.option("--text-list", multiple=True)
@click.option("--steps", type=int)
@click.option("--resume", is_flag=True)
def command(**values):
    click.echo(
        repr({name: value for name, value in values.items() if value not in (None, (), False)})
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--images a b c", {"images": ("a", "b", "c")}),
        ("--images=a b c", {"images": ("a", "b", "c")}),
        ("--images=a --images b c", {"images": ("a", "b", "c")}),
        ("--images=a b --steps=3", {"images": ("a", "b"), "steps": 3}),
        (
            "--images a --resume --text_list=x=1 y=2",
            {"images": ("a",), "text_list": ("x=1", "y=2"), "resume": True},
        ),
        ("--images a-b - c", {"images": ("a-b", "-", "c")}),
    ],
)
def test_many_values_after_one_flag(words, expected):
    result = CliRunner().invoke(command, words.split())
    assert result.exit_code == 0, result.output
    assert ast.literal_eval(result.output) == expected


@pytest.mark.parametrize("words", ["--steps=3 4", "--resume a", "a --images b"])
def test_a_value_that_no_flag_takes_is_bad_usage(words):
    assert CliRunner().invoke(command, words.split()).exit_code == 2

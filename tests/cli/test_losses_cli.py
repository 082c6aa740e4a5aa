"""``dimefm losses``: every term with what it needs, its options, its learnt parts and its
source.
"""

import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.losses import options_of, resolve, terms


def said(*words):
    result = CliRunner().invoke(main, ["losses", *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_lists_every_term_with_all_that_a_recipe_must_know():
    *found, explained = said().strip().split("\n\n")
    blocks = dict(block.split("\n", 1) for block in found)
    assert list(blocks) == terms()
    needs = {need for line in explained.splitlines()[1:] for need in line[:18].strip().split(", ")}
    assert needs >= set().union(*(resolve(name, {}).needs for name in terms()))
    for name, block in blocks.items():
        term, lines = resolve(name, {}), [line.strip() for line in block.splitlines()]
        assert lines[0].endswith((".", "?"))
        assert lines[-1].startswith("Source: ")
        fields = dict(line.split(": ", 1) for line in lines[1:-1])
        assert set(fields["needs"].split(", ")) == set(term.needs)
        assert [
            word.split(" = ")[0] for word in fields.get("options", "").split(", ") if word
        ] == list(options_of(term))
        assert fields.get("modules", "") == ", ".join(term.uses_modules)


def test_describes_named_terms_in_full():
    text = said("clip_kd.gd", "tinyclip.affinity")
    assert "temperature = 'code' or 'paper'" in text
    assert "teacher_scale = none" in text
    assert '``temperature = "paper"`` mends that' in " ".join(text.split())


@pytest.mark.parametrize(
    ("word", "line"), [("clip_kd.gdd", "unknown loss 'clip_kd.gdd': did you mean 'clip_kd.gd'?")]
)
def test_an_unknown_term_is_one_line(word, line):
    result = CliRunner().invoke(main, ["losses", word])
    assert result.exit_code == 1
    assert result.output.strip() == f"Error: {line}"

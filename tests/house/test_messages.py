"""Errors say what to do: "Fix: ...", "did you mean ...", or the value that was expected."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dimefm"
ERRORS = {"DataError", "CacheError", "ModelError", "RecipeError", "DimefmError"}
ANSWERS = ("Fix:", "expected")
ASKING_BACK = {"did_you_mean", "unknown", "unknown_key"}


def messages(path):
    """Yield (line, literal words, names of what is called or shown) of each error that is made."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Raise | ast.Return):
            continue
        error = node.exc if isinstance(node, ast.Raise) else node.value
        is_ours = isinstance(error, ast.Call) and isinstance(error.func, ast.Name)
        if not is_ours or error.func.id not in ERRORS:
            continue
        words = ""
        names = set()
        for part in ast.walk(error):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                words += part.value
            elif isinstance(part, ast.Name):
                names.add(part.id)
            elif isinstance(part, ast.Attribute):
                names.add(part.attr)
        yield node.lineno, words, names


PASSED_ON = {"error", "reason", "fault", "faults", "remedy", "hint", "why", "first", "reason_of"}
"""Names of texts that another message, which says what to do, is made from."""


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_an_error_says_what_to_do(path):
    silent = []
    for line, words, names in messages(path):
        is_answered = any(answer in words for answer in ANSWERS)
        if not is_answered and not names & (ASKING_BACK | PASSED_ON):
            silent.append((line, words))
    assert silent == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_a_remedy_is_not_hidden_behind_a_semicolon(path):
    hidden = []
    for line, words, _ in messages(path):
        for verb in ("mend", "give", "name", "choose", "leave", "use", "pass", "extract", "remove"):
            if f"; {verb} " in words and "Fix:" not in words:
                hidden.append((line, words))
    assert hidden == []

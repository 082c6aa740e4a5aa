"""Code is airy: one thought a line.

The density of a module is its number of AST nodes with a place in the text, for each line of code.
Blank lines, comments and docstrings are no lines of code. Modules below 15 lines are left out.
"""

import ast
import statistics
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dimefm"
CEILING = 8.0
MEDIAN = 6.0
LEAST_LINES = 15


def lines_of_docstrings(tree):
    """Return the numbers of the lines that stand-alone strings cover."""
    numbers = set()
    for node in ast.walk(tree):
        is_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_string and isinstance(node.value.value, str):
            numbers.update(range(node.lineno, node.end_lineno + 1))
    return numbers


def density(text):
    """Return (nodes a line, lines of code) of a module."""
    tree = ast.parse(text)
    docstrings = lines_of_docstrings(tree)
    lines = 0
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#") and number not in docstrings:
            lines += 1
    nodes = sum(hasattr(node, "lineno") for node in ast.walk(tree))
    return nodes / max(lines, 1), lines


MODULES = {}
for path in sorted(PACKAGE.rglob("*.py")):
    value, lines = density(path.read_text(encoding="utf-8"))
    if lines >= LEAST_LINES:
        MODULES[str(path.relative_to(PACKAGE))] = value


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_too_dense(name):
    assert MODULES[name] <= CEILING


def test_the_median_module_is_airy():
    assert statistics.median(MODULES.values()) <= MEDIAN


def test_dense_code_is_seen():
    airy = "name = 1\nother = 2\n"
    dense = "value = [a + b * c for a, b in zip(x, y) if a and (b or c) for c in (d, e, f)]\n"
    assert density(airy) == (3.0, 2)  # an assignment, a name and a number in each line
    assert density(dense)[0] > 3 * CEILING / 2

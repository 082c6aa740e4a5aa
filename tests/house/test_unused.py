"""No name stays at the top of a module of the package when nothing in the package uses it."""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "dimefm"


def used(tree):
    """Yield every name that is read in a module: bare, after a dot, imported, or as a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def defined(tree):
    """Yield every name that a module defines at its top: functions, classes and variables."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                        yield name.id


def unused(texts):
    """Return the (module, name) that no module of ``texts`` (module -> source) uses."""
    trees = {module: ast.parse(text) for module, text in texts.items()}
    uses = Counter(name for tree in trees.values() for name in used(tree))
    return [
        (module, name)
        for module, tree in trees.items()
        for name in defined(tree)
        if not uses[name] and not name.startswith("__")
    ]


def test_every_name_of_the_package_is_used_in_it():
    """A name that only tests or benchmarks use is unused: what they measure is what users run."""
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 50
    assert unused({str(path): path.read_text(encoding="utf-8") for path in paths}) == []


def test_unused_names_are_found():
    one = "A, B = 1, 2\nC: int = A\n\ndef f():\n    g = C\n\ndef h(): ...\n\nclass D: ...\n"
    two = "from one import h\nimport one\n\n__all__ = ['D']\none.E\n"
    assert unused({"one": one, "two": two}) == [("one", "B"), ("one", "f")]

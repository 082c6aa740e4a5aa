"""Imports point one way, without exceptions: from the command line down to the errors, and no two
modules in a circle.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dimefm"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors"},
    {"runtime"},
    {"storage"},
    {"recipe", "plugins"},
    {"runs", "losses", "cache"},
    {"data"},
    {"models", "curate"},
    {"extract"},
    {"evaluate"},
    {"train", "export", "eval"},  # eval: names of an earlier layout
    {"experiment"},
    {"quickstart"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
TOP_LEVEL_MODULES = 8


def module_name(path: Path) -> str:
    """Return the dotted name of the module that a file holds."""
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


NAMES = {module_name(path) for path in MODULES}


def part_of(path: Path) -> str:
    """Return the top-level part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the absolute module names that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in NAMES else node.module)
    return names


def imports_between_modules() -> dict[str, set[str]]:
    """Return which modules of the package each of its modules imports."""
    graph = {}
    for path in MODULES:
        name = module_name(path)
        graph[name] = (imported(path) & NAMES) - {name}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the names along one circle of ``graph``, none when there is no circle."""
    finished: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in finished:
            return []
        for target in sorted(graph[name]):
            circle = visit(target, [*trail, name])
            if circle:
                return circle
        finished.add(name)
        return []

    for name in sorted(graph):
        circle = visit(name, [])
        if circle:
            return circle
    return []


def test_every_part_has_its_place():
    parts = {part_of(path) for path in MODULES} - {"__init__"}
    assert parts <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    part = part_of(path)
    for name in imported(path):
        target = name.split(".")[1] if name.startswith("dimefm.") else None
        if part != "__init__" and target in RANK and target != part:
            assert RANK[target] < RANK[part], f"{path.name} ({part}) imports {name}"


def test_no_modules_import_each_other_in_a_circle():
    assert circle_in(imports_between_modules()) == []


def test_a_circle_is_seen():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_few_modules_stand_at_the_top_level():
    modules = [path.name for path in PACKAGE.glob("*.py")]
    assert len(modules) <= TOP_LEVEL_MODULES, modules


def test_nobody_imports_the_command_line():
    guilty = [
        path
        for path in MODULES
        if part_of(path) not in ("cli", "__main__")
        and any("dimefm.cli" in n for n in imported(path))
    ]
    assert not guilty


@pytest.mark.parametrize(
    "part",
    [
        "cache",
        "evaluate/metrics.py",
        "evaluate/retrieval.py",
        "evaluate/classifier.py",
        "errors.py",
        "plugins.py",
        "recipe",
    ],
)
def test_numbers_without_torch(part):
    target = PACKAGE / part
    for path in sorted(target.rglob("*.py")) if target.is_dir() else [target]:
        assert not {
            name for name in imported(path) if name.split(".")[0] in ("torch", "open_clip", "timm")
        }, path


def test_losses_import_torch_only():
    allowed = {"torch", "dimefm", *sys.stdlib_module_names}
    for path in (PACKAGE / "losses").glob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= allowed, path


@pytest.mark.parametrize(
    "statement",
    [
        "import dimefm",
        "import dimefm.recipe; dimefm.recipe.read()",
        "import dimefm.cli; dimefm.cli.main(['--help'], standalone_mode=False)",
        "import dimefm.cli; dimefm.cli.main(['train', '--help'], standalone_mode=False)",
    ],
)
def test_starting_is_light(statement):
    heavy = "{'torch', 'pyarrow', 'open_clip', 'h5py'} & set(sys.modules)"
    check = f"{statement}; import sys; found = {heavy}; assert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)

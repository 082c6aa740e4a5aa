"""Imports point one way (DESIGN: cli -> verbs -> models, data, eval -> losses, cache -> plugins, errors)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dimefm"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors", "plugins", "progress", "provenance", "remote", "share"},
    {"cache", "losses", "recipe"},
    {"data", "models", "eval"},
    {"neighbours"},
    {"training", "stages"},
    {"stream", "token_stage"},
    {"pipeline", "token_scores"},
    {"extract", "pack", "train"},
    {"evaluate", "estimate", "recheck", "engines"},
    {"quickstart", "monitor", "compare_runs"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


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
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_part_has_its_place():
    parts = {part_of(path) for path in MODULES} - {"__init__"}
    assert parts == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    here = part_of(path)
    for name in imported(path):
        there = name.split(".")[1] if name.startswith("dimefm.") else None
        if here != "__init__" and there in RANK and there != here:
            assert RANK[there] <= RANK[here], f"{path.name} ({here}) imports {name}"


def test_nobody_imports_the_command_line():
    guilty = [
        path
        for path in MODULES
        if part_of(path) not in ("cli", "__main__") and any("dimefm.cli" in n for n in imported(path))
    ]
    assert not guilty


@pytest.mark.parametrize(
    "part", ["cache", "eval/metrics.py", "eval/retrieval.py", "eval/zero_shot.py", "errors.py", "plugins.py", "recipe.py"]
)
def test_numbers_without_torch(part):
    target = PACKAGE / part
    for path in sorted(target.rglob("*.py")) if target.is_dir() else [target]:
        assert not {name for name in imported(path) if name.split(".")[0] in ("torch", "open_clip", "timm")}, path


def test_losses_import_torch_only():
    allowed = {"torch", "dimefm", *sys.stdlib_module_names}
    for path in (PACKAGE / "losses").glob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= allowed, path


@pytest.mark.parametrize(
    "statement", ["import dimefm", "import dimefm.cli; dimefm.cli.main(['--help'], standalone_mode=False)"]
)
def test_starting_is_light(statement):
    heavy = "{'torch', 'pyarrow', 'open_clip', 'h5py'} & set(sys.modules)"
    check = f"{statement}; import sys; found = {heavy}; assert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)

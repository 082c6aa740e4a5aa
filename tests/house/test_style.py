"""Rules of the house that a linter does not know."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "dimefm").rglob("*.py"))
BESIDE = [
    path for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
]
LINES = 500
COLUMNS = 100
TEXTS = [
    p
    for p in ROOT.rglob("*")
    if p.suffix in (".py", ".md", ".toml", ".cfg", ".ini", ".list") and ".tox" not in p.parts
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_and_functions_are_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert lines <= 80, f"{node.name} has {lines} lines"


def test_modules_of_tests_and_benchmarks_are_small_too():
    lines = {relative(path): path.read_text(encoding="utf-8").count("\n") for path in BESIDE}
    assert {name: count for name, count in lines.items() if count > LINES} == {}
    assert len(lines) > 100


def test_lines_are_narrow():
    wide = []
    for path in [*MODULES, *BESIDE]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) > COLUMNS:
                wide.append(f"{relative(path)}:{number}")
    assert wide == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "module"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if not public:
            continue
        assert ast.get_docstring(node), node.name
        inherits = isinstance(node, ast.ClassDef) and node.bases
        for inner in node.body if isinstance(node, ast.ClassDef) and not inherits else []:
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                assert ast.get_docstring(inner), f"{node.name}.{inner.name}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_drawers_for_everything(path):
    assert path.stem not in ("utils", "util", "misc", "helpers", "common") and not re.search(
        r"v\d$", path.stem
    )


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_is_left_for_later(path):
    assert not re.search(
        r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", path.read_text(encoding="utf-8")
    )


def test_nothing_unpickles():
    guilty = [
        p
        for p in MODULES
        if re.search(
            r"\bpickle\b|allow_pickle=True|weights_only=False", p.read_text(encoding="utf-8")
        )
    ]
    allowed = [ROOT / "dimefm/train/checkpoint.py"]  # says in its docstring that it does without
    assert [path for path in guilty if path not in allowed] == []


def test_nothing_starts_a_shell():
    assert not [
        p
        for p in MODULES
        if re.search(r"os\.system|shell=True|subprocess", p.read_text(encoding="utf-8"))
    ]


def test_images_are_opened_in_one_place():
    """``data/images/decode.py`` opens them, by a list of formats; any other way might start a
    program.
    """
    ways = re.compile(r"Image\.open\(|\bimread\(|imdecode\(|read_image\(|decode_image\(")
    guilty = {
        relative(path): count
        for path in MODULES
        if (count := len(ways.findall(path.read_text(encoding="utf-8"))))
    }
    assert guilty == {"dimefm/data/images/decode.py": 1}


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(home|root|Users|work)/\w")
    assert not [
        relative(p)
        for p in TEXTS
        if "tests" not in p.parts and pattern.search(p.read_text(encoding="utf-8"))
    ]

"""The documentation is true: every command is described, every link leads somewhere, the README's
session runs.
"""

import dataclasses
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.int8 import QuantizerFitter
from dimefm.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def commands(group: click.Group, prefix: str = "dimefm"):
    """Yield (full name, command) of every command below ``group``."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        yield f"{prefix} {name}", found
        if isinstance(found, click.Group):
            yield from commands(found, f"{prefix} {name}")


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name):
    assert any(name in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name):
    command = COMMANDS[name]
    assert command.help
    assert isinstance(command, click.Group) or "Example:" in command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help or isinstance(option.type, click.Choice) or option.metavar, (
                option.name
            )


def readme_options() -> list[tuple[str, str]]:
    """Return (command, option) for each option that a page uses."""
    found = []
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            name = next(
                (
                    name
                    for name in sorted(COMMANDS, key=len, reverse=True)
                    if line.startswith(name + " ")
                ),
                None,
            )
            if name:
                found += [(name, option) for option in re.findall(r"(?<= )--[a-z0-9-]+", line)]
    return sorted(set(found))


@pytest.mark.parametrize(("name", "option"), readme_options())
def test_documented_options_exist(name, option):
    assert option in {
        flag
        for parameter in COMMANDS[name].params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_the_reader_on_the_format_page_reads_what_ours_reads(dtype, tmp_path):
    text = (ROOT / "docs/cache-format.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(
        compile(re.search(r"```python\n(.*?)```", text, re.S)[1], "cache-format.md", "exec"), names
    )
    rows = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    fit = QuantizerFitter(9)
    fit.add(rows)
    header = Manifest(
        "image", "hdf5", "float32", 5, False, EncoderCard("any", None, 5, 1.0), {}, {}
    )
    if dtype == "int8":
        header = dataclasses.replace(
            header,
            code=fit.code().fields(),
            quantization_error=fit.quantization_error(fit.code(), 1.0),
        )
    writer = CacheWriter(
        tmp_path, dataclasses.replace(header, dtype=dtype), [("a", 4), ("b", 0), ("c", 5)]
    )
    for name, part in (("a", rows[:4]), ("b", rows[:0]), ("c", rows[4:])):
        writer.write(name, [f"{name}{i}" for i in range(len(part))], part)
    writer.seal()
    cache = FeatureCache(tmp_path)
    for number in range(9):
        np.testing.assert_allclose(names["row"](tmp_path, number), cache[number], rtol=0, atol=1e-6)


@pytest.fixture
def beside_the_quickstart(quickstarted, tmp_path, monkeypatch):
    """Work in an empty folder that has the quickstart's folder in it."""
    (tmp_path / "quickstart").symlink_to(quickstarted)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_session_of_the_cache_page_runs(beside_the_quickstart):
    text = (ROOT / "docs/cache.md").read_text(encoding="utf-8")
    session = []
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        session += [line.removeprefix("$ ") for line in block.splitlines()]
    assert len(session) > 4
    for line in session:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert (beside_the_quickstart / "scores/first/scores.json").exists()


def test_the_python_page_runs(beside_the_quickstart, capsys):
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    names: dict = {}
    for snippet in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(snippet, "python.md", "exec"), names)
    assert (beside_the_quickstart / "python/cache/images/manifest.json").exists()
    assert (beside_the_quickstart / "python/run/run.json").exists()
    assert (beside_the_quickstart / "python/scores/scores.json").exists()
    assert {
        result.dataset
        for result in names["dimefm"].evaluate(
            names["run"], "quickstart/data/eval", datasets=["digits"], device="cpu"
        )
    } == {"digits"}
    assert "digits {'accuracy'" in capsys.readouterr().out

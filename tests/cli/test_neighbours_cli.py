"""``dimefm cache neighbours`` as a user calls it."""

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.curate.neighbours import Neighbours


def dimefm(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def cache(tmp_path):
    """Return an adopted cache of 60 rows, row 1 like row 0."""
    rows = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    rows[1] = rows[0]
    np.save(tmp_path / "rows.npy", rows)
    dimefm(
        "cache",
        "adopt",
        tmp_path / "rows.npy",
        "--kind",
        "text",
        "--normalize",
        "--out",
        tmp_path / "cache",
    )
    return tmp_path / "cache"


def test_neighbours_are_written_and_described(cache, tmp_path):
    output = dimefm("cache", "neighbours", cache, "--out", tmp_path / "nn", "--k", 3, "--report")
    assert (
        "60 text rows, up to 3 neighbours each" in output
        and "60 rows have 3" in output
        and "exact" in output
    )
    assert next(line for line in output.splitlines() if "cosine > 0.9999" in line).split()[3:] == [
        "2",
        "3.3%",
    ]
    made = Neighbours(tmp_path / "nn")
    assert made.ids.shape == (60, 3) and 1 not in made.ids[0]
    assert dimefm(
        "cache", "neighbours", cache, "--out", tmp_path / "nn", "--k", 3, "--report"
    ).endswith(output[-200:])


def test_the_keys_of_a_report_are_one_line_each(tmp_path):
    rows = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    keys = ["a\x1b[2J", "x" * 200, "\u65e5\u672c", "b", "c", "d"]
    (tmp_path / "keys.txt").write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    np.save(tmp_path / "rows.npy", rows)
    source = (tmp_path / "rows.npy", "--keys", tmp_path / "keys.txt", "--kind", "text")
    dimefm("cache", "adopt", *source, "--normalize", "--out", tmp_path / "cache")
    out = ("--out", tmp_path / "nn", "--k", 2, "--report")
    output = dimefm("cache", "neighbours", tmp_path / "cache", *out)
    listed = output.split("nearest neighbours\n")[1]
    assert "'a\\u001b[2J'" in listed and "'\u65e5\u672c'" in listed and "\x1b" not in listed
    assert f"'{'x' * 60} ...'" in listed


def test_wrong_use_is_one_line(cache, tmp_path):
    out = ("--out", tmp_path / "nn")
    output = dimefm(
        "cache", "neighbours", cache, *out, "--min-cosine", 0.9, "--max-cosine", 0.5, code=2
    )
    assert "expected -1 <= min < max <= 1" in output
    assert "no manifest.json" in dimefm("cache", "neighbours", tmp_path / "none", *out, code=1)
    dimefm("cache", "neighbours", cache, *out, "--k", 3)
    assert "k: 4 against 3" in dimefm("cache", "neighbours", cache, *out, "--k", 4, code=1)


def test_an_interrupt_says_that_nothing_is_kept(cache, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dimefm.curate.neighbours.search.Searcher.search", interrupted)
    assert "starts again" in dimefm(
        "cache", "neighbours", cache, "--out", tmp_path / "nn", code=130
    )
    assert not (tmp_path / "nn").exists()

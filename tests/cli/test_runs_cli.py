"""``dimefm runs``: curves and tables of runs, finished or not, and folders that are no runs."""

import csv
import io
import json
import tomllib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main
from dimefm.recipe import Recipe
from dimefm.runs.compare import COLOURS, differences, read_run, read_runs, scores, table


def dimefm(*words):
    return CliRunner().invoke(main, ["runs", *map(str, words)])


def done(*words):
    result = dimefm(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*words):
    result = dimefm(*words)
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    (line,) = result.stderr.rstrip("\n").split("\n")
    return line


def record(folder, lines=(), finished=None, **settings):
    """Write a run folder with these lines of its log."""
    folder.mkdir(parents=True)
    recipe = Recipe(losses={"dime.vl": {"weight": 0.7}}).replace(**settings)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "run.json").write_text(json.dumps({"kind": "image-tower", **finished}))
    return folder


def logged(steps, start=3.0, sets=()):
    found = []
    for step in range(10, steps + 1, 10):
        found.append({"step": step, "total": start / step, "rows_per_s": 100.0 + step})
        if sets and step % 20 == 0:
            values = {f"eval/{name}": (step + n) / 100 for n, name in enumerate(sets)}
            found.append(
                {
                    "step": step,
                    **values,
                    "eval/mean": float(np.mean(list(values.values()))),
                    "eval_seconds": 1.0,
                }
            )
    return found


def test_tables_hold_what_differs_and_what_is_known(tmp_path):
    one = record(
        tmp_path / "one",
        logged(40, sets=["cats", "dogs"]),
        {"steps": 45, "parameters": 1234},
        lr=0.001,
    )
    two = record(
        tmp_path / "two",
        logged(30),
        lr=0.1,
        losses={"dime.vl": {"weight": 0.7}, "dime.pvl": {"weight": 0.30000000000000004}},
    )
    compared = read_runs([one, two])
    assert dict((name, values) for name, *values in differences(compared)) == {
        "lr": ["0.001", "0.1"],
        "losses.dime.pvl.weight": ["-", "0.3"],
    }
    assert {name: values for name, *values in scores(compared)} == {
        "state": ["finished", "unfinished"],
        "steps": ["45", "30"],
        "loss": ["0.0750", "0.1000"],
        "rows/s": ["125", "120"],
        "parameters": ["1,234", "-"],
        "best mean": ["40.50", "-"],
        "best after step": ["40", "-"],
        "mean at the end": ["40.50", "-"],
        "cats at the end": ["40.00", "-"],
        "dogs at the end": ["41.00", "-"],
    }
    rows = list(csv.reader(io.StringIO(table(compared))))
    assert ["score", "parameters", "1234", "-"] in rows and ["recipe", "lr", "0.001", "0.1"] in rows
    assert {len(row) for row in rows} == {4}


def test_scores_that_eval_wrote_into_the_run_are_in_the_table(tmp_path):
    run = record(tmp_path / "one", logged(10))
    for place, found in (
        ("scores", {"scores": [{"dataset": "cats", "value": 0.25}]}),
        (
            "found",
            {"at": [1, 5], "scores": [{"direction": "text to image", "recall": [0.5, 0.75]}]},
        ),
    ):
        (run / place).mkdir()
        (run / place / "scores.json").write_text(json.dumps(found))
    said = done("compare", run)
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("scores: cats")] == [
        "25.00"
    ]
    assert [
        line.split()[-1]
        for line in said.splitlines()
        if line.startswith("found: text to image R@5")
    ] == ["75.00"]
    (run / "scores/scores.json").write_text("{}")
    assert "scores/scores.json: cannot be read as scores" in refusal("compare", run)


def colours_of(path):
    """Return which of the palette's colours a picture has in more than a few pixels."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    wanted = {
        colour: np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) for colour in COLOURS
    }
    return {colour for colour, rgb in wanted.items() if (pixels == rgb).all(1).sum() > 60}


def test_a_folder_gets_curves_of_all_runs_and_both_tables(tmp_path):
    folders = [
        record(
            tmp_path / f"run{i}", logged(200 + 20 * i, 2.0 + i, sets=["cats", "dogs"]), lr=0.1 + i
        )
        for i in range(3)
    ]
    said = done("compare", *folders, "--out", tmp_path / "compared")
    assert sorted(path.name for path in (tmp_path / "compared").iterdir()) == [
        "compare.csv",
        "compare.md",
        "compare.png",
    ]
    assert f"written: {tmp_path / 'compared/compare.png'}" in said
    assert set(COLOURS[:3]) <= colours_of(tmp_path / "compared/compare.png")
    page = (tmp_path / "compared/compare.md").read_text()
    assert "| lr | 0.1 | 1.1 | 2.1 |" in page and "| best mean | 200.50 | 220.50 | 240.50 |" in page
    done("compare", folders[0], "--out", tmp_path / "alone.png")
    assert COLOURS[1] not in colours_of(tmp_path / "alone.png")


def test_a_run_named_twice_is_one_and_equal_names_are_told_apart(tmp_path):
    one, two = record(tmp_path / "a/run", logged(10)), record(tmp_path / "b/run", logged(10))
    assert [run.name for run in read_runs([one, one])] == ["run"]
    assert [run.name for run in read_runs([one, two])] == [str(one), str(two)]
    assert "The recipes are the same." in done("compare", one, two)


def test_settings_are_those_of_the_recipe_and_defaults_where_an_older_one_says_nothing(tmp_path):
    folder = record(tmp_path / "old", logged(10))
    kept = tomllib.loads((folder / "recipe.toml").read_text())
    (folder / "recipe.toml").write_text("steps = 7\n")
    assert read_run(folder).settings["steps"] == 7
    assert read_run(folder).settings["batch_size"] == kept["batch_size"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "recipe.toml",
            None,
            "no run folder, for it has no recipe.toml. Fix: name a folder that dimefm train wrote",
        ),
        ("recipe.toml", "steps = ", "cannot be read as a run folder"),
        ("log.jsonl", "{]\n{}\n", "cannot be read as a run folder"),
        ("log.jsonl", '{"step": 1}\n[2]\n', "log.jsonl line 2 has no 'step'"),
        ("log.jsonl", '{"total": 1.5}\n', "log.jsonl line 1 has no 'step'"),
        ("run.json", "[]", "run.json: cannot be read"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path, file, content, message):
    folder = record(tmp_path / "run", logged(10))
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    assert message in refusal("compare", folder)


def test_nothing_to_plot_and_nothing_to_list_are_one_line(tmp_path):
    folder = record(tmp_path / "runs/run")
    assert "run: no step is logged yet, so there is nothing to plot" in refusal(
        "compare", folder, "--out", tmp_path / "a.png"
    )
    assert "unfinished" in done("compare", folder)
    assert "unfinished" in done("list", tmp_path / "runs")
    assert "none of its folders is a run" in refusal("list", folder)
    assert "there is no such folder" in refusal("list", tmp_path / "none")


def test_long_values_lose_their_middle_in_a_terminal_only(tmp_path):
    far, word = "/very" * 20, "x" * 60
    one = record(tmp_path / "one", logged(10), images=(f"{far}/one",), texts=(f"{word}1{word}",))
    two = record(tmp_path / "two", logged(10), images=(f"{far}/two",), texts=(f"{word}2{word}",))
    said = done("compare", one, two, "--out", tmp_path / "out")
    assert f"{far}/one" not in said
    assert "/very/very/very/ve .. very/very/very/one" in said
    assert f"{word}1{word}" in said  # they differ in the middle
    assert f"{far}/one" in (tmp_path / "out/compare.csv").read_text()
    assert f"{far}/two" in (tmp_path / "out/compare.md").read_text()


def test_a_plot_of_another_kind_is_refused(tmp_path):
    one = record(tmp_path / "one", logged(10))
    said = refusal("compare", one, "--out", tmp_path / "curves.JPG")
    assert said.endswith(
        "curves.JPG: the plot is a PNG. Fix: give a name that ends in .png, or a folder"
    )
    assert not (tmp_path / "curves.JPG").exists()

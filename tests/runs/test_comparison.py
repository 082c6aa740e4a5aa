"""Scores of runs are found wherever they lie, seeds become mean ± deviation, and tables for a paper
have the best in bold.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.errors import DataError
from dimefm.models.loading import load_encoder
from dimefm.recipe import Recipe
from dimefm.runs.compare import Comparison, for_paper, read_runs, table, text
from dimefm.runs.scored import Key, values_of
from dimefm.runs.scores import Result, Scores, write_scores
from dimefm.runs.weights import weights_of

BEFORE = Path(__file__).parents[1] / "data/before"


def run_at(folder, **settings):
    folder.mkdir(parents=True)
    recipe = Recipe(losses={"dime.vl": {"weight": 0.7}}).replace(**settings)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    return folder


def scores_at(folder, values, weights=None, model="m", task="zero-shot", metric="accuracy", **more):
    """Write the general form of scores: dataset -> value."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [
        Result(task, name, {metric: value}, metric, 10, **more) for name, value in values.items()
    ]
    write_scores(folder, Scores(model, weights, "protocol", results), "report")
    return folder


def cells(rows):
    return {name: list(values) for name, *values in rows}


@pytest.fixture
def seeds(tmp_path):
    """Three seeds of a recipe and one run of another."""
    folders = []
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        folder = run_at(tmp_path / f"runs/vit-seed{seed}", seed=seed, lr=0.1)
        scores_at(folder / "scores", {"cats": value, "dogs": 0.9})
        folders.append(folder)
    other = run_at(tmp_path / "runs/other", lr=0.2)
    scores_at(other / "scores", {"cats": 0.65, "dogs": 0.8})
    return [*folders, other]


def test_seeds_are_one_column_with_mean_and_deviation(seeds):
    comparison = Comparison.of(read_runs(seeds))
    assert comparison.names == ["vit (n=3)", "other"]
    found = cells(comparison.figures())
    assert found["scores: cats"] == ["60.00 ± 10.00", "65.00"]
    assert found["scores: dogs"] == ["90.00", "80.00"]
    assert cells(comparison.recipes()) == {"lr": ["0.1", "0.2"], "seed": ["0, 1, 2", "0"]}
    cell = comparison.columns()[0].cells[Key("zero-shot", "cats", "accuracy")]
    assert (cell.mean, cell.deviation, cell.n) == pytest.approx(
        (60, np.std([50, 60, 70], ddof=1), 3)
    )


def test_equal_seeds_and_other_differences_stay_apart(tmp_path):
    one = run_at(tmp_path / "a", seed=1)
    again = run_at(tmp_path / "b", seed=1)
    more = run_at(tmp_path / "c", seed=2, lr=0.5)
    assert Comparison.of(read_runs([one, again, more])).names == ["a", "b", "c"]
    slower = run_at(tmp_path / "d", seed=3, workers=7)
    assert Comparison.of(read_runs([one, slower])).names == ["a (n=2)"]


def test_a_seed_without_a_score_is_said_to_be(seeds):
    shutil.rmtree(seeds[0] / "scores")
    comparison = Comparison.of(read_runs(seeds))
    assert cells(comparison.figures())["scores: cats"][0] == "65.00 ± 7.07 (n=2)"
    assert "65.00 $\\pm$ 7.07 (n=2)" in for_paper(comparison, "latex")


def test_the_best_is_bold_as_it_is_printed(seeds, tmp_path):
    scores_at(tmp_path / "best", {"cats": 0.65004, "birds": 0.1}, model="ViT-B-32/openai")
    comparison = Comparison.of(read_runs(seeds), [tmp_path / "best"])
    lines = for_paper(comparison, "markdown").splitlines()
    assert lines == [
        "| model | cats | dogs | birds |",
        "|---|---:|---:|---:|",
        "| vit (n=3) | 60.00 ± 10.00 | **90.00 ± 0.00** | - |",
        "| other | **65.00** | 80.00 | - |",
        "| ViT-B-32/openai | **65.00** | - | 10.00 |",
    ]
    turned = for_paper(comparison, "markdown", transposed=True).splitlines()
    assert turned[0] == "| model | vit (n=3) | other | ViT-B-32/openai |"
    assert turned[2] == "| cats | 60.00 ± 10.00 | **65.00** | **65.00** |"


@pytest.mark.parametrize(
    ("metric", "best"), [("accuracy", "70.00"), ("calibration error", "30.00")]
)
def test_less_is_better_for_errors(metric, best, tmp_path):
    for name, value in (("one", 0.3), ("two", 0.7)):
        scores_at(tmp_path / name, {"cats": value}, weights=name, model=name, metric=metric)
    page = for_paper(Comparison.of([], [tmp_path]), "markdown")
    assert re.findall(r"\*\*(.*?)\*\*", page) == [best]


def test_latex_has_the_rules_of_booktabs_and_escapes(tmp_path):
    scores_at(tmp_path / "a", {"50%_off & more": 0.5}, weights="a", model="x_{1}\\y")
    scores_at(tmp_path / "b", {"50%_off & more": 0.25}, weights="b", model="#2~^$")
    lines = for_paper(Comparison.of([], [tmp_path]), "latex").splitlines()
    assert lines[1:] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"model & 50\%\_off \& more \\",
        r"\midrule",
        r"x\_\{1\}\textbackslash{}y & \textbf{50.00} \\",
        r"\#2\textasciitilde{}\textasciicircum{}\$ & 25.00 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize("name", ["text", "pairs", "image", "free"])
def test_the_digest_of_a_run_is_that_of_its_encoder(name, monkeypatch):
    monkeypatch.chdir(BEFORE)
    run = Path("runs", name)
    assert weights_of(run) == load_encoder(str(run), "cpu").card.weights_sha256


def test_scores_are_matched_by_weights_wherever_they_lie(tmp_path):
    run = tmp_path / "runs/student"
    shutil.copytree(BEFORE / "runs/image", run)
    for file in run.rglob("scores.json"):
        file.unlink()
    weights = weights_of(run)
    assert weights is not None
    scores_at(tmp_path / "runs/its scores", {"beside": 0.5}, weights)
    scores_at(tmp_path / "runs/of another", {"not mine": 0.5}, "ab" * 32)
    (tmp_path / "runs/game").mkdir()
    (tmp_path / "runs/game/scores.json").write_text("[{]")
    scores_at(tmp_path / "far/away/deep", {"given": 0.25}, weights)
    scores_at(tmp_path / "far/teacher", {"given": 0.75}, "cd" * 32, model="/models/teacher")
    comparison = Comparison.of(read_runs([run]), [tmp_path / "far"])
    assert comparison.names == ["student", "teacher"]
    found = cells(comparison.figures())
    assert found["given"] == ["25.00", "75.00"]
    assert found["beside"] == ["50.00", "-"]
    assert "not mine" not in found
    with pytest.raises(DataError, match="cannot be read as scores"):
        Comparison.of(read_runs([run]), [tmp_path / "runs/game"])
    weights_file = next(run.glob("*.safetensors"))
    weights_file.write_bytes(weights_file.read_bytes()[:-9])
    assert weights_of(run) is None


FORMS = {
    "zero-shot": (
        {"scores": [{"dataset": "cats", "value": 0.5, "metric": "accuracy"}], "mean": 0.5},
        {"cats": 0.5},
    ),
    "zero-shot of several": (
        {"scores": [{"dataset": "a", "value": 0.5}, {"dataset": "b", "value": 0.7}], "mean": 0.6},
        {"a": 0.5, "b": 0.7, "mean": 0.6},
    ),
    "two caches": (
        {"at": [1, 5], "scores": [{"direction": "text to image", "recall": [0.5, 0.75]}]},
        {"T→I R@1": 0.5, "T→I R@5": 0.75},
    ),
    "general": (
        {
            "results": [
                {
                    "task": "retrieval, first caption",
                    "dataset": "coco",
                    "metrics": {"text to image R@1": 0.5, "image to text R@1": 0.75},
                    "main_metric": "text to image R@1",
                }
            ],
            "summary": {"mean recall": 0.625},
        },
        {
            "coco T→I R@1 (first caption)": 0.5,
            "coco I→T R@1 (first caption)": 0.75,
            "coco mean recall (first caption)": 0.625,
        },
    ),
    "another task": (
        {
            "results": [
                {
                    "task": "linear probe",
                    "dataset": "cats",
                    "metrics": {"accuracy": 0.5, "other": 0.1},
                    "main_metric": "accuracy",
                }
            ]
        },
        {"cats (linear probe)": 0.5},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_scores_is_read(name, tmp_path):
    content, expected = FORMS[name]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    found = {key.label: value for key, value in values_of(tmp_path / "scores.json")}
    assert found == expected


def test_two_values_of_one_score_are_said_to_be(tmp_path):
    scores_at(tmp_path / "a", {"cats": 0.5}, "ab" * 32)
    scores_at(tmp_path / "b", {"cats": 0.25}, "ab" * 32)
    comparison = Comparison.of([], [tmp_path])
    assert "several scores of cats" in text(comparison)
    assert "50.00" in for_paper(comparison, "markdown")


def test_no_scores_are_one_line(tmp_path):
    run = run_at(tmp_path / "run")
    with pytest.raises(DataError, match="no scores were found"):
        for_paper(Comparison.of(read_runs([run])), "latex")
    with pytest.raises(DataError, match="no scores.json there"):
        Comparison.of(read_runs([run]), [tmp_path / "absent"])


def test_models_are_called_by_the_end_of_their_path_where_that_is_enough(tmp_path):
    names = {"a/b/one": "one", "ViT-B-32/openai": "ViT-B-32/openai", "x/y/two": "x/y/two"}
    names["/z/two"] = "/z/two"
    for number, spec in enumerate(names):
        scores_at(tmp_path / str(number), {"cats": 0.5}, str(number), model=spec)
    assert Comparison.of([], [tmp_path]).names == list(names.values())


def test_a_terminal_is_not_made_wider(tmp_path):
    for number in range(9):
        spec = f"a-student-with-a-name-{number}"
        scores_at(tmp_path / spec, {"cats": number / 10}, spec, model=spec)
    said = text(Comparison.of([], [tmp_path]))
    assert max(map(len, said.splitlines())) <= 80
    assert all(f"name-{number}" in said and f"{number}0.00" in said for number in range(1, 9))


def test_the_command_writes_all_tables(seeds, tmp_path):
    for folder in seeds:
        (folder / "log.jsonl").write_text('{"step": 10, "total": 1.5}\n')
    words = ["runs", "compare", *map(str, seeds)]
    scores_at(tmp_path / "teacher", {"cats": 0.9}, "cd" * 32, model="teacher")
    more = ["--scores", str(tmp_path / "teacher")]
    printed = CliRunner().invoke(main, [*words, *more, "--latex"])
    assert printed.exit_code == 0, printed.output
    out = tmp_path / "out"
    result = CliRunner().invoke(main, [*words, *more, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert [column["n"] for column in content["columns"]] == [3, 1, 1]
    assert (out / "compare.tex").read_text() == printed.stdout
    page = (out / "compare.md").read_text()
    assert "| teacher | **90.00** | - |" in page and "## Recipes" in page
    assert "60.00 ± 10.00" in table(Comparison.of(read_runs(seeds)))
    alone = CliRunner().invoke(main, ["runs", "compare", *more, "--markdown"])
    assert alone.stdout.splitlines()[2] == "| teacher | 90.00 |"
    both = CliRunner().invoke(main, [*words, "--latex", "--markdown"])
    assert both.exit_code == 2
    assert CliRunner().invoke(main, ["runs", "compare"]).exit_code == 2

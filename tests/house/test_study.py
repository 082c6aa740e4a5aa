"""The study: its cells can be run, in order of seeds; stopped it goes on, and its table is made of
its results alone.
"""

import dataclasses
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cli import main
from dimefm.errors import DataError, RecipeError
from dimefm.losses import LossConfig, Objective
from dimefm.recipe import read as read_recipe
from dimefm.train.tasks import given
from dimefm.train.trainer import Trainer

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks import _study_report  # noqa: E402
from benchmarks._study_cells import (  # noqa: E402
    FOLDER,
    Cell,
    Group,
    Plan,
    caches_of,
    chosen,
    commands,
    read,
)
from benchmarks._study_report import differences, mean_and_std, percent, report, table  # noqa: E402
from benchmarks._study_run import RESULTS, Runs, prepare, results, todo  # noqa: E402

STUDY = read()
LITTLE = {"scale": 0.016, "share": 0.03}  # 4 steps, 318 images


def plan(out, data=Path("data"), **settings):
    """Return a plan of the whole study."""
    return Plan(settings.pop("study", STUDY), out, data, **{**LITTLE, **settings})


def result(cell, seed, mean, of):
    """Return a result as a run writes it."""
    scores = {"cifar-10": mean / 2, "text to image R@1": mean / 2}
    settings = of.settings(of.study.cells[cell])
    return {
        "cell": cell,
        "seed": seed,
        "mean": mean,
        "scores": scores,
        "seconds": 1.0,
        "cpu_seconds": 1.0,
        "settings": settings,
    }


def append(out, *found):
    with (out / RESULTS).open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in found)


@pytest.mark.parametrize("values", [[0.25, 0.5], [0.1, 0.2, 0.6, 0.61], [0.3, 0.3, 0.3]])
def test_mean_and_standard_deviation_of_a_sample(values):
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(np.mean(values)) and std == pytest.approx(np.std(values, ddof=1))


def test_one_seed_has_no_deviation_and_none_no_mean():
    assert percent([0.5]) == "50.0" and percent([]) == "-"
    assert percent([0.5, 0.52], "+") == "+51.0 ± 1.4" and percent([-0.01], "+") == "-1.0"


def test_differences_are_taken_seed_by_seed():
    ours, base = (
        {seed: {"mean": mean} for seed, mean in each.items()}
        for each in ({0: 0.5, 2: 0.9}, {0: 0.4, 1: 0.1, 2: 0.7})
    )
    assert differences(ours, base) == pytest.approx([0.1, 0.2])
    assert statistics.fmean(differences(ours, base)) != pytest.approx(0.7 - 0.4)


def test_all_cells_run_with_the_first_seed_before_any_runs_with_the_second(tmp_path):
    cells = chosen(STUDY, ["dime", "clip", "fd"])
    assert [(cell.name, seed) for cell, seed in todo(plan(tmp_path), cells, (0, 1))] == [
        ("clip", 0), ("dime", 0), ("fd", 0), ("clip", 1), ("dime", 1), ("fd", 1),
    ]  # fmt: skip


def test_what_has_a_result_with_these_settings_is_left_out(tmp_path):
    ours, cells = plan(tmp_path), chosen(STUDY, ["clip", "dime"])
    append(
        tmp_path, result("clip", 0, 0.4, ours), result("dime", 0, 0.4, plan(tmp_path, scale=0.5))
    )
    assert [(cell.name, seed) for cell, seed in todo(ours, cells, (0,))] == [("dime", 0)]
    with (tmp_path / RESULTS).open("a") as file:
        file.write(json.dumps(result("dime", 0, 0.4, ours))[:50])  # the machine went down
    assert [(cell.name, seed) for cell, seed in todo(ours, cells, (0,))] == [("dime", 0)]


@pytest.mark.parametrize("name", STUDY.cells)
def test_a_cell_is_a_recipe_with_losses_that_its_data_allow(name, monkeypatch):
    monkeypatch.chdir(FOLDER)
    cell = STUDY.cells[name]
    recipe = read_recipe(FOLDER / cell.recipe, **cell.changes)
    assert Objective(
        [LossConfig.from_settings(loss, settings) for loss, settings in recipe.losses.items()],
        given=given(recipe),
    )
    assert sum(name in group.cells for group in STUDY.groups) >= 1


@pytest.mark.parametrize("name", STUDY.cells)
def test_a_cell_is_commands_that_the_command_line_takes(name, tmp_path, monkeypatch):
    ours = plan(tmp_path / "out")
    ours.out.mkdir()
    monkeypatch.chdir(ours.out)
    for words in commands(ours, STUDY.cells[name], 1):
        command, words = main.get_command(None, words[0]), words[1:]
        if isinstance(command, click.Group):
            command, words = command.get_command(None, words[0]), words[1:]
        command.make_context("dimefm", words)


def test_the_caches_of_a_cell_come_after_those_that_they_are_made_of(tmp_path):
    ours = plan(tmp_path)
    assert caches_of(ours, chosen(STUDY, ["dime-int8"])) == ["views-8", "own", "int8"]
    assert caches_of(ours, chosen(STUDY, ["text-vl"])) == ["flickr8k"]
    assert set(caches_of(ours, chosen(STUDY, []))) == set(STUDY.caches)


def test_a_name_that_is_no_cell_is_refused():
    with pytest.raises(RecipeError, match="did you mean 'clip-kd-fd'"):
        chosen(STUDY, ["clip-kd-fdd"])


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match="--data names the folder of real sets"):
        prepare(plan(tmp_path / "out", tmp_path), chosen(STUDY, ["clip"]), None, None)


def toy(tmp_path):
    """Return a plan of a group of three cells, with results of three seeds, of two, and of one."""
    cells = {
        name: Cell(name, f"the {name} one", "images.toml", {"lr": lr})
        for name, lr in (("a", 1e-3), ("b", 2e-3), ("c", 3e-3))
    }
    group = Group("g", "Title", "About.", "zero-shot", ("a", "b", "c"), {"c": "b"})
    ours = plan(tmp_path, study=dataclasses.replace(STUDY, cells=cells, groups=(group,)))
    append(
        tmp_path, *(result("a", seed, mean, ours) for seed, mean in enumerate((0.40, 0.42, 0.44)))
    )
    append(
        tmp_path,
        *(result("b", seed, mean, ours) for seed, mean in ((2, 0.50), (0, 0.48))),
        result("c", 2, 0.45, ours),
    )
    return ours


def test_the_table_has_means_deviations_and_differences(tmp_path):
    lines = table(toy(tmp_path)).splitlines()
    assert "| **the a one** | 3 | 42.0 ± 2.0 |  | 21.0 ± 1.0 |  | 1 |  |" in lines
    assert (
        "| **the b one** | 2 | 49.0 ± 1.4 | +7.0 ± 1.4 | 24.5 ± 0.7 | +3.5 ± 0.7 | 1 |  |" in lines
    )
    assert "| the c one | 1 | 45.0 | -5.0 | 22.5 | -2.5 | 1 |  |" in lines
    assert lines[-1] == "6 of 9 runs at scale 0.016."


def test_the_newest_of_two_results_of_one_run_counts(tmp_path):
    ours = toy(tmp_path)
    append(tmp_path, result("a", 1, 0.45, ours))
    assert [seed["mean"] for seed in _study_report.found(ours)["a"].values()] == [0.40, 0.45, 0.44]


class Here:
    """Runs commands in this process; the ``stop``-th training is interrupted after two steps."""

    def __init__(self, monkeypatch, stop=0):
        self.monkeypatch, self.stop, self.trained, self.said = monkeypatch, stop, 0, []

    def __call__(self, words, folder, log):
        with self.monkeypatch.context() as patch:
            patch.chdir(folder)
            self.trained += words[0] == "train"
            if words[0] == "train" and self.trained == self.stop:
                patch.setattr(Trainer, "step", interrupted(Trainer.step))
            outcome = CliRunner().invoke(main, list(words))
        self.said.append(outcome.output)
        if words[0] == "train" and self.trained == self.stop:
            raise KeyboardInterrupt
        assert outcome.exit_code == 0, outcome.output
        return 1.0


def interrupted(real):
    def step(run, number, loading):
        if number == 2:
            raise KeyboardInterrupt
        return real(run, number, loading)

    return step


def test_a_study_that_was_interrupted_goes_on_and_has_one_table(shared_data, tmp_path, monkeypatch):
    few = {name: STUDY.cells[name] for name in ("dime-vl", "fd", "clip")}
    group = Group("g", "Title", "About.", "zero-shot", tuple(few))
    ours = plan(
        tmp_path / "study",
        shared_data,
        study=dataclasses.replace(STUDY, datasets=("sign_digits",), cells=few, groups=(group,)),
    )
    cells, said = chosen(ours.study, ["dime-vl", "fd"]), []
    start = Here(monkeypatch, stop=2)
    prepare(ours, cells, start, said.append)
    with pytest.raises(KeyboardInterrupt):
        Runs(ours, start, said.append)(todo(ours, cells, (0,)), 1)
    assert [found["cell"] for found in results(ours.out)] == ["dime-vl"]
    again = Here(monkeypatch)
    prepare(ours, cells, again, said.append)
    Runs(ours, again, said.append)(todo(ours, cells, (0,)), 1)
    assert again.trained == 1 and "resumed after step 2" in again.said[0]
    assert [found["cell"] for found in results(ours.out)] == ["dime-vl", "fd"]
    assert all(
        0 < found["mean"] < 1 and found["scores"] == {"sign_digits": found["mean"]}
        for found in results(ours.out)
    )
    assert todo(ours, cells, (0,)) == []
    text, plot = report(ours), (ours.out / "study.png").read_bytes()
    assert plot.startswith(b"\x89PNG")
    (ours.out / "study.md").unlink()
    (ours.out / "study.png").unlink()
    assert (
        report(ours) == text == (ours.out / "study.md").read_text()
        and (ours.out / "study.png").read_bytes() == plot
    )
    assert re.search(r"\| CLIP-KD FD, 2000 \| 1 \| [\d.]+ \| [+-][\d.]+ \| - \| - \| 1 \|", text)
    assert "| plain CLIP, no teacher | 0 | - | - | - | - | - |" in text


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on(shared_data, tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.study",
        "--out",
        tmp_path / "study",
        "--data",
        shared_data,
        "--cells",
    ]
    command += [
        "text-vl,view-center",
        "--seeds",
        "0",
        "--jobs",
        "2",
        "--scale",
        "0.02",
        "--share",
        "0.03",
    ]
    words = [str(word) for word in command]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("study/runs/*/checkpoints/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(words, cwd=ROOT, check=True, timeout=600)
    assert sorted(found["cell"] for found in results(tmp_path / "study")) == [
        "text-vl",
        "view-center",
    ]
    before = (tmp_path / "study/study.md").read_text()
    subprocess.run([*words, "--report-only"], cwd=ROOT, check=True, timeout=600)
    assert (tmp_path / "study/study.md").read_text() == before

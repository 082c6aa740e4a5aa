"""What is measured on the way: averaged weights, the best ones, an early end, and all of it after
an interruption.
"""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from dimefm.cli import main
from dimefm.errors import ModelError, RecipeError
from dimefm.train import checkpoint
from dimefm.train.ema import decay_at
from dimefm.train.trainer import Trainer, train

TIMINGS = ("rows_per_s", "data_share", "data_s", "compute_s", "eval_seconds")


def quiet(line):
    """Take a line of progress and say nothing."""


def norm(recipe, teacher):
    """Return a score that is a plain function of the weights, between 0 and 1."""
    return lambda model: {
        "size": float(torch.stack([p.detach().norm() for p in model.parameters()]).sum() % 1)
    }


def rising_until(last):
    """Return a scorer whose scores rise ``last`` times and then fall for ever."""

    def scorer(recipe, teacher):
        asked = []

        def score(model):
            asked.append(model)
            n = len(asked)
            return {"hill": n / 100 if n <= last else 0.0, "plain": 0.0}

        return score

    return scorer


def watched(world, **over):
    """Return a recipe with averaged weights that is measured every other step."""
    return world.recipe(
        **{
            "eval_root": "anywhere",
            "eval_every": 2,
            "ema": 0.9,
            "save_every": 3,
            "steps": 7,
            **over,
        }
    )


def lines(out):
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in found]


def outcome(out):
    """Return everything of a finished run that must not depend on when it was interrupted."""
    newest = checkpoint.checkpoints(out)[-1]
    files = [
        out / "image_tower.safetensors",
        *(newest / name for name in (checkpoint.AVERAGE, checkpoint.STATE)),
    ]
    files += sorted((out / "checkpoints/best").iterdir())
    return (
        [path.read_bytes() for path in files],
        lines(out),
        json.loads((out / "run.json").read_text()),
    )


def test_what_is_written_is_the_average_of_the_weights_after_each_step(world, monkeypatch):
    seen, step = [], Trainer.step

    def watching(self, number, loading):
        values = step(self, number, loading)
        seen.append(
            {
                name: tensor.detach().clone()
                for name, tensor in self.student.model.state_dict().items()
            }
        )
        return values

    monkeypatch.setattr(Trainer, "step", watching)
    out = train(world.recipe(ema=0.4, steps=5, lr=0.01, warmup=0.0), world.root / "run", echo=quiet)
    written = load_file(out / "image_tower.safetensors")
    expected = seen[0]
    for n, weights in enumerate(seen[1:], start=1):
        d = decay_at(n, 0.4)
        expected = {name: d * expected[name] + (1 - d) * weights[name] for name in weights}
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    assert any(
        not torch.allclose(tensor, seen[-1][name], atol=1e-4) for name, tensor in written.items()
    )
    assert json.loads((out / "run.json").read_text())["ema"] == 0.4


@pytest.mark.parametrize(
    "killed_at",
    [pytest.param(3, marks=pytest.mark.slow), 5, pytest.param(6, marks=pytest.mark.slow)],
)
def test_killed_in_the_middle_it_goes_on_with_its_average_and_its_best(
    world, monkeypatch, killed_at
):
    recipe = watched(world, student=str(world.noisy))
    whole = train(recipe, world.root / "whole", echo=quiet, scorer=norm)
    step = Trainer.step

    def dies(self, number, loading):
        if number == killed_at:
            raise KeyboardInterrupt
        return step(self, number, loading)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, world.root / "killed", echo=quiet, scorer=norm)
    assert outcome(
        train(recipe, world.root / "killed", resume=True, echo=quiet, scorer=norm)
    ) == outcome(whole)
    assert [line["step"] for line in lines(whole) if "eval/mean" in line] == [2, 4, 6, 7]


def test_measuring_changes_nothing_of_what_is_learnt(world):
    noisy = {"student": str(world.noisy), "ema": None}
    ours = train(watched(world, **noisy), world.root / "measured", echo=quiet, scorer=norm)
    plain = {**noisy, "eval_root": None, "save_every": 3, "steps": 7}
    theirs = train(world.recipe(**plain), world.root / "plain", echo=quiet)
    ours, theirs = ((out / "image_tower.safetensors").read_bytes() for out in (ours, theirs))
    assert ours == theirs


def test_patience_ends_the_run_as_a_finished_one_with_the_best_weights_noted(world):
    said = []
    recipe = watched(world, steps=40, eval_every=2, patience=3)
    out = train(recipe, world.root / "run", echo=said.append, scorer=rising_until(2))
    record = json.loads((out / "run.json").read_text())
    assert record["steps"] == 10
    assert record["best"] == {
        "at": "checkpoints/best",
        "step": 4,
        "mean": 0.01,
        "scores": {"hill": 0.02, "plain": 0.0},
    }
    assert [line["step"] for line in lines(out) if "eval/mean" in line] == [2, 4, 6, 8, 10]
    best = json.loads((out / "checkpoints/best/run.json").read_text())
    assert (best["steps"], best["best"]["step"], best["kind"]) == (4, 4, "image-tower")
    assert (out / "checkpoints/best/image_tower.safetensors").exists()
    assert (
        "stopped early, evaluations in a row that were no better: 3" in said[-1]
        and "10 steps" in said[-1]
    )
    again = []
    train(recipe, out, resume=True, echo=again.append, scorer=rising_until(2))
    assert again == [
        f"{out}: ended early, evaluations in a row that were no better: 3; a larger --patience"
        " resumes it"
    ]


def test_an_ended_run_goes_on_with_more_patience_as_if_it_had_always_had_it(world):
    out = train(
        watched(world, eval_every=1, steps=9, patience=2),
        world.root / "run",
        echo=quiet,
        scorer=rising_until(1),
    )
    assert json.loads((out / "run.json").read_text())["steps"] == 3
    more = watched(world, eval_every=1, steps=9, patience=5)
    train(more, out, resume=True, echo=quiet, scorer=rising_until(1))
    assert json.loads((out / "run.json").read_text())["steps"] == 6
    longest = more.replace(patience=None)
    train(longest, out, resume=True, echo=quiet, scorer=rising_until(1))
    alone = train(longest, world.root / "alone", echo=quiet, scorer=rising_until(1))
    ours, theirs = ((folder / "image_tower.safetensors").read_bytes() for folder in (out, alone))
    assert ours == theirs
    said = []
    train(longest, out, resume=True, echo=said.append, scorer=rising_until(1))
    assert said == [f"{out}: finished already; nothing to do"]


def test_an_ended_run_without_checkpoints_is_not_begun_anew_in_its_place(world):
    recipe = watched(world, eval_every=1, steps=9, patience=2)
    out = train(recipe, world.root / "run", echo=quiet, scorer=rising_until(1))
    shutil.rmtree(out / "checkpoints")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(
        ModelError, match="finished run without checkpoints to resume. Fix: choose another --out"
    ):
        train(
            recipe.replace(patience=5),
            out,
            resume=True,
            echo=quiet,
            scorer=rising_until(1),
        )
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_patience_that_ends_with_the_last_step_stopped_nothing_early(world):
    said = []
    recipe = watched(world, steps=4, eval_every=2, patience=1)
    out = train(recipe, world.root / "run", echo=said.append, scorer=rising_until(1))
    assert "early" not in said[-1]
    assert "without_improvement" not in json.loads((out / "run.json").read_text())


def test_the_step_that_ends_a_run_is_logged(world):
    recipe = watched(world, eval_every=1, steps=9, patience=2, log_every=2)
    out = train(recipe, world.root / "run", echo=quiet, scorer=rising_until(1))
    assert [line["step"] for line in lines(out) if "total" in line] == [2, 3]


def test_a_run_killed_after_its_patience_ended_takes_no_further_step(world):
    recipe = watched(world, steps=40, patience=1)
    out = train(recipe, world.root / "run", echo=quiet, scorer=rising_until(1))
    before = json.loads((out / "run.json").read_text())
    for name in ("run.json", "image_tower.safetensors"):
        (out / name).unlink()
    train(recipe, out, resume=True, echo=quiet, scorer=rising_until(1))
    assert json.loads((out / "run.json").read_text()) == before


def test_a_recipe_that_is_to_be_measured_needs_what_measures(world):
    with pytest.raises(RecipeError, match="train.. was given no scorer"):
        train(watched(world), world.root / "run", echo=quiet)
    assert not (world.root / "run" / "log.jsonl").exists()


def test_a_run_that_is_still_going_is_compared_with_a_finished_one(world):
    out, half = train(world.recipe(steps=3), world.root / "whole", echo=quiet), world.root / "half"
    half.mkdir()
    (half / "recipe.toml").write_text(
        (out / "recipe.toml").read_text().replace("lr = 0.0008", "lr = 0.5")
    )
    log = (out / "log.jsonl").read_text()
    (half / "log.jsonl").write_text(log[: log.index("\n") + 15])  # as a kill leaves it
    result = CliRunner().invoke(
        main, ["runs", "compare", str(out), str(half), "--out", str(world.root / "two.png")]
    )
    assert result.exit_code == 0, result.output
    found = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    assert (found["state"], found["steps"], found["lr"]) == (
        ["finished", "unfinished"],
        ["3", "1"],
        ["0.0008", "0.5"],
    )
    assert (world.root / "two.png").stat().st_size > 5000

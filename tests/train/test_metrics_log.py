"""The record of a run: which figures a line has, what they mean, and boards that are not
installed.
"""

import importlib.util
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dimefm.errors import RecipeError
from dimefm.losses import Features
from dimefm.recipe import Recipe
from dimefm.train import metrics_log as logs
from dimefm.train.early_stopping import EarlyStopping
from dimefm.train.metrics_log import BAD_ROWS, LOG, Log, diagnostics, forget_after, run_summary


def values(rows=4, waited=0.0, bad=(), total=1.5):
    return {
        "lr": 0.1,
        "rows": rows,
        "waited": waited,
        "bad": list(bad),
        "total": total,
        "dime.vl": 0.5,
    }


def read(out):
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def test_rates_are_of_the_steps_since_the_last_line_and_evaluations_are_not_in_them(
    tmp_path, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now[0])

    def measure():
        now[0] += 100.0
        return {"eval/a": 0.5, "eval/mean": 0.5}

    with Log(tmp_path, Recipe()) as log:
        now[0] = 1.0
        log.count(1, values(rows=4, waited=0.5))
        now[0] = 2.0
        assert log.write(2, values(rows=6, waited=0.5))["rows_per_s"] == 5.0
        log.evaluated(2, measure)
        now[0] += 2.0
        log.write(3, values(rows=8, waited=0.5))
        assert (log.rows, log.waited, log.seconds) == (18, 1.5, 4.0)
        said = run_summary(log, tmp_path / "w.safetensors")
    first, evaluation, second = read(tmp_path)
    assert (first["rows_per_s"], first["data_share"]) == (5.0, 0.5)
    assert first["data_s"] == first["compute_s"] > 0
    assert evaluation == {"step": 2, "eval/a": 0.5, "eval/mean": 0.5, "eval_seconds": 100.0}
    assert (second["rows_per_s"], second["data_share"]) == (4.0, 0.25)
    assert {"lr", "dime.vl", "total", "bad_rows"} <= second.keys() and not {
        "rows",
        "waited",
        "bad",
    } & second.keys()
    assert said.split("\n") == [
        "3 steps, 18 rows in 4.0 s: 4 rows/s, 38% of the time waiting for data",
        "final loss 1.5000",
        f"weights: {tmp_path / 'w.safetensors'}",
    ]


def test_the_closing_lines_tell_of_a_resumed_run_its_bad_rows_and_its_best(tmp_path):
    scores = iter([0.5, 0.25])
    watch = EarlyStopping(lambda _: {"a": next(scores)}, patience=1)
    with Log(tmp_path, Recipe(), start=5) as log:
        log.write(6, values(bad=[{"source": "s", "row": 3, "reason": "no image"}]))
        assert "best" not in run_summary(log, tmp_path, watch)
        for step in (6, 7):
            watch.measure(step, None)
        said = run_summary(log, tmp_path, watch)
    assert "6 steps (1 of them in this call), 4 rows" in said
    assert f"1 unreadable rows left out ({BAD_ROWS})" in said
    assert (
        f"best mean score 50.00 % after step 6: {tmp_path / 'checkpoints/best'}; stopped early"
        in said
    )
    assert "evaluations in a row that were no better: 1" in said


def test_what_an_interrupted_run_wrote_later_is_forgotten_evaluations_too(tmp_path):
    with Log(tmp_path, Recipe()) as log:
        for step in (1, 2, 3):
            log.write(step, values())
            log.evaluated(step, lambda: {"eval/mean": 0.5})
    forget_after(tmp_path, 2)
    assert [line["step"] for line in read(tmp_path)] == [1, 1, 2, 2]


@given(seed=st.integers(0, 1000), scale=st.floats(0.5, 100))
def test_gauges_are_the_mean_cosine_of_own_rows_and_the_scale(seed, scale):
    draw = torch.Generator().manual_seed(seed)

    def features():
        return Features.from_rows(
            torch.randn(5, 4, generator=draw), torch.randn(3, 4, generator=draw), scale
        )

    ours, theirs = [features(), features()], [features(), features()]
    found = diagnostics(ours, theirs)
    both = [
        torch.cosine_similarity(our.image, their.image).mean()
        for our, their in zip(ours, theirs, strict=True)
    ]
    assert found["cosine"].item() == pytest.approx(torch.stack(both).mean().item(), abs=1e-6)
    assert found["logit_scale"].item() == pytest.approx(scale, rel=1e-6)
    assert diagnostics(ours, ours)["cosine"].item() == pytest.approx(1.0, abs=1e-6)
    assert set(diagnostics(ours[:1], [])) == {"logit_scale"}


def test_gauges_carry_no_gradient():
    rows = torch.randn(3, 4, requires_grad=True)
    ours = [Features.from_rows(rows, rows, torch.tensor(2.0, requires_grad=True))]
    assert not any(value.requires_grad for value in diagnostics(ours, ours).values())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_board_that_is_not_installed_is_refused_with_how_to_get_it(tmp_path, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(
        RecipeError,
        match=rf"--report-to {name}: {name} is not installed. Fix: pip install 'dimefm\[log\]'",
    ):
        with Log(tmp_path, Recipe(report_to=name)):
            pass


def test_tensorboard_gets_every_figure(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Log(tmp_path, Recipe(report_to="tensorboard")) as log:
        log.write(1, values())
        log.evaluated(1, lambda: {"eval/mean": 0.25})
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"total", "lr", "eval/mean"} <= set(found.Tags()["scalars"])
    assert math.isclose(found.Scalars("eval/mean")[0].value, 0.25)


def test_wandb_offline_needs_no_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Log(tmp_path, Recipe(report_to="wandb")) as log:
        log.write(1, values())
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("text", ["tensorbord", "tensorboard;wandb", "wandb,csv"])
def test_a_board_that_is_not_known_is_refused(text):
    with pytest.raises(
        RecipeError, match="'report_to' names '.*'; expected 'tensorboard', 'wandb' or both"
    ):
        Recipe(report_to=text)

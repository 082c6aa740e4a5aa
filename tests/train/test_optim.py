"""AdamW groups and learning rates: those of DIME-FM's release and those of open_clip."""

import math

import numpy as np
import pytest
import timm
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from dimefm.models import student
from dimefm.recipe import read
from dimefm.train.optim import adamw, decays, learning_rate

RECIPE = read(None)


def spec_formula(step, warmup, total):
    """The spec's section 1.3, counted as the release counts: the rate is set after each step, with
    that step's index.
    """
    t = 0 if step == 0 else step - 1
    if t < warmup:
        return 4e-6 + t * (8e-4 - 4e-6) / warmup
    return 4e-5 + 0.5 * (8e-4 - 4e-5) * (1 + math.cos(math.pi * t / total))


@pytest.mark.parametrize(("warmup", "total"), [(4, 100), (40, 1000), (1, 7), (0, 5), (5, 5)])
def test_the_rate_equals_the_formula_at_every_step(warmup, total):
    found = [learning_rate(step, warmup, total, RECIPE) for step in range(total)]
    assert found == pytest.approx(
        [spec_formula(step, warmup, total) for step in range(total)], rel=1e-12
    )


@pytest.mark.parametrize(("warmup", "total"), [(4, 100), (40, 1000), (1, 7)])
def test_the_rate_equals_timms_scheduler_driven_as_the_release_drives_it(warmup, total):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=8e-4)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total,
        lr_min=4e-5,
        warmup_t=warmup,
        warmup_lr_init=4e-6,
        cycle_limit=1,
        t_in_epochs=False,
    )
    for step in range(total):
        assert learning_rate(step, warmup, total, RECIPE) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-12
        )
        scheduler.step_update(step)


def test_the_first_two_steps_are_alike_and_the_peak_lies_below_the_base_rate():
    per_epoch = 1000  # the published run: 100 epochs, 4 of them warm-up
    rates = [
        learning_rate(step, 4 * per_epoch, 100 * per_epoch, RECIPE)
        for step in range(100 * per_epoch)
    ]
    assert rates[0] == rates[1] == 4e-6 < rates[2]
    after = rates[
        4 * per_epoch + 1
    ]  # the last warm-up step comes nearer to 8e-4 than any cosine step
    assert after == max(rates[4 * per_epoch + 1 :])
    assert round(after * 1e3, 4) == 0.7970
    assert rates[-1] == pytest.approx(4e-5, rel=1e-4)


def test_past_the_end_the_rate_stays_at_its_least():
    assert learning_rate(500, 4, 100, RECIPE) == pytest.approx(4e-5)


def test_learnt_parts_of_losses_have_a_group_of_their_own():
    """CLIP-KD gives them torch's own weight decay, biases and scales too."""
    model = torch.nn.ModuleDict(
        {
            "model": torch.nn.Linear(3, 4),
            "loss_modules": torch.nn.ModuleList([torch.nn.Linear(4, 5)]),
        }
    )
    groups = adamw(model, RECIPE).param_groups
    assert [group["weight_decay"] for group in groups] == [RECIPE.wd, 0.0, 0.01]
    assert {id(p) for p in groups[2]["params"]} == {
        id(p) for p in model["loss_modules"].parameters()
    }
    assert len(adamw(model["model"], RECIPE).param_groups) == 2


@pytest.fixture(scope="module")
def vit():
    model, _ = student.build(student.resolve("dime-ViT-B-32", None, 768), False, 0)
    return dict(model.named_parameters())


def test_the_groups_of_vit_b_32_are_the_released_ones(vit):
    decayed = {name for name, parameter in vit.items() if decays(name, parameter)}
    assert (len(decayed), len(vit) - len(decayed)) == (50, 102)
    assert {"visual.proj", "visual.conv1.weight"} < decayed
    assert decayed.isdisjoint(
        {"visual.class_embedding", "visual.positional_embedding", "visual.ln_pre.weight"}
    )
    assert sum(parameter.numel() for parameter in vit.values()) == pytest.approx(88.0e6, rel=1e-3)


def test_relative_positions_of_swin_do_not_decay():
    model, _ = student.build(student.resolve("dime-Swin-T", None, 768), False, 0)
    named = dict(model.named_parameters())
    tables = [name for name in named if "relative_position_bias_table" in name]
    assert len(tables) == 12
    assert all(named[name].ndim == 2 and not decays(name, named[name]) for name in tables)
    assert sum(parameter.numel() for parameter in named.values()) == pytest.approx(28.1e6, rel=1e-3)


def test_adamw_takes_every_trainable_parameter_once_with_the_recipes_settings():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 2).requires_grad_(False)
    )
    optimizer = adamw(model, RECIPE)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert decayed["betas"] == (0.9, 0.999)
    assert decayed["eps"] == 1e-8
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert sorted(p.numel() for p in plain["params"]) == [2, 2, 2]


@pytest.mark.parametrize(("warmup", "total"), [(4, 100), (40, 1000), (1, 7), (0, 5), (5, 5)])
def test_open_clips_rate_is_that_of_its_scheduler(warmup, total):
    """``open_clip_train.scheduler.cosine_lr`` in its own words; its least rate is 0."""
    recipe = read(None, optimizer="open_clip", lr=8e-4, warmup_lr=0.0, min_lr=0.0)
    for step in range(total):
        if step < warmup:
            expected = 8e-4 * (step + 1) / warmup
        else:
            expected = 0.5 * (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) * 8e-4
        assert learning_rate(step, warmup, total, recipe) == pytest.approx(expected, rel=1e-12)


def test_as_open_clip_all_matrices_decay(vit):
    decayed = {name for name, parameter in vit.items() if decays(name, parameter, "open_clip")}
    assert decayed == {name for name, parameter in vit.items() if parameter.ndim > 1}
    assert {"visual.positional_embedding"} == decayed - {
        name for name in vit if decays(name, vit[name])
    }


def test_what_a_timm_model_names_does_not_decay():
    model = timm.create_model("test_vit", num_classes=0)
    kept = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not decays(name, parameter)
    }
    assert (
        kept
        == {"pos_embed", "cls_token"}
        == set(model.no_weight_decay()) & set(dict(model.named_parameters()))
    )

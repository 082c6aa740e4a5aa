"""AdamW parameter groups and learning-rate schedules: those of DIME-FM, and those of open_clip.

Sources: DIME-FM, released Training/utils/optim.py:5-60 (groups) and timm's CosineLRScheduler as
Training/train_amp.py sets it. open_clip, ``open_clip_train/main.py`` (groups) and ``scheduler.py``
(``cosine_lr``). CLIP-KD and TinyCLIP train like open_clip; so does DeCLIP, except for its class
embedding, the bias of attention, and one step of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from dimefm.recipe import Recipe

LOSS_MODULES = "loss_modules."
"""The beginning of the names of parameters that a loss uses, not the towers."""

GATES = "gates."
MULTIPLIERS = "gates.multipliers."
"""The beginnings of the names of gates, and of the multipliers of their penalty."""

GATES_BETAS = (0.9, 0.999)
GATES_EPS = 1e-8

LOSS_MODULES_DECAY = 0.01
"""Weight decay of the losses' modules. Source: CLIP-KD, released src/training/main_kd.py:223."""

UNDECAYED = (
    "relative_position_bias_table",
    "absolute_pos_embed",
    "positional_embedding",
    "token_embedding",
    # timm's models name these in no_weight_decay()
    "pos_embed",
    "cls_token",
    "reg_token",
    "dist_token",
)


def decays(name: str, parameter: torch.Tensor, optimizer: str = "dime-fm") -> bool:
    """Return whether weight decay applies to a parameter.

    It does not apply to vectors, scalars and biases. In DIME-FM it does not apply to position and
    token embeddings and class tokens either.
    """
    if parameter.ndim <= 1 or name.endswith(".bias"):
        return False
    if optimizer != "dime-fm":
        return True
    return not any(part in name for part in UNDECAYED)


def adamw(
    model: nn.Module, recipe: Recipe, is_taken: Callable[[str], bool] = lambda name: False
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in groups with and without weight decay.

    The modules of losses, if there are any, are a third group; all its parameters decay, biases and
    scales too. ``is_taken`` tells the parameters that began with existing weights: they are groups
    of their own where the recipe's ``init_lr_scale`` is not 1. ``lr_scale`` of a group is the
    factor on its learning rate. Gates and the multipliers of their penalty are groups of their own,
    see :func:`_gate_groups`.
    """
    groups = [_group(recipe.wd), _group(0.0)]
    taken = [_group(recipe.wd, recipe.init_lr_scale), _group(0.0, recipe.init_lr_scale)]
    loss_modules = _group(LOSS_MODULES_DECAY)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name.startswith(GATES):
            continue
        if name.startswith(LOSS_MODULES):
            loss_modules["params"].append(parameter)
            continue
        is_slow = recipe.init_lr_scale != 1 and is_taken(name)
        decayed, undecayed = taken if is_slow else groups
        does_decay = decays(name, parameter, recipe.optimizer)
        (decayed if does_decay else undecayed)["params"].append(parameter)
    groups += [group for group in (*taken, loss_modules) if group["params"]]
    groups += _gate_groups(model, recipe.prune_lr)
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, eps=recipe.eps, fused=True)


def _group(weight_decay: float, lr_scale: float = 1.0) -> dict:
    return {"params": [], "weight_decay": weight_decay, "lr_scale": lr_scale}


def _gate_groups(model: nn.Module, rate: float) -> list[dict]:
    """Return the groups of gates and of their penalty's multipliers, none without gates.

    They have a constant learning rate and do not decay. Multipliers are trained to raise the
    penalty. Source: TinyCLIP, released src/training/optimizer.py:22-101.
    """
    settings = {"lr": rate, "betas": GATES_BETAS, "eps": GATES_EPS, "is_constant": True}
    gates = {**_group(0.0), **settings}
    multipliers = {**_group(0.0), **settings, "maximize": True}
    for name, parameter in model.named_parameters():
        if name.startswith(MULTIPLIERS):
            multipliers["params"].append(parameter)
        elif name.startswith(GATES):
            gates["params"].append(parameter)
    return [gates, multipliers] if gates["params"] else []


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups but those that have a constant one."""
    for group in optimizer.param_groups:
        if not group.get("is_constant", False):
            group["lr"] = rate * group["lr_scale"]


def learning_rate(step: int, warmup_steps: int, total_steps: int, recipe: Recipe) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0.

    "open_clip": linear from ``warmup_lr`` to ``lr``, which the last step of the warm-up has, then
    half a cosine to ``min_lr`` over the other steps.

    "dime-fm": with t = step - 1 (0 for the first two steps, since the release sets the rate after
    each step with that step's index), linear while t < ``warmup_steps``, then half a cosine that
    starts with the training, so the peak lies a little below ``lr``.
    """
    if recipe.optimizer == "open_clip":
        if step < warmup_steps:
            return _warm_up(step + 1, warmup_steps, recipe)
        steps_left = max(total_steps - warmup_steps, 1)
        return _half_cosine((step - warmup_steps) / steps_left, recipe)
    t = max(step - 1, 0)
    if t < warmup_steps:
        return _warm_up(t, warmup_steps, recipe)
    return _half_cosine(t / total_steps, recipe)


def _warm_up(t: int, warmup_steps: int, recipe: Recipe) -> float:
    """Return the rate at step ``t`` of the linear warm-up."""
    return recipe.warmup_lr + t * (recipe.lr - recipe.warmup_lr) / warmup_steps


def _half_cosine(progress: float, recipe: Recipe) -> float:
    """Return the rate at ``progress``, 0 to 1, of half a cosine from ``lr`` to ``min_lr``."""
    falling = 1 + math.cos(math.pi * min(progress, 1))
    return recipe.min_lr + 0.5 * (recipe.lr - recipe.min_lr) * falling

"""AdamW parameter groups and learning-rate schedules: those of DIME-FM, and those of open_clip.

Sources: DIME-FM, released Training/utils/optim.py:5-60 (groups) and timm's CosineLRScheduler as
Training/train_amp.py sets it. open_clip, ``open_clip_train/main.py`` (groups) and ``scheduler.py``
(``cosine_lr``); CLIP-KD and TinyCLIP train so, and DeCLIP but for its class embedding, the bias of
attention, and a step of the schedule.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from dimefm.recipe import Recipe

LOSS_MODULES = (  # begins the names of parameters that a loss uses, and not the towers
    "loss_modules."
)
LOSS_MODULES_DECAY = 0.01  # theirs; CLIP-KD, released src/training/main_kd.py:223
UNDECAYED = (
    "relative_position_bias_table", "absolute_pos_embed", "positional_embedding", "token_embedding",
    # as timm's models say in no_weight_decay()
    "pos_embed", "cls_token", "reg_token", "dist_token",
)  # fmt: skip


def decays(name: str, parameter: torch.Tensor, optimizer: str = "dime-fm") -> bool:
    """Tell whether weight decay applies: not to vectors, scalars and biases, nor, as DIME-FM, to
    position and token embeddings and class tokens."""
    kept = UNDECAYED if optimizer == "dime-fm" else ()
    return (
        parameter.ndim > 1 and not name.endswith(".bias") and not any(part in name for part in kept)
    )


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters in two groups, with and without weight decay, and
    one of the modules of losses where there are any, all of which decay alike, biases and scales
    too."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    named = [(name, p) for name, p in trained if not name.startswith(LOSS_MODULES)]
    loss_modules = [p for name, p in trained if name.startswith(LOSS_MODULES)]
    groups = [
        {
            "params": [p for name, p in named if decays(name, p, recipe.optimizer)],
            "weight_decay": recipe.wd,
        },
        {
            "params": [p for name, p in named if not decays(name, p, recipe.optimizer)],
            "weight_decay": 0.0,
        },
    ]
    groups += [{"params": loss_modules, "weight_decay": LOSS_MODULES_DECAY}] if loss_modules else []
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True
    )


def learning_rate(step: int, warmup_steps: int, total_steps: int, recipe: Recipe) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0.

    "open_clip": linear from ``warmup_lr`` to ``lr``, which the last step of the warm-up has, then
    half a cosine to ``min_lr`` over what is left. "dime-fm": with t = step - 1 (0 for the first two
    steps, since the release sets the rate after each step with that step's index), linear while t <
    W, then half a cosine from the start of training, so the peak lies a little below ``lr``.
    """
    after = recipe.optimizer == "open_clip"
    t = step + 1 if after else max(step - 1, 0)
    if step < warmup_steps if after else t < warmup_steps:
        return recipe.warmup_lr + t * (recipe.lr - recipe.warmup_lr) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1) if after else t / total_steps
    return recipe.min_lr + 0.5 * (recipe.lr - recipe.min_lr) * (
        1 + math.cos(math.pi * min(done, 1))
    )

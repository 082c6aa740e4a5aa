"""Keys that say what a run cuts from its student: automatic inheritance."""

from __future__ import annotations

from typing import ClassVar, Literal

from dimefm.recipe.conditions import PAIRS, PRUNED
from dimefm.recipe.keys import key
from dimefm.recipe.section import Section


class Pruning(Section):
    """Gates learn which channels, heads and hidden units the student keeps; then it is cut."""

    title: ClassVar[str] = "Automatic inheritance"

    prune: float | None = key(
        None,
        "Share of the parameters in the student's transformer layers to cut away.",
        more="It counts from the whole transformer, also for a student that was cut before.",
        metavar="SHARE",
        gt=0,
        lt=1,
        unset="nothing is cut",
    )
    prune_steps: int = key(
        3000,
        "Steps with gates, before the cut. The learning rate warms up in them.",
        metavar="N",
        gt=0,
        applies_when=[PRUNED],
    )
    prune_warmup: int = key(
        1000,
        "Steps in which the share to cut away grows to `prune`.",
        flag=False,
        ge=0,
        applies_when=[PRUNED],
    )
    prune_towers: Literal["both", "image", "text"] = key(
        "both",
        "Towers of a CLIP to cut.",
        flag=False,
        applies_to=PAIRS,
        applies_when=[PRUNED],
    )
    prune_target: Literal["joint", "each"] = key(
        "joint",
        "What the share is of. joint: of both towers together, so gates divide it between them; "
        "each: of each tower.",
        flag=False,
        applies_to=PAIRS,
        applies_when=[PRUNED],
    )
    prune_lr: float = key(
        0.02,
        "Learning rate of the gates and of the penalty's multipliers; it is constant.",
        flag=False,
        gt=0,
        applies_when=[PRUNED],
    )

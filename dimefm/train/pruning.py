"""Automatic inheritance in a run: gates learn what a student keeps, then the student is cut.

The student computes through gates until step ``prune_steps``. The gates of a step are drawn from
the seed and the step's number, so they are the same in all processes and micro-batches, and in a
run that is resumed. The next step begins with the cut: the student becomes smaller, and a new
optimizer trains what is left. A checkpoint of a later step records the sizes of the cut student.

Source: TinyCLIP (ICCV 2023), released src/training/train.py:255-384. Deviations: the gates are the
same in all processes; a single tower is cut too; and a run that is resumed after its cut has an
optimizer of the cut student.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from dimefm.errors import ModelError, RecipeError
from dimefm.losses import Objective
from dimefm.models import config_check, patch_dropout
from dimefm.models.student import RUN
from dimefm.models.weights.inheritance import sparsity
from dimefm.models.weights.inheritance.cut import build
from dimefm.models.weights.inheritance.gated import Gates
from dimefm.models.weights.inheritance.gates import Structure
from dimefm.models.weights.inheritance.layout import (
    CONFIG_KEYS,
    layers_of,
    structure_from_config,
    structure_of,
    tower_of,
    with_layers,
)
from dimefm.models.weights.inheritance.sparsity import Whole
from dimefm.recipe import Recipe
from dimefm.runs import folder as runs
from dimefm.runtime.seeding import seed_of
from dimefm.train.saved import Damaged, Saved
from dimefm.train.student import Student
from dimefm.train.tasks import Task, first_loss_with_extras

WHOLE = "whole"  # the key in a run's record
MOST_SIZE = 1 << 20
FACT = "cut"  # the key in a checkpoint's state
KIND_TOWERS: dict[str, tuple[str, ...]] = {
    "image-tower": ("image",),
    "text-tower": ("text",),
    "clip": ("image", "text"),
}


class Pruning:
    """The gates of a run's student, their penalty, and the cut.

    ``task`` is the run's task; after the cut it has the cut model and its config. Making a pruning
    gives ``student`` its gates. Raises RecipeError or ModelError for a student that cannot be cut.
    """

    def __init__(
        self, recipe: Recipe, task: Task, student: Student, objective: Objective, steps: int
    ):
        self.recipe = recipe
        self.task = task
        self.student = student
        self.objective = objective
        names = KIND_TOWERS[task.kind]
        if task.kind == "clip" and recipe.prune_towers != "both":
            names = (recipe.prune_towers,)
        self._check(steps)
        device = next(student.model.parameters()).device
        structures = {name: structure_of(tower_of(student.model, name)) for name in names}
        self.wholes = _wholes(task.spec.name, structures)
        self.first_share = self._first_share(structures)
        self.gates = Gates(student.model, names).to(device)
        self.uncut = task
        student.use(student.model, self.gates)

    @staticmethod
    def from_recipe(
        recipe: Recipe, task: Task, student: Student, objective: Objective, steps: int
    ) -> Pruning | None:
        """Return the pruning that a recipe asks for, None when it cuts nothing."""
        if recipe.prune is None:
            return None
        return Pruning(recipe, task, student, objective, steps)

    def _check(self, steps: int) -> None:
        """Raise RecipeError for settings that do not go together with a cut."""
        recipe = self.recipe
        if recipe.prune_steps > steps:
            raise RecipeError(
                f"prune_steps is {recipe.prune_steps:,}, the run has {steps:,} steps, so the"
                " student would never be cut. Fix: lower prune_steps, or set more steps"
            )
        if recipe.init_lr_scale == 0:
            raise RecipeError(
                "prune trains the weights that a cut leaves, and init_lr_scale = 0 keeps them as"
                " they are. Fix: set init_lr_scale above 0"
            )
        extras = self.student.extras
        if extras.image or extras.words:
            raise RecipeError(
                f"loss '{first_loss_with_extras(self.objective)}' reads features inside the towers,"
                " whose width the cut changes. Fix: remove the loss, or 'prune'"
            )

    def _first_share(self, structures: Mapping[str, Structure]) -> dict[str, float]:
        """Return the share of each tower, and of all, that the student lacks at its start."""
        shares = {}
        for name, structure in structures.items():
            shares[name] = max(0.0, sparsity.removed_from([self.wholes[name]], [structure]))
        wholes = [self.wholes[name] for name in structures]
        share = max(0.0, sparsity.removed_from(wholes, list(structures.values())))
        if share >= self.recipe.prune:
            raise RecipeError(
                f"prune is {self.recipe.prune:g}, and the student lacks {share:.2f} of its"
                " parameters already. Fix: set a larger share"
            )
        return {**shares, "joint": share}

    def draw(self, step: int) -> None:
        """Draw the gates of a step."""
        if self.student.gates is not None:
            self.gates.draw(seed_of(self.recipe.seed, "gates", step))

    def penalize(self, step: int) -> dict[str, float]:
        """Add the gradient of the penalty; return the figures of a step for the log."""
        if self.student.gates is None:
            return {}
        joint = self.recipe.prune_target == "joint"
        names = list(self.gates.towers)
        targets = {}
        for name in (*names, "joint"):
            targets[name] = sparsity.target(
                step, self.first_share[name], self.recipe.prune, self.recipe.prune_warmup
            )
        penalty, share = sparsity.towers_penalty(
            [self.wholes[name] for name in names],
            list(self.gates.towers.values()),
            list(self.gates.multipliers.values()),
            [targets["joint" if joint else name] for name in names],
            joint,
        )
        penalty.backward()
        return {
            "prune_penalty": float(penalty.detach()),
            "prune_share": float(share.detach()),
            "prune_target": targets["joint"],
        }

    def clamp(self) -> None:
        """Bring the gates' parameters into their bounds, after an optimizer step."""
        if self.student.gates is not None:
            self.gates.clamp()

    def is_due(self, step: int) -> bool:
        """Tell whether step ``step``, counted from 0, begins with the cut."""
        return self.student.gates is not None and step >= self.recipe.prune_steps

    def cut(self) -> str:
        """Cut the student; return what is left in words."""
        model, config = self.student.cut(self.task.spec.config)
        self._use(model, config)
        self.forget()
        return self.describe()

    def fit(self, saved: Saved) -> bool:
        """Give the student the sizes that it has in a checkpoint; return whether they are new.

        Raises Damaged when the checkpoint does not say them, or they cannot be.
        """
        was_cut = self.student.gates is None
        if saved.step <= self.recipe.prune_steps:
            if was_cut:
                self.student.use(self.uncut.model, self.gates)
                self.task = self.uncut
                self._hide()
            return was_cut
        layers = saved.state.get(FACT)
        config = self.uncut.spec.config
        wanted = {CONFIG_KEYS[name] for name in self.gates.towers}
        if not isinstance(layers, dict) or layers.keys() != wanted:
            raise Damaged("state.json does not say what the cut left")
        try:
            cut_config = config_check.model_config(with_layers(config, layers), "state.json")
            model = build(cut_config, self.uncut.model)
        except ModelError as error:
            raise Damaged(f"state.json does not say what the cut left ({error})") from error
        self._use(model, cut_config)
        return True

    def forget(self) -> None:
        """Free the student before its cut, which no checkpoint needs any more."""
        if self.student.gates is None:
            self.uncut = self.task

    def _use(self, model: nn.Module, config: dict) -> None:
        """Make a cut model the student's."""
        self.student.use(model)
        spec = dataclasses.replace(self.task.spec, config=config)
        self.task = dataclasses.replace(self.task, model=model, spec=spec)
        self._hide()

    def _hide(self) -> None:
        self.student.mask = patch_dropout.hide(self.task.model, self.task.image_mask)

    def fact(self) -> dict:
        """Return what a checkpoint records: the sizes of the cut towers, {} before the cut."""
        if self.student.gates is not None:
            return {}
        layers = layers_of(self.task.spec.config)
        return {CONFIG_KEYS[name]: layers[CONFIG_KEYS[name]] for name in self.gates.towers}

    def record(self, config: Mapping) -> dict:
        """Return what ``run.json`` says of the pruning; ``config`` is the finished model's."""
        shares = {}
        wholes = {}
        structures = []
        for name, whole in self.wholes.items():
            structure = structure_from_config(config, name)
            structures.append(structure)
            shares[name] = sparsity.removed_from([whole], [structure])
            wholes[name] = dataclasses.asdict(whole)
        shares["all"] = sparsity.removed_from(list(self.wholes.values()), structures)
        return {
            "target": self.recipe.prune,
            "steps": self.recipe.prune_steps,
            "removed": {name: round(share, 6) for name, share in shares.items()},
            WHOLE: wholes,
        }

    def describe(self) -> str:
        """Return in one line what the cut has left."""
        record = self.record(self.task.spec.config)
        parts = []
        for name in self.gates.towers:
            structure = structure_from_config(self.task.spec.config, name)
            parts.append(
                f"{name} tower: {structure.width} channels, {sum(structure.heads)} heads,"
                f" {sum(structure.mlp):,} hidden units"
            )
        return (
            f"cut after step {self.recipe.prune_steps:,}: {record['removed']['all']:.1%} of the"
            f" layers' parameters removed ({'; '.join(parts)})"
        )


def _wholes(name: str, structures: Mapping[str, Structure]) -> dict[str, Whole]:
    """Return each tower before its first cut; the record of a run that was cut has it."""
    recorded: object = {}
    path = Path()
    if name.startswith(RUN):
        folder = Path(name.removeprefix(RUN))
        path = folder / runs.FILE
        recorded = (runs.read(folder).pruned or {}).get(WHOLE, {})
    if not isinstance(recorded, dict):
        recorded = {}
    wholes = {}
    for tower, structure in structures.items():
        sizes = recorded.get(tower)
        if sizes is None:
            wholes[tower] = Whole.from_structure(structure)
        else:
            wholes[tower] = _recorded_whole(sizes, path)
    return wholes


def _recorded_whole(sizes: object, path: Path) -> Whole:
    """Return a whole from the record of a run; raise ModelError when it is none."""
    names = [field.name for field in dataclasses.fields(Whole)]
    if isinstance(sizes, dict) and sizes.keys() == set(names):
        if all(type(size) is int and 0 < size < MOST_SIZE for size in sizes.values()):
            return Whole(**sizes)
    raise ModelError(
        f"{path}: 'pruned.{WHOLE}' is {str(sizes)[:100]!r}, expected {', '.join(names)} of a"
        " tower. Fix: restore the file"
    )

"""The start of a run: the weights that its student begins with, before the first step.

What was taken is printed, and recorded in ``run.json`` and in every checkpoint. A run that is
resumed has it from its checkpoint and does not read the source again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dimefm.cache import EncoderCard
from dimefm.errors import RecipeError
from dimefm.models import inherited, initial
from dimefm.models.encoder import Encoder
from dimefm.models.initial import SCALARS, Side, Start, Taken, Weights
from dimefm.models.loading import load_encoder
from dimefm.models.weights.inheritance import manual
from dimefm.recipe import Recipe
from dimefm.train import measuring, solved
from dimefm.train.checkpoint_folders import folders
from dimefm.train.distributed import DistributedContext
from dimefm.train.inputs.batch import Batch
from dimefm.train.saved import recorded_fact
from dimefm.train.student import Student
from dimefm.train.tasks import Task

FACT = "start"  # the key in a checkpoint's state
MODEL = "model."  # the beginning of the names of a student's towers
SIDES: dict[str, tuple[Side, ...]] = {
    "image-tower": ("image",),
    "text-tower": ("text",),
    "clip": ("image", "text"),
}


@dataclass(frozen=True)
class Begun:
    """How a run began: what each tower has taken, by side, and the pixels that it expects.

    ``record`` is what ``run.json`` says of it, {} of a run that began with random weights.
    ``is_restored`` says that a checkpoint has it.
    """

    record: dict = field(default_factory=dict)
    is_restored: bool = False

    def is_taken(self, name: str) -> bool:
        """Tell whether the student's parameter ``name`` began with weights of the source."""
        if not name.startswith(MODEL):
            return False
        own = name.removeprefix(MODEL)
        if own in SCALARS or name in self.record.get(solved.PROJECTION, {}).get("parameters", ()):
            return False
        facts = self.record.get("image" if own.startswith("visual.") else "text")
        return facts is not None and own not in facts.get("drawn", ())

    def completed(
        self,
        recipe: Recipe,
        student: Student,
        load: Callable[[int], Batch],
        rows: int,
        context: DistributedContext,
        echo: Callable[[str], None],
    ) -> Begun:
        """Return the start with what is done when the student is built.

        The last projection is solved where the recipe asks for it, and taken weights of the rate 0
        are frozen. Raises RecipeError when no weight is left to train.
        """
        begun = self
        if recipe.init_projection == "least-squares" and not self.is_restored:
            record = solved.solve_projection(recipe, student, load, rows, context, echo)
            begun = dataclasses.replace(self, record={**self.record, solved.PROJECTION: record})
        if recipe.init_lr_scale == 0 and recipe.steps != 0:
            begun._freeze(student)
        return begun

    def _freeze(self, student: Student) -> None:
        """Keep the weights that were taken as they are, and running statistics beside them."""
        for name, parameter in student.named_parameters():
            if self.is_taken(name):
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise RecipeError(
                "init_lr_scale = 0 keeps every weight of the student as it is; expected some to"
                " train. Fix: set init_lr_scale above 0, or steps = 0"
            )
        frozen = []
        for module in student.model.modules():
            own = list(module.parameters(recurse=False))
            is_norm = isinstance(module, _NormBase)
            if is_norm and own and not any(parameter.requires_grad for parameter in own):
                frozen.append(module)
        student.frozen = tuple(frozen)

    def applied(self, task: Task) -> Task:
        """Return the task with the pixels that the weights expect."""
        pixels = self.record.get("pixels")
        if not pixels or task.preprocess is None:
            return task
        preprocess = {**task.preprocess, **pixels}
        task.model.visual.preprocess_cfg = preprocess  # evaluation reads it there
        return dataclasses.replace(task, preprocess=preprocess)


def recorded(out: Path) -> Begun | None:
    """Return how the run in ``out`` began, None when no checkpoint of it can be read.

    Checkpoints of earlier versions say nothing: their students began with random weights.
    """
    for folder in reversed(folders(out)):
        facts = recorded_fact(folder, FACT)
        if facts is not None:
            return Begun(facts, is_restored=True)
    return None


def begin(
    recipe: Recipe, task: Task, teachers: Sequence[EncoderCard], echo: Callable[[str], None]
) -> Begun:
    """Load the weights that the recipe's ``init`` names into the task's model.

    Raises ModelError when they cannot be had or do not fit; the model is then not to be used.
    """
    sources = _Sources(recipe, task, teachers)
    starts = _starts(recipe, task)
    record: dict = {}
    for side, start in starts.items():
        if start.kind == "random":
            continue
        if start.kind == "inherit":
            taken = sources.inherit(side, start)
        else:
            taken = sources.take(side, start)
        echo(taken.describe())
        record[side] = taken.record()
        if side == "image":
            record["pixels"] = sources.pixels(start)
    for side in starts:
        if record and side not in record:
            echo(f"{side} tower: starts from random weights")
    if len({start.text for start in starts.values()}) == 1:
        sources.take_scalars(next(iter(starts.values())))
    return Begun({name: value for name, value in record.items() if value})


def _starts(recipe: Recipe, task: Task) -> dict[Side, Start]:
    """Return where each tower of a student starts."""
    starts: dict[Side, Start] = {}
    for side in SIDES[task.kind]:
        text = recipe.init
        if side == "text" and task.kind == "clip":
            text = recipe.init_text or recipe.init
            if text == "timm":  # it has image towers alone
                text = initial.RANDOM
        starts[side] = Start.parse(text)
    return starts


class _Sources:
    """The sources of one student's weights; each is read once for both towers."""

    def __init__(self, recipe: Recipe, task: Task, teachers: Sequence[EncoderCard]):
        self.recipe = recipe
        self.task = task
        self.recorded = teachers[0] if teachers else None
        self.weights: dict[str, Weights] = {}
        self.encoders: dict[str, Encoder] = {}

    def take(self, side: Side, start: Start) -> Taken:
        """Load one tower from weights of the same shapes."""
        if start.text not in self.weights:
            self.weights[start.text] = initial.load(start, self.task.model, self.task.spec)
        return initial.take(self.task.model, side, self.weights[start.text], start.text)

    def inherit(self, side: Side, start: Start) -> Taken:
        """Load one tower from a part of a larger one."""
        encoder = self._encoder(start.value)
        teacher = inherited.teacher_model(encoder, side)
        rule: inherited.Rule = manual.inherit
        if self.recipe.inherit_by == "importance":
            inputs = measuring.inputs_of(self.recipe, self.task, encoder, teacher, side)
            rule = inherited.by_importance(teacher, side, inputs)
        return inherited.inherit(self.task.model, side, teacher, start.value, rule)

    def _encoder(self, spec: str) -> Encoder:
        if spec not in self.encoders:
            self.encoders[spec] = load_encoder(spec, "cpu", recorded=self.recorded)
        return self.encoders[spec]

    def pixels(self, start: Start) -> dict:
        """Return mean and standard deviation of the pixels that the image tower expects."""
        if start.kind == "inherit":
            preprocess = self.encoders[start.value].card.preprocess or {}
            return {name: list(preprocess[name]) for name in ("mean", "std") if name in preprocess}
        return self.weights[start.text].preprocess

    @torch.no_grad()
    def take_scalars(self, start: Start) -> None:
        """Load the scale and bias of a whole CLIP, where both towers are of one source."""
        weights = self.weights.get(start.text)
        if weights is None or self.task.kind != "clip":
            return
        for name, value in weights.scalars.items():
            own = getattr(self.task.model, name, None)
            if isinstance(own, nn.Parameter):
                own.copy_(value.reshape(own.shape))

"""What a run trains: an image tower, a text tower, or a whole CLIP; the one place that tells them
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from dimefm.errors import ModelError
from dimefm.losses import FeatureDims, Need, Objective, Provider, outputs_of
from dimefm.models import fast_tokenizer, intermediate, open_clip, patch_dropout, student
from dimefm.models.student import StudentSpec
from dimefm.recipe import KEYS, Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.batch import Batch
from dimefm.train.inputs.image_batches import Batches
from dimefm.train.inputs.sources import Sources, TextSources
from dimefm.train.inputs.text_batches import TextBatches
from dimefm.train.student import Extras, Student, heads, projection_of

TOWERS = (Provider.IMAGE_TOWER, Provider.TEXT_TOWER)

LOSS_MODULES_STREAM = "learnt_".rstrip("_")
"""The random stream of loss modules keeps its first name: another one would draw other weights."""


@dataclass(frozen=True)
class Task:
    """A model to train, of a kind of ``models.runs``, and the batches that it sees; a text tower
    preprocesses nothing.

    ``apart``: the last caption of each pair is the first one with hidden words. ``image_mask`` is
    the share of each image that is hidden.
    """

    kind: str
    spec: StudentSpec
    model: nn.Module
    preprocess: dict | None
    batches: Callable[[int], Batch]
    apart: bool = False
    image_mask: float = 0.0

    def student(self, sources: Sources, objective: Objective, seed: int) -> Student:
        """Return what trains: the model and the modules of its losses for each teacher; of one
        tower also its bridge if it keeps another dimension, and a head for each further teacher."""
        dims, own = [teacher.dim for teacher in sources.teachers], self.spec.config["embed_dim"]
        drawn = seed_of(seed, LOSS_MODULES_STREAM) % 2**32
        extras = Extras.of(objective.needs, self.apart)
        more_dims = self._widths(objective) if extras.image or extras.words else {}
        if self.kind == "clip":
            loss_modules = objective.loss_modules(
                [FeatureDims(own, dim, **more_dims) for dim in dims or [own]], drawn
            )
            found = Student(self.model, self.preprocess, loss_modules=loss_modules, extras=extras)
            found.mask = patch_dropout.hide(self.model, self.image_mask)
            return found
        projection = projection_of(self.model, self.spec, dims[0], seed) if own != dims[0] else None
        loss_modules = objective.loss_modules(
            [FeatureDims(dim, dim, **more_dims) for dim in dims], drawn
        )
        found = Student(
            self.model, self.preprocess, heads(dims, seed), projection, loss_modules, extras
        )
        found.mask = patch_dropout.hide(self.model, self.image_mask)
        return found

    def _widths(self, objective: Objective) -> dict[str, int | None]:
        """Return the widths of what losses ask of the towers in addition to rows; raise ModelError,
        naming one that asks in vain.
        """
        try:
            return intermediate.feature_dims(self.model)._asdict()
        except ModelError as error:
            name = next(
                config.name
                for config, term in objective.terms
                if any(outputs_of(tower, term.needs) for tower in TOWERS)
            )
            raise ModelError(f"loss '{name}': {error}") from error


def sizes(model: nn.Module) -> dict[str, int]:
    """Return how many weights there are, of each tower and together."""
    towers = {"image": getattr(model, "visual", None), "text": getattr(model, "text", None)}
    counts = {
        f"{name}_parameters": _count(tower)
        for name, tower in towers.items()
        if isinstance(tower, nn.Module)
    }
    return {**counts, "parameters": _count(model)}


def unseen_pixels(task: Task) -> str | None:
    """Return a note when the patches of an image tower leave a strip of each image over, which it
    never sees; else None.
    """
    name, size = task.spec.name, task.spec.image_size
    side = 1 if size is None else student.patch_side(task.model)
    if size is None or size % side == 0:
        return None
    fits, left = size - size % side, f"{size % side} pixels at the right and the lower edge"
    sizes = f"--image-size {fits} or {fits + side}" if fits else f"--image-size {side}"
    return (
        f"note: {name} cuts images of {size} pixels into patches of {side} and never sees {left};"
        f" {sizes} leaves none over"
    )


def given(recipe: Recipe) -> frozenset[Need]:
    """Return which needs of losses the data and the student of a recipe fulfill."""
    both_towers = recipe.text == "student"
    text_tower = bool(recipe.text_student)
    config = {}
    if both_towers:
        config = student.resolve(recipe.student, recipe.image_size).config
    fulfilled = {
        Need.TEACHER: not both_towers or bool(recipe.image_cache),
        Need.PAIRS: both_towers or (text_tower and not recipe.text_cache),
        Need.BIAS: config.get("init_logit_bias") is not None,
        Need.WIDTH: True,  # checked when the dimensions are known
    }
    for need in Need:
        if need.recipe_keys:
            fulfilled[need] = all(_is_set(recipe, key) for key in need.recipe_keys)
        if need.provider is Provider.IMAGE_TOWER:
            fulfilled[need] = not text_tower
        if need.provider is Provider.TEXT_TOWER:
            fulfilled[need] = both_towers
    return frozenset(need for need, is_fulfilled in fulfilled.items() if is_fulfilled)


def _is_set(recipe: Recipe, key: str) -> bool:
    return getattr(recipe, key) != KEYS[key].default


def build_task(recipe: Recipe, sources: Sources, places: Sequence[int]) -> Task:
    """Build what ``recipe`` trains, with random weights, and its batches, of which this process
    encodes ``places``.

    Raises ModelError when it cannot be built or run.
    """
    if isinstance(sources, TextSources):
        return _text_tower(recipe, sources, places)
    both = recipe.text == "student"
    spec = student.resolve(
        recipe.student, recipe.image_size, None if both else _dim(recipe, sources)
    )
    model, preprocess = student.build(spec, both, recipe.seed, len(places))
    tokenizer = open_clip.tokenizer_for(spec.config) if both else None
    batches = Batches(sources, recipe, spec.image_size, tokenizer, places)
    apart = bool(recipe.mask_words) and recipe.mlm_caption == "extra"
    return Task(
        "clip" if both else "image-tower",
        spec,
        model,
        preprocess,
        batches,
        apart,
        recipe.image_mask,
    )


def _text_tower(recipe: Recipe, sources: TextSources, places: Sequence[int]) -> Task:
    spec = student.resolve_text(recipe.text_student, _dim(recipe, sources))
    tokenizer = open_clip.tokenizer_for(spec.config)
    quick = fast_tokenizer.cached_tokenizer(tokenizer)
    tokenize = tokenizer if quick is None else lambda sentences: quick.tokenize(sentences)[0]
    batches = TextBatches(sources, recipe, tokenize, places)
    return Task("text-tower", spec, student.build_text(spec, recipe.seed), None, batches)


def _dim(recipe: Recipe, sources: Sources) -> int | None:
    """Return the dimension that the student is built with, None for its own, from which a bridge
    leads.
    """
    return None if recipe.projection == "linear" else sources.teachers[0].dim


def _count(module: nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())

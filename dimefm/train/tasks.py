"""What a run trains: an image tower, a text tower, or a whole CLIP.

This is the one module that tells the three kinds apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from dimefm.errors import ModelError
from dimefm.losses import FeatureDims, Need, Objective, Provider, outputs_of
from dimefm.models import (
    fast_tokenizer,
    intermediate,
    open_clip,
    patch_dropout,
    student,
    timm_image,
)
from dimefm.models.student import StudentSpec
from dimefm.recipe import KEYS, Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.batch import Batch
from dimefm.train.inputs.image_batches import Batches
from dimefm.train.inputs.sources import Sources, TextSources
from dimefm.train.inputs.text_batches import TextBatches
from dimefm.train.student import Extras, Student, heads, projection_of

TOWERS = (Provider.IMAGE_TOWER, Provider.TEXT_TOWER)

# An image tower of a million weights and more, and of this many for each sample, gets a note.
LARGE_STUDENT = 1_000_000
WEIGHTS_PER_SAMPLE = 2_000
SMALL_STUDENTS = "MobileNetV3-S (2.0 M), MobileViT-XXS (1.1 M) or ResNet-mini-64 (0.4 M)"

LOSS_MODULES_STREAM = "learnt_".rstrip("_")
"""The random stream of loss modules keeps its first name: another one would draw other weights."""


@dataclass(frozen=True)
class Task:
    """A model to train, of a ``kind`` of :data:`dimefm.runs.folder.KINDS`, and its batches.

    ``preprocess`` is None for a text tower. ``extra_mlm_caption`` says that the last caption of
    each pair is the first one with hidden words. ``image_mask`` is the share of each image that is
    hidden.
    """

    kind: str
    spec: StudentSpec
    model: nn.Module
    preprocess: dict | None
    batches: Callable[[int], Batch]
    extra_mlm_caption: bool = False
    image_mask: float = 0.0

    def student(self, sources: Sources, objective: Objective, seed: int) -> Student:
        """Return the student: the model and the modules of its losses for each teacher.

        A single tower also has a projection where its dimension is not the first teacher's, and a
        head for each further teacher.
        """
        student_dim = self.spec.config["embed_dim"]
        teacher_dims = [teacher.dim for teacher in sources.teachers]
        extras = Extras.from_needs(objective.needs, self.extra_mlm_caption)
        extra_dims = {}
        if extras.image or extras.words:
            extra_dims = self._extra_dims(objective)
        dims = []
        for teacher_dim in teacher_dims or [student_dim]:
            compared_dim = student_dim if self.kind == "clip" else teacher_dim
            dims.append(FeatureDims(compared_dim, teacher_dim, **extra_dims))
        projection = None
        teacher_heads: list[nn.Module] = []
        if self.kind != "clip":
            if student_dim != teacher_dims[0]:
                projection = projection_of(self.model, self.spec, teacher_dims[0], seed)
            teacher_heads = heads(teacher_dims, seed)
        modules_seed = seed_of(seed, LOSS_MODULES_STREAM) % 2**32
        loss_modules = objective.loss_modules(dims, modules_seed)
        student = Student(
            self.model, self.preprocess, teacher_heads, projection, loss_modules, extras
        )
        student.mask = patch_dropout.hide(self.model, self.image_mask)
        return student

    def _extra_dims(self, objective: Objective) -> dict[str, int | None]:
        """Return the dimensions of what losses need of the towers in addition to embeddings.

        Raises ModelError, which names such a loss, when the towers do not give it.
        """
        try:
            return intermediate.feature_dims(self.model)._asdict()
        except ModelError as error:
            name = first_loss_with_extras(objective)
            raise ModelError(f"loss '{name}': {error}") from error


def first_loss_with_extras(objective: Objective) -> str:
    """Return the name of the first loss that needs more of a tower than embeddings."""
    for config, term in objective.terms:
        for tower in TOWERS:
            if outputs_of(tower, term.needs):
                return config.name
    raise ValueError("no loss needs more of a tower than embeddings")


def sizes(model: nn.Module) -> dict[str, int]:
    """Return the number of weights of each tower and of the whole model."""
    counts = {}
    for name, attribute in (("image", "visual"), ("text", "text")):
        tower = getattr(model, attribute, None)
        if isinstance(tower, nn.Module):
            counts[f"{name}_parameters"] = _count(tower)
    counts["parameters"] = _count(model)
    return counts


def notes(task: Task, samples: int, init: str = "random") -> list[str]:
    """Return what the user should know about a student that learns from so many samples.

    ``init`` is where it starts.
    """
    found = [unseen_pixels(task)]
    if init == "random":
        found = [_unloaded_weights(task), _too_few_samples(task, samples), *found]
    return [note for note in found if note is not None]


def _unloaded_weights(task: Task) -> str | None:
    """Return a note when the name of a student names pretrained weights, which are not loaded."""
    tag = timm_image.pretrained_tag(task.spec.name)
    if not tag:
        return None
    return (
        f"note: {task.spec.name} starts from random weights; --student {task.spec.name} --init timm"
        f" starts from the pretrained ones that '{tag}' names"
    )


def _too_few_samples(task: Task, samples: int) -> str | None:
    """Return a note when an image tower has far more weights than there are samples."""
    if task.spec.image_size is None:
        return None
    weights = _count(task.model.visual)
    if weights < LARGE_STUDENT or weights <= WEIGHTS_PER_SAMPLE * samples:
        return None
    return (
        f"note: the {weights / 1e6:,.1f} M weights of {task.spec.name} start from random ones, and"
        f" {samples:,} images are few for them; smaller students: --student {SMALL_STUDENTS}"
    )


def unseen_pixels(task: Task) -> str | None:
    """Return a note when patches do not cover the whole image, None when they do."""
    size = task.spec.image_size
    if size is None:
        return None
    side = student.patch_side(task.model)
    rest = size % side
    if rest == 0:
        return None
    smaller = size - rest
    better = f"--image-size {smaller} or {smaller + side}" if smaller else f"--image-size {side}"
    return (
        f"note: {task.spec.name} cuts images of {size} pixels into patches of {side} and never sees"
        f" {rest} pixels at the right and the lower edge; {better} leaves none over"
    )


def given(recipe: Recipe) -> frozenset[Need]:
    """Return which needs of losses the data and the student of a recipe fulfill."""
    both_towers = recipe.text == "student"
    text_tower = bool(recipe.text_student)
    config = {}
    if both_towers:
        config = student.resolve(recipe.student, recipe.image_size).config
    has_texts = bool(recipe.text_cache or recipe.tsv_file_list)
    fulfilled = {
        Need.TEACHER: not both_towers or bool(recipe.image_cache),
        Need.SENTENCES: both_towers or text_tower or has_texts,
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
    """Build the model of ``recipe``, with random weights, and its batches.

    This process encodes ``places`` of each batch. Raises ModelError when the model cannot be built
    or run.
    """
    if isinstance(sources, TextSources):
        return _text_tower(recipe, sources, places)
    if recipe.text == "student":
        return _clip(recipe, sources, places)
    return _image_tower(recipe, sources, places)


def _clip(recipe: Recipe, sources: Sources, places: Sequence[int]) -> Task:
    spec = student.resolve(recipe.student, recipe.image_size)
    model, preprocess = student.build(spec, True, recipe.seed, len(places))
    tokenizer = _tokenizer(spec)
    return Task(
        kind="clip",
        spec=spec,
        model=model,
        preprocess=preprocess,
        batches=Batches(sources, recipe, spec.image_size, tokenizer, places),
        extra_mlm_caption=bool(recipe.mask_words) and recipe.mlm_caption == "extra",
        image_mask=recipe.image_mask,
    )


def _image_tower(recipe: Recipe, sources: Sources, places: Sequence[int]) -> Task:
    spec = student.resolve(recipe.student, recipe.image_size, _tower_dim(recipe, sources))
    model, preprocess = student.build(spec, False, recipe.seed, len(places))
    return Task(
        kind="image-tower",
        spec=spec,
        model=model,
        preprocess=preprocess,
        batches=Batches(sources, recipe, spec.image_size, None, places),
        image_mask=recipe.image_mask,
    )


def _text_tower(recipe: Recipe, sources: TextSources, places: Sequence[int]) -> Task:
    spec = student.resolve_text(recipe.text_student, _tower_dim(recipe, sources))
    tokenize = _tokenizer(spec)
    return Task(
        kind="text-tower",
        spec=spec,
        model=student.build_text(spec, recipe.seed),
        preprocess=None,
        batches=TextBatches(sources, recipe, tokenize, places),
    )


def _tokenizer(spec: StudentSpec) -> Callable:
    """Return the tokenizer of a student's text tower, the fast one where there is one."""
    tokenizer = open_clip.tokenizer_for(spec.config)
    return fast_tokenizer.cached_tokenizer(tokenizer) or tokenizer


def _tower_dim(recipe: Recipe, sources: Sources) -> int | None:
    """Return the embedding dimension to build a tower with, None for the dimension of its config.

    With a projection the tower keeps its own dimension.
    """
    if recipe.projection == "linear":
        return None
    return sources.teachers[0].dim


def _count(module: nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())

"""Zero-shot scores of a student during training, by the protocol of ``dimefm eval elevater``.

A student that lacks a tower uses its teacher's, once: the class prompts (for an image tower) or the
image features (for a text tower) are computed before the first step; then the teacher is unloaded.
No teacher runs during training.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dimefm.cache import EncoderCard
from dimefm.cache.manifest import encoder_mismatch
from dimefm.data import Rows
from dimefm.data.images.decode import decode
from dimefm.errors import BadRow, DataError, ModelError, RecipeError
from dimefm.evaluate.classifier import probabilities
from dimefm.evaluate.datasets.layouts import Dataset, find
from dimefm.evaluate.features import image_features, prompt_weights
from dimefm.evaluate.result import Result, classification_result
from dimefm.extract.stages.base import Settings
from dimefm.models import open_clip, student
from dimefm.models.encoder import Encoder
from dimefm.models.loading import load_encoder, name_of
from dimefm.models.timm_teacher import is_image_only
from dimefm.recipe import Recipe
from dimefm.runtime.devices import pick_device
from dimefm.runtime.text import without_remedy

Wrap = Callable[[nn.Module], Encoder]
"""Makes an encoder from the model that is trained."""


@dataclass(frozen=True)
class EvalSplit:
    """The test split of one dataset: samples, labels, and what does not change during training.

    ``images`` are (unit image embeddings [n, D], numbers of the samples that could be read [n]) and
    ``weights`` the class embeddings [C, D]; None where the student computes them.
    """

    dataset: Dataset
    rows: Rows
    labels: np.ndarray
    images: tuple[np.ndarray, np.ndarray] | None = None
    weights: np.ndarray | None = None


class OnlineEvaluator:
    """Scores a model on some datasets; the model is unchanged afterwards.

    ``wrap`` makes an encoder from the model. It embeds what the ``splits`` do not have yet. Images
    are read again for each evaluation; their features are not kept.
    """

    def __init__(self, splits: Sequence[EvalSplit], wrap: Wrap, settings: Settings):
        self.splits = splits
        self.wrap = wrap
        self.settings = settings

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the main metric, 0 to 1, of ``model`` on each benchmark, by name."""
        modes = {module: module.training for module in model.modules()}
        encoder = self.wrap(model.eval())
        scores = {}
        try:
            with tempfile.TemporaryDirectory() as store:
                for split in self.splits:
                    result = self._score(encoder, split, Path(store))
                    scores[split.dataset.benchmark.name] = result.value
        finally:
            for module, mode in modes.items():
                module.training = mode
        return scores

    def _score(self, encoder: Encoder, split: EvalSplit, store: Path) -> Result:
        """Return the result of an encoder on one dataset."""
        if split.images is None:
            split = _with_images(split, encoder, store, self.settings)
        if split.weights is None:
            split = _with_prompts(split, encoder, store, self.settings)
        embeddings, readable = split.images
        predicted = probabilities(embeddings, split.weights)
        return classification_result(split.dataset.benchmark, predicted, split.labels, readable)


def scorer(recipe: Recipe, teacher: EncoderCard | None) -> OnlineEvaluator:
    """Return what scores the student of ``recipe`` on its ``eval_root`` and ``eval_datasets``.

    ``teacher`` is the card of the first teacher's features, None where both towers are trained.
    Raises DataError when a dataset is missing or cannot be read, and ModelError when the teacher is
    not found or is another one.
    """
    splits = [_open_split(dataset) for dataset in _datasets(recipe)]
    settings = Settings(dtype="float32", batch_size=256, workers=recipe.workers, progress=False)
    device = pick_device(recipe.device)
    if recipe.text == "student":
        return OnlineEvaluator(splits, _wrap_clip(recipe, device), settings)
    if teacher is None:
        raise RecipeError(
            "evaluation during training needs a teacher for the other tower. Fix: remove"
            " --eval-root"
        )
    encoder = _load_teacher(teacher, recipe, device)
    complete = _with_images if recipe.text_student else _with_prompts
    completed = []
    with tempfile.TemporaryDirectory() as store:
        for split in splits:
            completed.append(complete(split, encoder, Path(store), settings))
    wrap = _wrap_text_tower if recipe.text_student else _wrap_image_tower
    return OnlineEvaluator(completed, wrap(recipe, teacher, device), settings)


def _datasets(recipe: Recipe) -> list[Dataset]:
    """Return the datasets of ``eval_datasets``; without names, those of the suite with a folder."""
    root = recipe.eval_root
    names = recipe.eval_datasets or None
    datasets, missing = find(root, names)
    if names and missing:
        raise DataError(
            f"--eval-root {root}: {', '.join(missing)} is not there. Fix: remove the name from"
            " --eval-datasets, or add its folder"
        )
    if not datasets:
        raise DataError(
            f"--eval-root {root}: no dataset of the suite found. Fix: give the folder that holds"
            " one folder per dataset"
        )
    return datasets


def _open_split(dataset: Dataset) -> EvalSplit:
    """Return the test split of a dataset; raise DataError when none of its images can be read."""
    rows, labels, _ = dataset.rows("test")
    reason = "it is empty"
    for number in range(len(rows)):
        try:
            decode(rows[number].image)
            return EvalSplit(dataset, rows, labels)
        except BadRow as error:
            reason = str(error)
    raise DataError(
        f"{dataset.folder}: no image of the test split can be read ({reason}). Fix: repair the"
        " images, or remove the dataset"
    )


def _with_images(split: EvalSplit, encoder: Encoder, store: Path, settings: Settings) -> EvalSplit:
    """Return the split with the image embeddings of an encoder."""
    images = image_features(encoder, split.dataset.benchmark, split.rows, store, settings)
    return dataclasses.replace(split, images=images)


def _with_prompts(split: EvalSplit, encoder: Encoder, store: Path, settings: Settings) -> EvalSplit:
    """Return the split with the class embeddings of an encoder."""
    weights = prompt_weights(encoder, split.dataset.benchmark, store, settings)
    return dataclasses.replace(split, weights=weights)


def _load_teacher(card: EncoderCard, recipe: Recipe, device: torch.device) -> Encoder:
    """Load the teacher of a card, from where ``eval_text_model`` says if it is set.

    ``eval_text_model`` may also be the run of a text tower distilled from the teacher.
    """
    spec = recipe.eval_text_model
    if is_image_only(card):
        raise RecipeError(
            f"--eval-root compares images with sentences, and the teacher '{card.name}' has no text"
            " tower. Fix: remove --eval-root"
        )
    if spec is None:
        spec = name_of(card, "--eval-root", "--eval-text-model, or remove --eval-root")
    try:
        is_named = recipe.eval_text_model is not None
        teacher = load_encoder(spec, str(device), recorded=card, may_download=is_named)
    except ModelError as error:
        raise ModelError(
            f"evaluation during training needs the other tower, of the teacher '{card.name}':"
            f" {without_remedy(error)}. Fix: name the teacher, or its present place, with"
            " --eval-text-model, or remove --eval-root"
        ) from error
    if not _is_same_teacher(teacher.card, card):
        raise ModelError(
            f"{spec}: weights {str(teacher.card.weights_sha256)[:12]}, but the features are of"
            f" weights {card.weights_sha256[:12]}. Fix: name the right teacher with"
            " --eval-text-model"
        )
    if teacher.card.dim != card.dim:
        raise ModelError(
            f"{spec}: {teacher.card.dim} dimensions, the features have {card.dim}. Fix: name the"
            " right teacher with --eval-text-model"
        )
    return teacher


def _is_same_teacher(loaded: EncoderCard, card: EncoderCard) -> bool:
    """Return whether a loaded encoder made the features with this card, as far as it is known."""
    if card.weights_sha256 is None:
        return True
    if loaded.weights_sha256 == card.weights_sha256:
        return True
    return not encoder_mismatch(card, loaded)


def _encoder(
    model: nn.Module, dim: int, preprocess: dict, tokenizer: Callable | None, device: torch.device
) -> Encoder:
    """Return a model as an encoder; only the towers that the model has may be used."""
    card = EncoderCard("the student", None, dim, 1.0, preprocess=preprocess)
    transform = open_clip.transform_of(preprocess)
    return Encoder(card, model, model, transform, tokenizer, device)


def _wrap_image_tower(recipe: Recipe, teacher: EncoderCard, device: torch.device) -> Wrap:
    spec = student.resolve(recipe.student, recipe.image_size, teacher.dim)
    usual = open_clip.default_preprocess(spec.image_size)

    def wrap(model: nn.Module) -> Encoder:
        preprocess = getattr(model.visual, "preprocess_cfg", usual)
        return _encoder(model, teacher.dim, preprocess, None, device)

    return wrap


def _wrap_text_tower(recipe: Recipe, teacher: EncoderCard, device: torch.device) -> Wrap:
    spec = student.resolve_text(recipe.text_student, teacher.dim)
    tokenizer = open_clip.tokenizer_for(spec.config)
    preprocess = open_clip.default_preprocess(224)  # not used: the tower encodes texts only
    return lambda model: _encoder(model, teacher.dim, preprocess, tokenizer, device)


def _wrap_clip(recipe: Recipe, device: torch.device) -> Wrap:
    config = student.resolve(recipe.student, recipe.image_size).config
    dim = config["embed_dim"]
    tokenizer = open_clip.tokenizer_for(config)

    def wrap(model: nn.Module) -> Encoder:
        preprocess = open_clip.preprocess_of(model)
        return _encoder(model, dim, preprocess, tokenizer, device)

    return wrap

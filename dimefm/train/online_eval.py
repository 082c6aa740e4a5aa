"""Zero-shot scores of a student while it trains, on the datasets and by the protocol of ``dimefm
eval elevater``.

What the student does not have it borrows from its teacher, once: class prompts (of an image tower)
or image features (of a text tower) are computed before the first step, and the teacher is let go.
No teacher runs during training.
"""

from __future__ import annotations

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
from dimefm.evaluate.result import Result, classification_result
from dimefm.evaluate.zero_shot import image_features, prompt_weights
from dimefm.extract.stages.base import Settings
from dimefm.models import open_clip, student
from dimefm.models.encoder import Encoder
from dimefm.models.loading import load_encoder
from dimefm.recipe import Recipe
from dimefm.runtime.devices import pick_device


@dataclass(frozen=True)
class EvalSplit:
    """The test split of one dataset: rows, labels, and what of it does not change while the student
    learns.

    ``images`` are (unit rows [n, D], numbers of the rows that could be read [n]), ``weights`` those
    of the classes [C, D]; None where the student makes them.
    """

    dataset: Dataset
    rows: Rows
    labels: np.ndarray
    images: tuple[np.ndarray, np.ndarray] | None = None
    weights: np.ndarray | None = None


class OnlineEvaluator:
    """Scores a model on some datasets: benchmark -> its main metric, 0 to 1; the model is left as
    it was.

    ``encoder_of`` puts the model into an encoder; only the towers are used whose side ``tests`` do
    not hold already. Images are read again each time; their features are kept nowhere.
    """

    def __init__(
        self,
        tests: Sequence[EvalSplit],
        encoder_of: Callable[[nn.Module], Encoder],
        settings: Settings,
    ):
        self.tests, self.encoder_of, self.settings = tests, encoder_of, settings

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the scores of ``model``."""
        modes = {module: module.training for module in model.modules()}
        encoder = self.encoder_of(model.eval())
        try:
            with tempfile.TemporaryDirectory() as store:
                return {
                    test.dataset.benchmark.name: self._score(encoder, test, Path(store)).value
                    for test in self.tests
                }
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _score(self, encoder: Encoder, test: EvalSplit, store: Path) -> Result:
        test = _with_images(test, encoder, store, self.settings) if test.images is None else test
        test = _with_prompts(test, encoder, store, self.settings) if test.weights is None else test
        rows, readable = test.images
        return classification_result(
            test.dataset.benchmark, probabilities(rows, test.weights), test.labels, readable
        )


def scorer(recipe: Recipe, teacher: EncoderCard | None) -> OnlineEvaluator:
    """Return what scores the student of ``recipe`` on its ``eval_root`` and ``eval_datasets``.

    ``teacher`` is the card of the (first) teacher's features, None where both towers learn. Raises
    DataError when a dataset is missing or cannot be read, ModelError when the teacher is not there
    or is another one.
    """
    tests = [_open(dataset) for dataset in _datasets(recipe)]
    settings = Settings(dtype="float32", batch_size=256, workers=recipe.workers, progress=False)
    device = pick_device(recipe.device)
    if recipe.text == "student":
        return OnlineEvaluator(tests, _both_towers(recipe, device), settings)
    if teacher is None:
        raise RecipeError(
            "evaluation during training needs a teacher for the other tower; leave --eval-root out"
        )
    lent = _teacher(teacher, recipe, device)
    add = _with_images if recipe.text_student else _with_prompts
    with tempfile.TemporaryDirectory() as store:
        tests = [add(test, lent, Path(store), settings) for test in tests]
    encoder_of = (_text_tower if recipe.text_student else _image_tower)(recipe, teacher, device)
    return OnlineEvaluator(tests, encoder_of, settings)


def _datasets(recipe: Recipe) -> list[Dataset]:
    """Return the datasets asked for; without names those of the suite that are there."""
    names = recipe.eval_datasets or None
    found, missing = find(recipe.eval_root, names)
    if names and missing:
        raise DataError(
            f"--eval-root {recipe.eval_root}: {', '.join(missing)} is not there; leave it out, or"
            " add its folder"
        )
    if not found:
        raise DataError(
            f"--eval-root {recipe.eval_root}: none of the datasets of the suite is there; expected"
            " one folder per dataset"
        )
    return found


def _open(dataset: Dataset) -> EvalSplit:
    """Return the test split of a dataset; raise DataError when not one of its images can be
    read.
    """
    rows, labels, _ = dataset.rows("test")
    reason = "it is empty"
    for number in range(len(rows)):
        try:
            decode(rows[number].image)
            return EvalSplit(dataset, rows, labels)
        except BadRow as error:
            reason = str(error)
    raise DataError(
        f"{dataset.folder}: no image of the test split can be read ({reason}); mend it, or leave"
        " it out"
    )


def _with_images(test: EvalSplit, encoder: Encoder, store: Path, settings: Settings) -> EvalSplit:
    images = image_features(encoder, test.dataset.benchmark, test.rows, store, settings)
    return EvalSplit(test.dataset, test.rows, test.labels, images, test.weights)


def _with_prompts(test: EvalSplit, encoder: Encoder, store: Path, settings: Settings) -> EvalSplit:
    weights = prompt_weights(encoder, test.dataset.benchmark, store, settings)
    return EvalSplit(test.dataset, test.rows, test.labels, test.images, weights)


def _teacher(card: EncoderCard, recipe: Recipe, device: torch.device) -> Encoder:
    """Return the teacher, which the recipe may place elsewhere, or (``eval_text_model``) the run of
    a text tower of it.
    """
    spec = recipe.eval_text_model or card.name
    try:
        found = load_encoder(spec, str(device))
    except ModelError as error:
        raise ModelError(
            f"evaluation during training needs the other tower, of the teacher '{card.name}':"
            f" {error}; name the teacher's present place with --eval-text-model, or leave"
            " --eval-root out"
        ) from error
    same = (
        card.weights_sha256 is None
        or found.card.weights_sha256 == card.weights_sha256
        or not encoder_mismatch(card, found.card)
    )
    if not same:
        raise ModelError(
            f"{spec}: weights {str(found.card.weights_sha256)[:12]}, but the features are of"
            f" weights {card.weights_sha256[:12]}; name the right teacher with --eval-text-model"
        )
    if found.card.dim != card.dim:
        raise ModelError(
            f"{spec}: {found.card.dim} dimensions, the features have {card.dim}; name their teacher"
        )
    return found


def _encoder(
    model: nn.Module, dim: int, preprocess: dict, tokenizer: Callable | None, device: torch.device
) -> Encoder:
    """Return a model as an encoder that is asked for the towers that it has."""
    card = EncoderCard("the student", None, dim, 1.0, preprocess=preprocess)
    return Encoder(card, model, model, open_clip.transform_of(preprocess), tokenizer, device)


def _image_tower(
    recipe: Recipe, teacher: EncoderCard, device: torch.device
) -> Callable[[nn.Module], Encoder]:
    size = student.resolve(recipe.student, recipe.image_size, teacher.dim).image_size
    preprocess = open_clip.default_preprocess(size)
    return lambda model: _encoder(model, teacher.dim, preprocess, None, device)


def _text_tower(
    recipe: Recipe, teacher: EncoderCard, device: torch.device
) -> Callable[[nn.Module], Encoder]:
    tokenizer = open_clip.tokenizer_for(
        student.resolve_text(recipe.text_student, teacher.dim).config
    )
    return lambda model: _encoder(
        model, teacher.dim, open_clip.default_preprocess(224), tokenizer, device
    )


def _both_towers(recipe: Recipe, device: torch.device) -> Callable[[nn.Module], Encoder]:
    config = student.resolve(recipe.student, recipe.image_size).config
    tokenizer = open_clip.tokenizer_for(config)
    return lambda model: _encoder(
        model, config["embed_dim"], open_clip.preprocess_of(model), tokenizer, device
    )

"""Model: an encoder that takes what people have, images and sentences, and returns embeddings.

:class:`~dimefm.models.encoder.Encoder` works on tensors; a :class:`Model` prepares them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dimefm.errors import BadRow, DataError
from dimefm.models.classify import TEMPLATES, Classifier, classifier_of
from dimefm.models.encoder import Encoder
from dimefm.models.loading import load_encoder
from dimefm.models.preprocess import decoder
from dimefm.storage.reading import read_file

DECODE_THREADS = 8


class Model:
    """A loaded model, teacher or student: ``encode_image`` and ``encode_text`` return embeddings.

    Embeddings are float32 rows of length 1, so ``images @ texts.T`` are cosines. ``name`` says
    where the model came from, ``dim`` is the length D of an embedding, ``logit_scale`` the factor
    that the model was trained to put on cosines.

    Example::

        model = dimefm.load("runs/first")
        images = model.encode_image(["cat.jpg", "dog.jpg"])
        texts = model.encode_text(["a photo of a cat", "a photo of a dog"])
        print(images @ texts.T)
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._decoder = decoder("pil", encoder.image_preprocess)

    @property
    def name(self) -> str:
        """Where the model came from, as it was asked for."""
        return self.encoder.card.name

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.encoder.card.dim

    @property
    def logit_scale(self) -> float:
        """Factor that the model was trained to put on cosines before a softmax."""
        return self.encoder.card.logit_scale

    def __repr__(self) -> str:
        return f"Model({self.name!r}, dim={self.dim}, device={str(self.encoder.device)!r})"

    def encode_image(
        self,
        images: Image.Image | Path | str | Sequence[Image.Image | Path | str],
        batch_size: int = 64,
    ) -> np.ndarray:
        """Return the embedding of an image, float32 [D], or of a sequence of N images, [N, D].

        An image is a PIL image or the path of an image file. It is resized and cropped by the
        model's own preprocessing, as open_clip does it. Raises DataError, naming the image, when
        one cannot be read.
        """
        if isinstance(images, Image.Image | os.PathLike | str):
            return self.encode_image([images], batch_size)[0]
        batches = [np.empty((0, self.dim), dtype=np.float32)]
        for start in range(0, len(images), batch_size):
            pixels = self._batch(images[start : start + batch_size], start)
            inputs = self._decoder.finish(torch.stack(pixels), self.encoder.device)
            batches.append(self.encoder.encode_image(inputs).cpu().numpy())
        return np.concatenate(batches)

    def encode_text(
        self, texts: str | Sequence[str], batch_size: int = 256, truncate: bool = False
    ) -> np.ndarray:
        """Return the embedding of a sentence, float32 [D], or of a sequence of N sentences, [N, D].

        Raises DataError, naming the sentence, for one that is longer than the model's context,
        unless ``truncate`` cuts such sentences, as open_clip does.
        """
        if isinstance(texts, str):
            return self.encode_text([texts], batch_size, truncate)[0]
        batches = [np.empty((0, self.dim), dtype=np.float32)]
        for start in range(0, len(texts), batch_size):
            sentences = list(texts[start : start + batch_size])
            tokens, lengths = self.encoder.tokenize(sentences)
            if not truncate:
                _refuse_long(lengths, tokens.shape[1], start)
            batches.append(self.encoder.encode_text(tokens).cpu().numpy())
        return np.concatenate(batches)

    def classify(
        self,
        images: Image.Image | Path | str | Sequence[Image.Image | Path | str],
        labels: Sequence[str],
        templates: str | Sequence[str] = TEMPLATES,
        batch_size: int = 64,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return {label: score} of an image, the highest score first, or a list of them.

        Each template makes a sentence of a label: ``{label}`` or ``{}`` is its place. Scores are a
        softmax over the labels, so they sum to 1; those of a SigLIP are a sigmoid of each label
        alone, see :mod:`dimefm.models.classify`. Raises DataError, naming it, for an image that
        cannot be read, and for a label or a template that cannot be used.

        Example::

            model.classify("cat.jpg", ["cat", "dog"])  # {"cat": 0.98, "dog": 0.02}
        """
        classifier = self.classifier(labels, templates)
        if isinstance(images, Image.Image | os.PathLike | str):
            return classifier.ranked(self.encode_image([images], batch_size))[0]
        return classifier.ranked(self.encode_image(images, batch_size))

    def classifier(
        self, labels: Sequence[str], templates: str | Sequence[str] = TEMPLATES
    ) -> Classifier:
        """Return the classifier for labels, whose sentences are encoded once for many images.

        Raises DataError for a label or a template that cannot be used.
        """
        texts = (templates,) if isinstance(templates, str) else templates
        return classifier_of(self.encoder.card, self.encode_text, labels, texts)

    def _batch(self, images: Sequence[Image.Image | Path | str], first: int) -> list[torch.Tensor]:
        """Return what the image tower reads of some images; files are decoded side by side.

        A PIL image is read by one thread: two of them may be one object.
        """
        numbers = range(first, first + len(images))
        if len(images) == 1 or any(isinstance(image, Image.Image) for image in images):
            return list(map(self._pixels, images, numbers))
        threads = min(len(images), DECODE_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads, "decode") as pool:
            return list(pool.map(self._pixels, images, numbers))

    def _pixels(self, image: Image.Image | Path | str, number: int) -> torch.Tensor:
        """Return what the image tower reads of one image, [3, H, W]."""
        where = f"image {number}" if isinstance(image, Image.Image) else str(image)
        try:
            if isinstance(image, Image.Image):
                return self._decoder.whole(image)
            return self._decoder(read_file(Path(image)))
        except BadRow as error:
            reason = str(error).removeprefix("cannot be read: ")
            raise DataError(
                f"{where}: cannot be read as an image ({reason}). Fix: give a PIL image or the"
                " path of an image file"
            ) from error


def load(
    model: str | os.PathLike,
    device: str = "auto",
    precision: str = "fp32",
    text_model: str | os.PathLike | None = None,
    preprocess: str | os.PathLike | None = None,
) -> Model:
    """Load a model for inference.

    ``model`` is anything that ``dimefm eval --model`` takes: a run folder, ``ARCH/TAG`` of
    open_clip, ``ARCH/FILE``, a folder of open_clip, transformers or ONNX graphs, ``hf:ORG/MODEL``
    of transformers, or ``timm/NAME.TAG`` (tags and names on a hub are downloaded).
    ``text_model`` names the text tower of a distilled image tower when it has moved. ``preprocess``
    says how images are prepared for ``ARCH/FILE`` where the tags of ARCH differ in it: a tag, or
    the path of an ``open_clip_config.json``. Raises ModelError when the model cannot be loaded.
    """
    text_tower = None if text_model is None else os.fspath(text_model)
    chosen = None if preprocess is None else os.fspath(preprocess)
    return Model(load_encoder(os.fspath(model), device, precision, text_tower, chosen))


def _refuse_long(lengths: Sequence[int], context_length: int, first: int) -> None:
    """Raise DataError for the first sentence that the model's context would cut."""
    for number, length in enumerate(lengths, start=first):
        if length > context_length:
            raise DataError(
                f"text {number}: {length} tokens, expected at most {context_length}. Fix: shorten"
                " it, or pass truncate=True"
            )

"""Fine-tuning: the image tower learns a dataset's classes together with a linear head.

The head begins as the linear probe of :mod:`dimefm.evaluate.probe.clean`, so that the tower is not
pulled towards a head that knows nothing (Kumar et al., "Fine-Tuning can Distort Pretrained Features
and Underperform Out-of-Distribution", ICLR 2022). AdamW has two learning rates, the tower's being
``tower_rate`` times the head's. The toolkit means to have them too, but overwrites the tower's
(``adjust_learning_rate``).

The images, their preparation and the validation images are those of the probe. Images are not
augmented. Each of ``RATES`` is tried, and the epoch with the best validation names the settings;
epoch 0 is the probe. The final tower learns from all training images and sees the test images once.

What is frozen is decided by module: every weight of the image tower learns, its projection
included, and nothing else of the model. The tower stays in evaluation mode, so BatchNorm keeps its
statistics, and dropout and drop-path are off. The encoder itself is not changed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.errors import BadRow, DataError, ModelError
from dimefm.evaluate.features import for_benchmark
from dimefm.evaluate.probe import clean, heads
from dimefm.evaluate.probe.clean import Choice, probabilities_of
from dimefm.evaluate.probe.data import Features, ProbeData, ProbeOutcome, ProbeSplit
from dimefm.evaluate.probe.heads import Heads
from dimefm.evaluate.probe.validation import Candidate, Parts, best_of, candidate, parts
from dimefm.extract.extract import Settings
from dimefm.models.encoder import BorrowedTower, Encoder
from dimefm.models.inference.precision import computing
from dimefm.models.preprocess import decoder
from dimefm.runtime.threads import prefetch_map

EPOCHS = 5
LEAST_STEPS = 100
"""Few images are shown more often, until so many steps are made, or ``MOST_EPOCHS``."""

MOST_EPOCHS = 50
RATES = (1e-3, 1e-4)
"""Learning rates of the head."""

TOWER_RATE = 0.1
"""Learning rate of the tower, as a share of the head's."""

BATCH_SIZE = 32
WEIGHT_DECAY = 0.01
WARM_UP = 0.1
"""Share of the steps of ``EPOCHS`` in which the learning rates rise to their values."""

KEPT_BYTES = 1 << 30
"""Prepared images that stay in memory; others are read again in every epoch."""

FROZEN = "text tower; BatchNorm statistics; dropout and drop-path are off"


@dataclass(frozen=True)
class Options:
    """Epochs at most, and the learning rate of the tower as a share of the head's.

    Without ``epochs`` there are 5, or more for few images.
    """

    epochs: int | None = None
    tower_rate: float = TOWER_RATE


def run(
    encoder: Encoder,
    data: ProbeData,
    places: np.ndarray,
    seed: int,
    settings: Settings,
    *,
    shots: int | None = None,
    options: Options | None = None,
) -> ProbeOutcome:
    """Fine-tune a copy of the image tower and return its probabilities for the test images.

    ``places`` int64 [m] are the training images to learn from, among the readable ones of
    ``data.train``; ``shots`` is as in :class:`dimefm.evaluate.probe.protocols.Protocol`. The labels
    of test images are not used.

    Raises ModelError when the tower has no weights that can be trained, and DataError when there
    are too few images, or one cannot be read any more.
    """
    refuse_untrainable(encoder)
    encoder = for_benchmark(encoder, data.benchmark)
    own = None if data.val is None else data.val.features
    split = parts(data.train.features.take(places), own, shots, seed)
    job = _Job(encoder, data, split, places, settings, seed, options or Options())
    choice = job.chosen_probe()
    tried = job.try_rates(choice)
    best = best_of(tried)
    rate = RATES[best.number]
    tuned = job.new(split.final, choice)
    job.tune(tuned, job.final_images(), rate, best.epoch)
    logits = tuned.logits(job.test_images())
    if not np.isfinite(logits).all():
        raise DataError(
            f"fine-tuning: the weights became infinite with all {len(split.final)} training images"
            f" (learning rate {rate:g}). Fix: tune for fewer epochs"
        )
    details = {
        "protocol": "fine-tuning",
        "learning_rate": rate,
        "tower_learning_rate": rate * job.options.tower_rate,
        "epochs": best.epoch,
        "epochs_tried": job.epochs(len(split.fit)),
        "validation": best.score,
        "validation_loss": best.loss,
        "validation_of_probe": tried[0].score,
        "probe": {
            "learning_rate": choice.rate,
            "weight_decay": choice.decay,
            "epochs": choice.best.epoch,
        },
        "validation_images": len(split.val),
        "validation_source": split.source,
        "train_images": len(split.final),
        "trainable_parameters": tuned.trainable_parameters,
        "frozen": FROZEN,
    }
    return ProbeOutcome(probabilities_of(logits, data.benchmark.multilabel), details)


def refuse_untrainable(encoder: Encoder) -> None:
    """Raise ModelError for an image tower without weights that torch can train: ONNX graphs."""
    weights = list(_tower_of(encoder).visual.parameters())
    if not any(weight.is_floating_point() for weight in weights):
        raise ModelError(
            f"{encoder.card.name}: its image tower cannot be fine-tuned: torch sees no weights in"
            " it, as in a folder of ONNX graphs. Fix: give the run or the weights that it was"
            " exported from, or leave out --fine-tune"
        )


def _tower_of(encoder: Encoder) -> nn.Module:
    model = encoder.image_model
    return model.teacher if isinstance(model, BorrowedTower) else model


class _Tuned:
    """A copy of the model, and a linear head on its standardized unit embeddings."""

    def __init__(self, encoder: Encoder, probe: Heads):
        self.device = encoder.device
        self.precision = "fp32" if encoder.precision == "fp16" else encoder.precision
        self.model = copy.deepcopy(_tower_of(encoder)).float().eval()
        self.model.requires_grad_(False)
        self.tower = self.model.visual
        self.tower.requires_grad_(True)
        self.mean = probe.mean.clone()
        self.factor = torch.rsqrt(probe.variance + heads.EPSILON)
        n_classes, dim = probe.weights[0].shape
        self.head = nn.Linear(dim, n_classes, device=self.device)
        with torch.no_grad():
            self.head.weight.copy_(probe.weights[0])
            self.head.bias.copy_(probe.biases[0])

    @property
    def trainable_parameters(self) -> int:
        """Number of weights that learn: those of the image tower and of the head."""
        weights = itertools.chain(self.tower.parameters(), self.head.parameters())
        return sum(weight.numel() for weight in weights if weight.requires_grad)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return logits float32 [B, C] of pixels [B, 3, H, W]."""
        with computing(self.precision, self.device):
            rows = self.model.encode_image(pixels)
        rows = F.normalize(rows.float(), dim=-1)
        return self.head((rows - self.mean) * self.factor)

    @torch.no_grad()
    def logits(self, images: _Images) -> np.ndarray:
        """Return the logits float32 [n, C] of all images."""
        found = []
        for pixels, _ in images.batches(np.arange(len(images))):
            found.append(self(pixels).cpu().numpy())
        return np.concatenate(found)


class _Images:
    """Some images of a split, prepared as the encoder asks, with their labels, or with zeros.

    As many prepared images as fit into ``KEPT_BYTES`` are kept for the next epoch.
    """

    def __init__(
        self,
        encoder: Encoder,
        split: ProbeSplit,
        places: np.ndarray,
        labels: np.ndarray | None,
        settings: Settings,
    ):
        self.device = encoder.device
        self.decoder = decoder(settings.decoder, encoder.image_preprocess)
        self.rows = split.rows
        self.numbers = split.readable[places]
        self.labels = torch.as_tensor(np.zeros(len(places)) if labels is None else labels)
        self.workers = max(1, settings.workers)
        self._kept: dict[int, Tensor] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def batches(self, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels float32 [B, 3, H, W] on the device, and the labels, in this order."""
        chunks = [order[first : first + BATCH_SIZE] for first in range(0, len(order), BATCH_SIZE)]
        with ThreadPoolExecutor(self.workers, "images") as pool:
            prepared = prefetch_map(pool, self.workers + 1, self._prepared, chunks)
            with contextlib.closing(prepared):
                for chunk, pixels in prepared:
                    finished = self.decoder.finish(pixels, self.device)
                    yield finished, self.labels[chunk].to(self.device)

    def _prepared(self, chunk: np.ndarray) -> Tensor:
        return torch.stack([self._pixels(int(place)) for place in chunk])

    def _pixels(self, place: int) -> Tensor:
        pixels = self._kept.get(place)
        if pixels is not None:
            return pixels
        number = int(self.numbers[place])
        try:
            pixels = self.decoder(self.rows[number].image)
        except BadRow as error:
            raise DataError(
                f"fine-tuning: image {number} could be read before, and now {error}. Fix: evaluate"
                " again when nothing else changes the images"
            ) from error
        n_bytes = pixels.numel() * pixels.element_size()
        if self._kept_bytes + n_bytes <= KEPT_BYTES:
            self._kept_bytes += n_bytes
            self._kept[place] = pixels
        return pixels


@dataclass(frozen=True)
class _Job:
    """What all towers of one fine-tuning have in common."""

    encoder: Encoder
    data: ProbeData
    split: Parts
    places: np.ndarray
    settings: Settings
    seed: int
    options: Options

    def fit_images(self) -> _Images:
        """Return the images that the rates are tried on."""
        places = self.places[self.split.fit_places]
        return self._images(self.data.train, places, self.split.fit.labels)

    def val_images(self) -> _Images:
        """Return the images that the rates are scored on."""
        labels = self.split.val.labels
        if self.split.val_places is None:
            return self._images(self.data.val, np.arange(len(labels)), labels)
        return self._images(self.data.train, self.places[self.split.val_places], labels)

    def final_images(self) -> _Images:
        """Return the images that the final tower learns from."""
        places = self.places[self.split.final_places]
        return self._images(self.data.train, places, self.split.final.labels)

    def test_images(self) -> _Images:
        """Return the images of the test set, without their labels."""
        return self._images(self.data.test, np.arange(len(self.data.test.readable)), None)

    def _images(self, split: ProbeSplit, places: np.ndarray, labels: np.ndarray | None) -> _Images:
        return _Images(self.encoder, split, places, labels, self.settings)

    def chosen_probe(self) -> Choice:
        """Return the settings of the linear probe with which the head begins."""
        benchmark = self.data.benchmark
        return clean.choose(
            self.split,
            self.data.start,
            benchmark.metric,
            benchmark.multilabel,
            self.seed,
            len(benchmark.classes),
            str(self.encoder.device),
        )

    def new(self, features: Features, choice: Choice) -> _Tuned:
        """Return the tower before any training, with the probe of ``features``."""
        probe = clean.train_chosen(
            features,
            choice,
            self.data.start,
            self.seed,
            len(self.data.benchmark.classes),
            str(self.encoder.device),
        )
        return _Tuned(self.encoder, probe)

    def epochs(self, n_images: int) -> int:
        """Return how many epochs are tried with so many images."""
        if self.options.epochs is not None:
            return self.options.epochs
        steps_per_epoch = math.ceil(n_images / BATCH_SIZE)
        for_few = math.ceil(LEAST_STEPS / steps_per_epoch)
        return max(EPOCHS, min(MOST_EPOCHS, for_few))

    def try_rates(self, choice: Choice) -> list[Candidate]:
        """Return each rate after each epoch, scored on the validation images; the probe first.

        The probe learned from the same images as the towers, so that none knows the validation.
        """
        benchmark = self.data.benchmark
        fit_images = self.fit_images()
        val_images = self.val_images()
        tried: list[Candidate] = []

        def score(number: int, epoch: int, tuned: _Tuned) -> None:
            logits = tuned.logits(val_images)
            if np.isfinite(logits).all():
                probabilities = probabilities_of(logits, benchmark.multilabel)
                labels = self.split.val.labels
                tried.append(candidate(number, epoch, probabilities, labels, benchmark.metric))

        first = self.new(self.split.fit, choice)
        score(0, 0, first)
        for number, rate in enumerate(RATES):
            tuned = copy.deepcopy(first)
            after_epoch = functools.partial(score, number)
            self.tune(tuned, fit_images, rate, self.epochs(len(fit_images)), after_epoch)
        return tried

    def tune(
        self,
        tuned: _Tuned,
        images: _Images,
        rate: float,
        epochs: int,
        after_epoch: Callable[[int, _Tuned], None] | None = None,
    ) -> None:
        """Train a tower and its head in place for a number of epochs."""
        groups = [
            {"params": list(tuned.head.parameters()), "rate": rate},
            {"params": list(tuned.tower.parameters()), "rate": rate * self.options.tower_rate},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=WEIGHT_DECAY)
        draws = np.random.default_rng(self.seed)
        steps_per_epoch = math.ceil(len(images) / BATCH_SIZE)
        warm_up = max(1, round(WARM_UP * steps_per_epoch * EPOCHS))
        step = 0
        for epoch in range(1, epochs + 1):
            for pixels, labels in images.batches(draws.permutation(len(images))):
                step += 1
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * min(1.0, step / warm_up)
                optimizer.zero_grad()
                self._loss(tuned(pixels), labels).backward()
                optimizer.step()
            if after_epoch is not None:
                after_epoch(epoch, tuned)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.data.benchmark.multilabel:
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels)

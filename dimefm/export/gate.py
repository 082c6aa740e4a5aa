"""The gate of every export: what was written is loaded again and compared with the model.

Embeddings of the same pixels and prompts are compared by their cosines. Where datasets are given,
the model and each variant are scored on them, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dimefm.errors import ModelError
from dimefm.evaluate import zero_shot
from dimefm.export.formats import Variant
from dimefm.export.probe import ODD_PROMPTS, PLAIN_PROMPTS, Probe
from dimefm.models.encoder import Encoder


@dataclass(frozen=True)
class Agreement:
    """How near the embeddings of a variant are to the model's: the least and the mean cosine.

    ``prepared_least`` is the least cosine where the variant prepares the images itself. The cosines
    of texts are None where the text tower was left out. ``scores`` maps a dataset to its score
    before and after.
    """

    variant: str
    images: int
    image_least: float
    image_mean: float
    prepared_least: float
    texts: int = 0
    text_least: float | None = None
    text_mean: float | None = None
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the comparison in one line, for people."""
        words = (
            f"{self.variant}: cosine of {self.images} images at least {self.image_least:.7f}, mean"
            f" {self.image_mean:.7f}"
        )
        if self.text_least is not None:
            words += (
                f"; of {self.texts} prompts at least {self.text_least:.7f}, mean"
                f" {self.text_mean:.7f}"
            )
        for dataset, (before, after) in self.scores.items():
            words += f"; {dataset} {100 * before:.2f} % -> {100 * after:.2f} %"
        return words


@dataclass(frozen=True)
class Evaluation:
    """Datasets on which a model is scored before and after: names below ``root``, or all."""

    root: Path
    datasets: tuple[str, ...] = ()

    def scores(self, encoder: Encoder) -> dict[str, float]:
        """Return the score in 0..1 of each dataset."""
        names = list(self.datasets) or None
        results = zero_shot.evaluate(encoder, self.root, names=names)
        return {result.dataset: float(result.value) for result in results}


def compare(before: Encoder, variant: Variant, probe: Probe) -> Agreement:
    """Return how near a variant's embeddings are to those of the model ``before``.

    Both encoders get the same pixels; each makes the tokens of the prompts itself.
    """
    after = variant.encoder
    expected = before.encode_image(probe.pixels).cpu().numpy()
    images = _cosines(expected, after.encode_image(probe.pixels).cpu().numpy())
    prepared = torch.stack([after.preprocess(image) for image in probe.images])
    own = _cosines(expected, after.encode_image(prepared).cpu().numpy())
    agreement = Agreement(
        variant=variant.name,
        images=len(images),
        image_least=_least(images),
        image_mean=float(images.mean()),
        prepared_least=_least(own),
    )
    if not variant.has_text:
        return agreement
    prompts = list(PLAIN_PROMPTS)
    if not variant.plain_texts:
        prompts += ODD_PROMPTS
    texts = _cosines(_embedded(before, prompts), _embedded(after, prompts))
    return dataclasses.replace(
        agreement,
        texts=len(texts),
        text_least=_least(texts),
        text_mean=float(texts.mean()),
    )


def _embedded(encoder: Encoder, prompts: list[str]) -> np.ndarray:
    tokens, _ = encoder.tokenize(prompts)
    return encoder.encode_text(tokens).cpu().numpy()


def check(agreement: Agreement, least_cosine: float, most_loss: float) -> None:
    """Raise ModelError when a cosine is below ``least_cosine``, or a score fell by more than
    ``most_loss``.
    """
    values = {"images": agreement.image_least, "texts": agreement.text_least}
    for kind, least in values.items():
        if least is not None and not least >= least_cosine:
            raise ModelError(
                f"{agreement.variant}: the export computes other embeddings of {kind}: cosine"
                f" {least:.6f}, expected at least {least_cosine}; nothing was written. Fix: export"
                " to another format, or set --least-cosine if that is near enough"
            )
    for dataset, (before, after) in agreement.scores.items():
        if not before - after <= most_loss:
            raise ModelError(
                f"{agreement.variant}: {dataset} falls from {100 * before:.2f} % to"
                f" {100 * after:.2f} %, expected at most {100 * most_loss:g} points; nothing was"
                " written. Fix: export without quantization, or set --most-loss if that is enough"
            )


def scored(
    agreement: Agreement,
    evaluation: Evaluation,
    scores_before: dict[str, float],
    variant: Variant,
) -> Agreement:
    """Return an agreement with the scores of the model and of a variant that has both towers."""
    if not variant.has_text:
        return agreement
    scores_after = evaluation.scores(variant.encoder)
    pairs = {}
    for dataset, before in scores_before.items():
        pairs[dataset] = (before, scores_after.get(dataset, 0.0))
    return dataclasses.replace(agreement, scores=pairs)


def pass_through(
    before: Encoder,
    variants: Sequence[Variant],
    probe: Probe,
    *,
    least_cosine: float | None = None,
    most_loss: float = 0.01,
    evaluation: Evaluation | None = None,
) -> list[Agreement]:
    """Compare all variants with the model ``before``; return what was found.

    ``least_cosine`` replaces the limit of every variant. Raises ModelError for the first variant
    beyond a limit, and when there is an ``evaluation`` and no variant with a text tower.
    """
    agreements = []
    for variant in variants:
        limit = variant.least_cosine if least_cosine is None else least_cosine
        agreement = compare(before, variant, probe)
        check(agreement, limit, most_loss)
        agreements.append(agreement)
    if evaluation is None:
        return agreements
    if not any(variant.has_text for variant in variants):
        raise ModelError(
            f"--eval-root {evaluation.root}: the export has no text tower to score, or was not"
            " loaded again; nothing was written. Fix: remove --eval-root"
        )
    scores_before = evaluation.scores(before)
    for number, variant in enumerate(variants):
        agreement = scored(agreements[number], evaluation, scores_before, variant)
        check(agreement, -1.0, most_loss)
        agreements[number] = agreement
    return agreements


def _cosines(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the cosines of unit rows; raise ModelError where the shapes differ."""
    if before.shape != after.shape:
        raise ModelError(
            f"the export gives embeddings of shape {list(after.shape)}, expected"
            f" {list(before.shape)}. Fix: export to another format"
        )
    return (before.astype(np.float64) * after.astype(np.float64)).sum(axis=1)


def _least(cosines: np.ndarray) -> float:
    """Return the least cosine; NaN, which no limit lets pass, where one is NaN."""
    return float(np.min(cosines))

"""Zero-shot classification: labels become prompts, prompts embeddings, and cosines scores.

With K labels and T templates, the embedding of a label is the mean of its T unit embeddings,
brought to length 1, as in OpenAI's CLIP (notebooks/Prompt_Engineering_for_ImageNet.ipynb). The
scores of an image are a softmax over the labels of ``logit_scale`` times the cosines. A model with
a ``logit_bias`` (SigLIP) was trained to judge each label alone: there a score is the sigmoid of
``logit_scale * cosine + logit_bias``, and the scores of an image need not sum to 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.cache import EncoderCard
from dimefm.errors import DataError
from dimefm.runtime.printable import shown
from dimefm.runtime.vectors import unit_rows

TEMPLATES = ("a photo of a {label}.",)
PLACE = re.compile(r"\{(?:label|c)?\}")
"""Where the label goes: ``{label}``, ``{}`` as in this package's dataset cards, or ``{c}`` as in
clip_benchmark's files.
"""
TEXT_NUMBER = re.compile(r"text ([0-9]+): ")  # at the start of a message
MOST_LABELS = 100_000
LEAST_LENGTH = 1e-12


@dataclass(frozen=True)
class Classifier:
    """K labels with their unit embeddings, float32 [K, D], and how cosines become scores."""

    labels: tuple[str, ...]
    embeddings: np.ndarray
    logit_scale: float
    logit_bias: float | None = None

    @property
    def rule(self) -> str:
        """What makes scores of logits: "softmax" over the labels, or "sigmoid" of each."""
        return "softmax" if self.logit_bias is None else "sigmoid"

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Return scores in 0..1, float64 [N, K], of unit image embeddings [N, D]."""
        logits = self.logit_scale * images.astype(np.float64) @ self.embeddings.T
        if self.logit_bias is not None:
            return 0.5 * (1 + np.tanh((logits + self.logit_bias) / 2))  # a sigmoid, never too large
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def ranked(self, images: np.ndarray) -> list[dict[str, float]]:
        """Return {label: score} of each image, the highest score first."""
        rankings = []
        for row in self.scores(images):
            order = np.argsort(-row, kind="stable")
            rankings.append({self.labels[place]: float(row[place]) for place in order})
        return rankings


def classifier_of(
    card: EncoderCard,
    embed: Callable[[list[str]], np.ndarray],
    labels: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Classifier:
    """Return the classifier of a model for labels.

    ``embed`` returns the unit embeddings [N, D] of N sentences. Raises DataError, naming the label
    or the template, for one that cannot be used.
    """
    names = check_labels(labels, fewest=2 if card.logit_bias is None else 1)
    texts = check_templates(templates)
    prompts = []
    for name in names:
        prompts += [filled(template, name) for template in texts]
    try:
        embedded = embed(prompts)
    except DataError as error:
        raise _about_label(error, names, len(texts)) from error
    rows = embedded.reshape(len(names), len(texts), -1)
    embeddings = unit_rows(rows.mean(axis=1), eps=LEAST_LENGTH)
    return Classifier(names, embeddings, card.logit_scale, card.logit_bias)


def _about_label(error: DataError, names: Sequence[str], per_label: int) -> DataError:
    """Return an error of a sentence, "text 3: ...", as one of the label that it was made of."""
    match = TEXT_NUMBER.match(str(error))
    if match is None:
        return error
    name = names[int(match[1]) // per_label]
    reason = str(error)[match.end() :].partition(". Fix: ")[0]
    return DataError(f"label '{shown(name)}': its sentence has {reason}. Fix: shorten the label")


def filled(template: str, label: str) -> str:
    """Return a template with a label in its place."""
    return PLACE.sub(lambda _: label, template)


def check_labels(labels: Sequence[str], fewest: int = 1) -> tuple[str, ...]:
    """Return the labels without blanks around them.

    Raises DataError when there are too few or too many, one is empty, or one stands twice.
    """
    if isinstance(labels, str):
        raise DataError(f"labels: got one text, {shown(labels)!r}. Fix: pass a list of labels")
    names = tuple(str(label).strip() for label in labels)
    if len(names) < fewest or len(names) > MOST_LABELS:
        raise DataError(
            f"labels: {len(names):,} given, expected {fewest} to {MOST_LABELS:,}. Fix: name the"
            " labels among which an image is classified, or a file with one a line"
        )
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"label {number}: is empty. Fix: remove it")
        if name in seen:
            raise DataError(f"label {number}: '{shown(name)}' stands twice. Fix: remove one")
        seen.add(name)
    return names


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates; raise DataError for one without a place for the label, or for none."""
    texts = (templates,) if isinstance(templates, str) else tuple(templates)
    for text in texts:
        if not PLACE.search(text):
            raise DataError(
                f"template '{shown(text)}': has no place for the label, expected e.g."
                f" '{TEMPLATES[0]}'. Fix: write {{label}} or {{}} where the label goes"
            )
    if not texts:
        raise DataError(f"templates: there are none, expected e.g. '{TEMPLATES[0]}'. Fix: pass one")
    return texts

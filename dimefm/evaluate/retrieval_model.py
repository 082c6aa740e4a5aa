"""Image-text retrieval with a model: encode images and captions, and score them by recall.

The ranks are those of :mod:`dimefm.evaluate.retrieval`: any caption of an image is right, and ties
count against. Without ties recall at K is clip-benchmark's: its ``image_retrieval_recall`` is
"text to image" here, its ``text_retrieval_recall`` "image to text". clip-benchmark takes ties, as
of equal captions of several images, in the order of ``torch.topk``: its figure then lies between
ours and that with ties in favor, which is in the note.

Sources: clip_benchmark 1.6.2, metrics/zeroshot_retrieval.py; CLIP-KD (CVPR 2024), src/training/
data.py:98-139 and train.py:374-391, which take only the first caption of each image.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dimefm.errors import DataError, did_you_mean
from dimefm.evaluate import costs, retrieval
from dimefm.evaluate.datasets.captions.pair_set import PairSet
from dimefm.evaluate.features import caption_features, row_features
from dimefm.evaluate.preparing import feature_store
from dimefm.evaluate.profiling import facts
from dimefm.evaluate.reports import in_markdown, wrapped
from dimefm.evaluate.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from dimefm.evaluate.score_tables import remarks
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.runs.scores import (
    RETRIEVAL,
    RETRIEVAL_FIRST,
    UNREADABLE_AS_WRONG,
    Result,
    Scores,
    recall_name,
    write_scores,
)
from dimefm.runtime.tables import aligned, markdown_table
from dimefm.runtime.text import shortened
from dimefm.storage.files import write_text

CAPTIONS = ("all", "first")
PROTOCOLS = {
    "all": f"all captions of an image; {retrieval.PROTOCOL}",
    "first": f"the first caption of each image (CLIP-KD's protocol); {retrieval.PROTOCOL}",
}
MEAN_RECALL = "mean recall"
RETRIEVED = "retrieved.jsonl"
SEED = 0
EXAMPLES = 24
"""Queries of each direction whose best candidates are kept."""

LONGEST_CAPTION = 1000
"""Characters of a caption in the examples."""

BEST = 5
"""Candidates that are kept of a query."""


@dataclass(frozen=True)
class Compared:
    """Embeddings that are compared.

    ``images`` [n, D] are those of the rows ``readable`` [n] of the pair set. ``texts`` [m, D] are
    those of ``captions``, whose images stand at the places ``image_of`` [m] among the n.
    """

    pair_set: PairSet
    images: np.ndarray
    readable: np.ndarray
    texts: np.ndarray
    captions: Sequence[str]
    image_of: np.ndarray
    n_cut: int


def evaluate_retrieval(
    encoder: Encoder,
    pair_set: PairSet,
    store: Path,
    settings: Settings,
    captions: str = "all",
) -> Result:
    """Return recall at 1, 5 and 10 of an encoder in both directions.

    With ``captions`` "all" every caption is a query, and any of its captions is right for an image.
    With "first" an image has only its first caption. Embeddings are kept in the folder ``store``.
    The metrics are 0 to 1 and called ``text to image R@1`` and so on; ``details["directions"]`` has
    of each direction the numbers of queries and candidates, and the mean and the median rank of the
    best right candidate, the first place being 1. Where captions stand with several images,
    ``details["ties_in_favor"]`` has the metrics for ties that count in favor.

    An image that cannot be read is counted as unreadable, and its captions are no queries. An image
    without captions is a candidate and no query.

    Raises DataError when no image can be read, or none of those has a caption.
    """
    return result_of(compare(encoder, pair_set, store, settings, captions), captions)


def compare(
    encoder: Encoder, pair_set: PairSet, store: Path, settings: Settings, captions: str = "all"
) -> Compared:
    """Return the embeddings to compare, as :func:`evaluate_retrieval` does."""
    if captions not in CAPTIONS:
        raise DataError(f"unknown --captions {captions}: {did_you_mean(captions, CAPTIONS)}")
    encoder.require_text()
    if not any(pair_set.captions):
        raise DataError(
            f"{pair_set.name}: none of its {len(pair_set):,} images has a caption. Fix: check the"
            " file of captions"
        )
    images, readable = row_features(encoder, pair_set.name, pair_set.rows, store, settings)
    texts: list[str] = []
    text_images: list[int] = []
    for place, number in enumerate(readable):
        of_image = pair_set.captions[number]
        if captions == "first":
            of_image = of_image[:1]
        texts += of_image
        text_images += [place] * len(of_image)
    if not texts:
        raise DataError(
            f"{pair_set.name}: none of the {len(readable):,} images that can be read has a caption."
            " Fix: fetch the others again"
        )
    embeddings, n_cut = caption_features(encoder, texts, store, settings)
    image_of = np.array(text_images, dtype=np.int64)
    return Compared(pair_set, images, readable, embeddings, texts, image_of, n_cut)


def result_of(compared: Compared, captions: str) -> Result:
    """Return the recalls of embeddings that are compared; ``captions`` is "all" or "first"."""
    with_text = np.unique(compared.image_of)
    image_ranks, text_ranks = _ranks(compared, with_text, ties_against=True)
    unreadable = len(compared.pair_set.rows) - len(compared.readable)
    details: dict[str, Any] = {
        "directions": {
            TEXT_TO_IMAGE: _direction(image_ranks, len(compared.images)),
            IMAGE_TO_TEXT: _direction(text_ranks, len(compared.texts)),
        },
        "captions": captions,
        "layout": compared.pair_set.layout,
        "cut_captions": compared.n_cut,
        "images_without_caption": len(compared.images) - len(with_text),
    }
    lost = _lost(compared, captions)
    metrics = _recalls(image_ranks, text_ranks)
    main_metric = recall_name(TEXT_TO_IMAGE, retrieval.AT[0])
    if unreadable:
        n_texts = len(compared.texts)
        details[UNREADABLE_AS_WRONG] = metrics[main_metric] * n_texts / (n_texts + lost)
    notes = _notes(compared, lost, len(compared.images) - len(with_text))
    n_shared = _shared(compared)
    if n_shared:
        favorable = _recalls(*_ranks(compared, with_text, ties_against=False))
        details["ties_in_favor"] = favorable
        notes.append(_note_on_ties(n_shared, favorable))
    return Result(
        task=RETRIEVAL if captions == "all" else RETRIEVAL_FIRST,
        dataset=compared.pair_set.name,
        metrics=metrics,
        main_metric=main_metric,
        samples=len(compared.images),
        unreadable=unreadable,
        chance=1 / len(compared.images),
        note="; ".join(notes),
        details=details,
    )


def _direction(ranks: np.ndarray, n_candidates: int) -> dict[str, Any]:
    return {
        "queries": len(ranks),
        "candidates": n_candidates,
        "mean_rank": round(float(ranks.mean()) + 1, 3),
        "median_rank": float(np.median(ranks)) + 1,
    }


def _ranks(
    compared: Compared, with_text: np.ndarray, ties_against: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of the best right candidate of each caption, and of the images with one."""
    image_numbers = np.arange(len(compared.images))
    image_ranks = retrieval.ranks(
        compared.texts,
        compared.image_of,
        compared.images,
        image_numbers,
        ties_against=ties_against,
    )
    text_ranks = retrieval.ranks(
        compared.images[with_text],
        with_text,
        compared.texts,
        compared.image_of,
        ties_against=ties_against,
    )
    return image_ranks, text_ranks


def _recalls(image_ranks: np.ndarray, text_ranks: np.ndarray) -> dict[str, float]:
    return {
        **retrieval.recalls(TEXT_TO_IMAGE, image_ranks),
        **retrieval.recalls(IMAGE_TO_TEXT, text_ranks),
    }


def _lost(compared: Compared, captions: str) -> int:
    """Return how many captions are left out because their image cannot be read."""
    readable = set(compared.readable.tolist())
    lost = 0
    for number, of_image in enumerate(compared.pair_set.captions):
        if number not in readable:
            lost += len(of_image) if captions == "all" else min(1, len(of_image))
    return lost


def _notes(compared: Compared, lost: int, n_without: int) -> list[str]:
    """Return what a reader must know of the data."""
    pair_set = compared.pair_set
    notes = [pair_set.note] if pair_set.note else []
    if lost:
        notes.append(f"{lost:,} captions of unreadable images left out")
    if n_without:
        notes.append(f"{n_without:,} images without a caption are candidates, not queries")
    if compared.n_cut:
        notes.append(
            f"{compared.n_cut:,} of {len(compared.captions):,} captions are longer than the"
            " encoder's context and were cut"
        )
    return notes


def _note_on_ties(n_shared: int, favorable: Mapping[str, float]) -> str:
    """Return what captions that stand with several images do to the recalls."""
    best = []
    for direction in (TEXT_TO_IMAGE, IMAGE_TO_TEXT):
        name = recall_name(direction, retrieval.AT[0])
        best.append(f"{name} {100 * favorable[name]:.2f}")
    return (
        f"{n_shared:,} captions stand with several images, where only their own one is right; with"
        f" ties in favor: {', '.join(best)}"
    )


def _shared(compared: Compared) -> int:
    """Return how many captions are also, word for word, captions of another image."""
    pairs = set(zip(compared.captions, compared.image_of.tolist(), strict=True))
    images_of = Counter(caption for caption, _ in pairs)
    return sum(images_of[caption] > 1 for caption in compared.captions)


def mean_recall(result: Result) -> float:
    """Return the mean of the recalls at all K in both directions, 0 to 1."""
    return float(np.mean(list(result.metrics.values())))


def score(
    encoder: Encoder,
    pair_set: PairSet,
    out: Path,
    settings: Settings,
    captions: str = "all",
    choices: Mapping[str, Any] | None = None,
) -> Scores:
    """Score an encoder by retrieval, and keep scores, report, examples and embeddings in ``out``.

    ``choices`` are the settings to state in the scores besides ``captions``. Raises as
    :func:`evaluate_retrieval` does.
    """
    with feature_store(out) as store:
        return _scored_and_kept(encoder, pair_set, out, store, settings, captions, choices or {})


def _scored_and_kept(
    encoder: Encoder,
    pair_set: PairSet,
    out: Path,
    store: Path,
    settings: Settings,
    captions: str,
    choices: Mapping[str, Any],
) -> Scores:
    """Score an encoder and write the files of :func:`score`."""
    started = time.perf_counter()
    compared = compare(encoder, pair_set, store, settings, captions)
    result = result_of(compared, captions)
    scores = Scores(
        model=encoder.card.name,
        weights_sha256=encoder.card.weights_sha256,
        protocol=PROTOCOLS[captions],
        results=(result,),
        encoder=facts(encoder),
        summary={MEAN_RECALL: mean_recall(result)},
        seconds=round(time.perf_counter() - started, 3),
        settings={"captions": captions, **choices},
    )
    lines = [json.dumps(entry) + "\n" for entry in examples(compared)]
    write_text(out / RETRIEVED, "".join(lines))
    write_scores(out, scores, markdown(scores))
    return scores


def terminal(scores: Scores) -> str:
    """Return the scores as a table in percent for each dataset, with notes below it."""
    lines: list[str] = []
    for result in scores.results:
        if len(scores.results) > 1:
            lines += ["", result.dataset]
        lines += aligned(retrieval.table(result))
    for remark in [*remarks(scores), *costs.speeds(scores.encoder)]:
        lines += ["", remark]
    return "\n".join(wrapped(line) for line in lines)


def markdown(scores: Scores) -> str:
    """Return the scores as a Markdown report."""
    weights = (scores.weights_sha256 or "unknown")[:12]
    lines = [
        f"# Retrieval with {in_markdown(scores.model)}",
        "",
        f"Recall in percent, weights `{weights}`. Protocol: {in_markdown(scores.protocol)}.",
    ]
    for result in scores.results:
        lines += ["", f"## {in_markdown(result.dataset)}", ""]
        lines += markdown_table(retrieval.table(result))
    for remark in remarks(scores):
        lines += ["", in_markdown(remark)]
    versions = [f"{name} {version}" for name, version in scores.libraries.items()]
    lines += ["", f"Made with {', '.join(versions)}."]
    return "\n".join(lines) + "\n"


def examples(compared: Compared, count: int = EXAMPLES, seed: int = SEED) -> list[dict[str, Any]]:
    """Return the best candidates of some queries of each direction, ready for JSON.

    ``count`` queries are drawn by the ``seed``. An entry has the ``dataset``, the ``direction``,
    the ``query``, the right candidates (``right``), the ``rank`` of the best of these, from 1, and
    the five best ``candidates``, the first the best, each with its ``cosine`` and ``is_right``. An
    image is given by ``source`` (its shard), ``row`` in it and ``key``, a caption by ``caption`` in
    addition, which then is one of that image.
    """
    random = np.random.default_rng(seed)
    images = unit(compared.images)
    texts = unit(compared.texts)
    places = _Places(compared)
    entries = []
    with_text = np.unique(compared.image_of)
    for caption in _drawn(random, np.arange(len(texts)), count):
        right = [int(compared.image_of[caption])]
        entry = _example(texts[caption] @ images.T, right, places.image)
        entry |= {"direction": TEXT_TO_IMAGE, "query": places.caption(caption)}
        entries.append(entry)
    for image in _drawn(random, with_text, count):
        right = np.flatnonzero(compared.image_of == image).tolist()
        entry = _example(images[image] @ texts.T, right, places.caption)
        entry |= {"direction": IMAGE_TO_TEXT, "query": places.image(image)}
        entries.append(entry)
    return [{"dataset": compared.pair_set.name, **entry} for entry in entries]


def _drawn(random: np.random.Generator, numbers: np.ndarray, count: int) -> list[int]:
    chosen = random.choice(numbers, min(count, len(numbers)), replace=False)
    return sorted(chosen.tolist())


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows [n, D] at unit length."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _example(cosines: np.ndarray, right: list[int], describe) -> dict[str, Any]:
    """Return the best candidates by their cosines [N] with a query, and the right ones."""
    order = np.argsort(-cosines, kind="stable")[:BEST]
    candidates = []
    for number in order.tolist():
        cosine = round(float(cosines[number]), 4)
        candidates.append({**describe(number), "cosine": cosine, "is_right": number in right})
    before = cosines >= cosines[right].max() - retrieval.TIE
    before[right] = False
    return {
        "rank": int(before.sum()) + 1,
        "candidates": candidates,
        "right": [describe(number) for number in right],
    }


class _Places:
    """Where images and captions are found again."""

    def __init__(self, compared: Compared):
        self._compared = compared
        self._keys: dict[int, list[str]] = {}

    def image(self, place: int) -> dict[str, Any]:
        """Return source, row and key of the image at a place."""
        rows = self._compared.pair_set.rows
        number, row = rows.locate(int(self._compared.readable[place]))
        if number not in self._keys:
            self._keys[number] = rows.shards[number].keys()
        return {
            "source": rows.shards[number].name,
            "row": row,
            "key": self._keys[number][row],
        }

    def caption(self, number: int) -> dict[str, Any]:
        """Return a caption and the place of its image."""
        image = self.image(int(self._compared.image_of[number]))
        caption = self._compared.captions[number]
        return {**image, "caption": shortened(caption, LONGEST_CAPTION)}

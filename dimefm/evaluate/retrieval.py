"""Image-text retrieval from two caches of one encoder, with numpy only.

Recall at 1, 5 and 10 is measured in both directions. Embeddings are compared by cosine in float32.
A query counts as found at K when its best right candidate is among the first K. Every wrong
candidate with a cosine as high (to within 1e-6, the uncertainty of float32 sums) is ranked before
it. So ties never help: a model that gives all inputs the same vector scores 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.cache.manifest import encoder_mismatch
from dimefm.data.pairing import keys_of, pair
from dimefm.data.selection import within
from dimefm.data.views.patch_tokens import expect_rows
from dimefm.errors import CacheError, DataError
from dimefm.evaluate.reports import in_markdown, wrapped
from dimefm.runs.scores import RETRIEVAL, Result, RetrievalScores, recall_name
from dimefm.runtime.tables import aligned, markdown_table
from dimefm.runtime.vectors import unit_rows

AT = (1, 5, 10)
TIE = np.float32(1e-6)
BLOCK = 4096  # queries, and candidates, that are compared at once
PROTOCOL = "cosine, float32; the best right candidate counts; ties count against it"
TEXT_TO_IMAGE = "text to image"
IMAGE_TO_TEXT = "image to text"
HEADS = ("direction", *(f"R@{k}" for k in AT), "queries", "candidates")


@dataclass(frozen=True)
class Subset:
    """The rows ``numbers``, int64, of an array or cache, to be read in slices."""

    source: np.ndarray | FeatureCache
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, places: np.ndarray) -> Subset:
        """Return the rows at ``places``, int64, of this subset."""
        return Subset(self.source, self.numbers[places])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        return self.source[self.numbers[places]]


def ranks(
    queries: np.ndarray | Subset,
    groups: np.ndarray,
    candidates: np.ndarray | Subset,
    candidate_groups: np.ndarray,
    block: int = BLOCK,
    *,
    ties_against: bool = True,
) -> np.ndarray:
    """Return the rank, int64 [Q], of the best right candidate of each query; 0 is the first place.

    ``queries`` [Q, D] and ``candidates`` [N, D] are arrays, or read in slices; at most two blocks
    of rows and their scores [block, block] are in memory. A candidate is right when its group, a
    whole number, is the query's. The rank is the number of wrong candidates whose cosine is at
    least that of the best right one, less 1e-6; without ``ties_against``, plus 1e-6.

    Raises ValueError when a query has no right candidate.
    """
    if not np.isin(groups, candidate_groups).all():
        raise ValueError("a query has no right candidate")
    by_group = np.argsort(candidate_groups, kind="stable")
    sorted_groups = candidate_groups[by_group]
    query_ranks = np.zeros(len(queries), dtype=np.int64)
    for query_start in range(0, len(queries), block):
        query_block = slice(query_start, query_start + block)
        unit_queries = _unit(queries[query_block])
        query_groups = groups[query_block]
        best = _best_right(unit_queries, query_groups, candidates, by_group, sorted_groups, block)
        least = (best - TIE if ties_against else best + TIE)[:, None]
        for start in range(0, len(candidates), block):
            candidate_block = slice(start, start + block)
            unit_candidates = _unit(candidates[candidate_block])
            ranked_before = unit_queries @ unit_candidates.T >= least
            ranked_before &= query_groups[:, None] != candidate_groups[candidate_block]
            query_ranks[query_block] += np.count_nonzero(ranked_before, axis=1)
    return query_ranks


def _best_right(
    unit_queries: np.ndarray,
    groups: np.ndarray,
    candidates: np.ndarray | Subset,
    by_group: np.ndarray,
    sorted_groups: np.ndarray,
    block: int,
) -> np.ndarray:
    """Return the highest cosine, float32 [n], of each query with a candidate of its group.

    ``by_group`` sorts the candidates by group and ``sorted_groups`` are their groups in this order,
    so the right candidates of a query are a range. The (query, right candidate) pairs of all
    queries are compared in blocks.
    """
    first = np.searchsorted(sorted_groups, groups, side="left")
    end = np.searchsorted(sorted_groups, groups, side="right")
    pair_starts = np.concatenate([[0], np.cumsum(end - first)])
    n_pairs = pair_starts[-1]
    best = np.full(len(unit_queries), -np.inf, dtype=np.float32)
    for start in range(0, n_pairs, block):
        pairs = np.arange(start, min(start + block, n_pairs))
        query = np.searchsorted(pair_starts, pairs, side="right") - 1
        place_in_range = pairs - pair_starts[query]
        right = by_group[first[query] + place_in_range]
        unit_right = _unit(candidates[right])
        cosines = np.einsum("pd,pd->p", unit_queries[query], unit_right)
        np.maximum.at(best, query, cosines)
    return best


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return rows [n, D] at unit length in float32; a row of zeros stays zeros."""
    rows = np.asarray(rows, dtype=np.float32)
    smallest = float(np.finfo(np.float32).tiny)
    return unit_rows(rows, eps=smallest)


def retrieval(
    images: FeatureCache,
    texts: FeatureCache,
    block: int = BLOCK,
    *,
    split: tuple[float, float] | None = None,
) -> Result:
    """Return recall at 1, 5 and 10 in both directions, and how many rows have no partner.

    Texts without an image are left out. Images without a text stand among the candidates and are no
    queries. With a ``split``, only the rows of both caches whose
    :func:`~dimefm.data.selection.place` is at least split[0] and below split[1] take part. Raises
    CacheError when the caches are not of one encoder or of the wrong kinds, DataError when no text
    has an image.
    """
    check_same_encoder(images, texts)
    all_images, image_keys = _of_split(images, split)
    all_texts, text_keys = _of_split(texts, split)
    image_groups, text_groups = pair(image_keys, text_keys)
    with_image = np.flatnonzero(text_groups >= 0)
    with_text = np.flatnonzero(np.isin(image_groups, text_groups))
    if not len(with_image):
        raise DataError(
            f"{texts.store}: no text has the key of an image ({_first_key(texts)} against"
            f" {_first_key(images)} in {images.store}){_in_split(split)}; expected equal keys, or"
            " KEY#NUMBER for several texts of an image. Fix: extract both from one source of pairs,"
            " or give the texts the keys of their images"
        )
    paired_texts = all_texts.select(with_image)
    paired_text_groups = text_groups[with_image]
    paired_images = all_images.select(with_text)
    paired_image_groups = image_groups[with_text]

    image_ranks = ranks(paired_texts, paired_text_groups, all_images, image_groups, block)
    text_ranks = ranks(paired_images, paired_image_groups, paired_texts, paired_text_groups, block)

    metrics = {**recalls(TEXT_TO_IMAGE, image_ranks), **recalls(IMAGE_TO_TEXT, text_ranks)}
    details = {
        "directions": {
            TEXT_TO_IMAGE: {"queries": len(paired_texts), "candidates": len(all_images)},
            IMAGE_TO_TEXT: {"queries": len(paired_images), "candidates": len(paired_texts)},
        },
        "split": None if split is None else list(split),
        "images": {
            "fingerprint": images.manifest.fingerprint,
            "rows": len(all_images),
            "without_text": len(all_images) - len(paired_images),
            "cached": len(images),
            "quarantined": _quarantined(images),
        },
        "texts": {
            "fingerprint": texts.manifest.fingerprint,
            "rows": len(all_texts),
            "without_image": len(all_texts) - len(paired_texts),
            "cached": len(texts),
            "quarantined": _quarantined(texts),
        },
    }
    return Result(
        task=RETRIEVAL,
        dataset=str(images.store),
        metrics=metrics,
        main_metric=recall_name(TEXT_TO_IMAGE, AT[0]),
        samples=len(all_images),
        details=details,
    )


def _quarantined(cache: FeatureCache) -> int:
    """Return how many samples have no embedding, because they were quarantined."""
    return sum(len(shard.bad) for shard in cache.manifest.shards)


def recalls(direction: str, best_ranks: np.ndarray) -> dict[str, float]:
    """Return recall at each K of ``AT``: the share of queries whose rank, int64 [Q], is below K."""
    found = {}
    for k in AT:
        found[recall_name(direction, k)] = float((best_ranks < k).mean())
    return found


def retrieval_scores(images: FeatureCache, result: Result) -> RetrievalScores:
    """Return a result of :func:`retrieval` with the encoder of the caches that were compared."""
    card = images.manifest.encoder
    return RetrievalScores(card.name, card.weights_sha256, PROTOCOL, AT, result)


def _of_split(
    cache: FeatureCache, split: tuple[float, float] | None
) -> tuple[Subset, Iterable[str]]:
    """Return the rows of a cache that lie in the split, and their keys; None means all rows.

    Raises DataError when no row does.
    """
    if split is None:
        return Subset(cache, np.arange(len(cache))), keys_of(cache)
    numbers: list[int] = []
    keys: list[str] = []
    for number, key in enumerate(keys_of(cache)):
        if within(key, split):
            numbers.append(number)
            keys.append(key)
    if not numbers:
        raise DataError(
            f"{cache.store}: none of its {len(cache)} rows is{_in_split(split)}. Fix: choose a"
            " wider one"
        )
    return Subset(cache, np.array(numbers, dtype=np.int64)), keys


def _in_split(split: tuple[float, float] | list[float] | None) -> str:
    if split is None:
        return ""
    return f" in split {split[0]}:{split[1]}"


def check_same_encoder(images: FeatureCache, texts: FeatureCache) -> None:
    """Raise CacheError unless one encoder made both, of centre views and unchanged sentences."""
    for cache, kind in ((images, "image"), (texts, "text")):
        if cache.manifest.kind != kind:
            raise CacheError(
                f"{cache.store}: holds {cache.manifest.kind} features, expected {kind} features."
                " Fix: swap the two"
            )
    expect_rows((images, texts))
    if images.manifest.how.get("views") is not None:
        raise CacheError(
            f"{images.store}: holds {images.manifest.views} random crops of each image, expected"
            " the centre view. Fix: extract without --views"
        )
    if texts.manifest.how.get("text_views") is not None:
        raise CacheError(
            f"{texts.store}: holds {texts.manifest.views} views of each row's sentences, expected"
            " these as they are. Fix: extract without --text-views, all of a row's with"
            " --captions all"
        )
    different = encoder_mismatch(images.manifest.encoder, texts.manifest.encoder)
    if different:
        raise CacheError(
            f"{images.store} and {texts.store} were made by different encoders"
            f" ({'; '.join(different)}). Fix: extract one of them again with the other's encoder"
        )


def _first_key(cache: FeatureCache) -> str:
    return repr(next(keys_of(cache), None))


def notes(scores: RetrievalScores) -> list[str]:
    """Return a sentence for each limit of the scores that a reader must know."""
    details = scores.result.details
    images = details["images"]
    texts = details["texts"]
    split = details["split"]
    sentences = []
    if split is not None:
        sentences.append(
            f"Only the {images['rows']:,} images and {texts['rows']:,} texts{_in_split(split)} were"
            " compared."
        )
    for kind, counts in (("images", images), ("texts", texts)):
        quarantined = counts.get("quarantined", 0)
        if quarantined:
            total = quarantined + counts["cached"]
            were = "was" if quarantined == 1 else "were"
            sentences.append(
                f"{quarantined:,} of {total:,} {kind} {were} quarantined when the cache was made:"
                f" {counts['cached']:,} are in it."
            )
    if texts["without_image"]:
        sentences.append(
            f"{texts['without_image']:,} of {texts['rows']:,} texts have no image here and were"
            " left out."
        )
    if images["without_text"]:
        sentences.append(
            f"{images['without_text']:,} of {images['rows']:,} images have no text here: they are"
            " candidates, not queries."
        )
    if scores.weights_sha256 is None:
        sentences.append("The weights are unknown: that one model made both caches is not proven.")
    return sentences


def table(result: Result) -> list[tuple[str, ...]]:
    """Return the recalls of a result as text, a row for each direction, the head first."""
    rows = [HEADS]
    for direction, sizes in result.details["directions"].items():
        values = [result.metrics[recall_name(direction, k)] for k in AT]
        percents = [f"{100 * value:.2f}" for value in values]
        rows.append((direction, *percents, f"{sizes['queries']:,}", f"{sizes['candidates']:,}"))
    return rows


def terminal(scores: RetrievalScores) -> str:
    """Return the scores as an aligned table in percent, with notes below it."""
    lines = aligned(table(scores.result))
    sentences = notes(scores)
    if sentences:
        lines += ["", *sentences]
    return "\n".join(wrapped(line) for line in lines)


def markdown(scores: RetrievalScores) -> str:
    """Return the scores as a Markdown report."""
    weights = "weights unknown"
    if scores.weights_sha256:
        weights = f"weights `{scores.weights_sha256[:12]}`"
    lines = [
        f"# Retrieval with {in_markdown(scores.model)}",
        "",
        f"Recall in percent, {weights}. Protocol: {scores.protocol}.",
        "",
        *markdown_table(table(scores.result)),
    ]
    for note in notes(scores):
        lines += ["", note]
    return "\n".join(lines) + "\n"

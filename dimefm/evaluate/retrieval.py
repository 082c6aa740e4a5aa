"""Image-text retrieval from two caches of one encoder: recall at 1, 5 and 10 in both directions.
numpy only.

Rows are compared by cosine in float32. A query counts as found at K when one of its right
candidates is among the first K; of its right ones the best counts, and every other candidate with a
score that is as high (to within 1e-6, which is what float32 sums leave open) stands before it. So
ties never help: a model that gives all the same vector scores 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.cache.manifest import encoder_mismatch
from dimefm.data.pairing import keys_of, pair
from dimefm.data.selection import within
from dimefm.data.views.patch_tokens import expect_rows
from dimefm.errors import CacheError, DataError
from dimefm.runtime.versions import libraries

AT = (1, 5, 10)
TIE = np.float32(1e-6)
BLOCK = 4096  # rows of queries and of candidates that are compared at once
HEADS = ("direction", *(f"R@{k}" for k in AT), "queries", "candidates")


@dataclass(frozen=True)
class Recall:
    """Result of one direction: ``recall[i]``, in 0..1, is the share of ``queries`` found among the
    first ``AT[i]`` of ``candidates``."""

    direction: str
    recall: tuple[float, ...]
    queries: int
    candidates: int


@dataclass(frozen=True)
class Subset:
    """The rows ``numbers`` of an array or cache, to be read in slices."""

    rows: np.ndarray | FeatureCache
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def of(self, places: np.ndarray) -> Subset:
        """Return those of these rows that stand at ``places``, int64."""
        return Subset(self.rows, self.numbers[places])

    def __getitem__(self, wanted: slice | np.ndarray) -> np.ndarray:
        return self.rows[self.numbers[wanted]]


def ranks(
    queries: np.ndarray | Subset,
    groups: np.ndarray,
    candidates: np.ndarray | Subset,
    candidate_groups: np.ndarray,
    block: int = BLOCK,
) -> np.ndarray:
    """Return the rank, int64 [Q], of the best right candidate of each query; 0 is the first place.

    ``queries`` [Q, D] and ``candidates`` [N, D] are arrays, or read in slices; at most two blocks
    of rows and their scores [block, block] are in memory. A candidate is right when its group, a
    whole number, is the query's. The rank is the number of wrong candidates whose cosine is at
    least that of the best right one, less 1e-6.

    Raises ValueError when a query has no right candidate.
    """
    if not np.isin(groups, candidate_groups).all():
        raise ValueError("a query has no right candidate")
    order = np.argsort(candidate_groups, kind="stable")
    ordered = candidate_groups[order]
    found = np.zeros(len(queries), dtype=np.int64)
    for start in range(0, len(queries), block):
        here = slice(start, start + block)
        rows, group = _unit(queries[here]), groups[here]
        least = _best_right(rows, group, candidates, order, ordered, block) - TIE
        for other in range(0, len(candidates), block):
            there = slice(other, other + block)
            before = rows @ _unit(candidates[there]).T >= least[:, None]
            before &= group[:, None] != candidate_groups[there]
            found[here] += np.count_nonzero(before, axis=1)
    return found


def _best_right(
    rows: np.ndarray,
    group: np.ndarray,
    candidates: np.ndarray | Subset,
    order: np.ndarray,
    ordered: np.ndarray,
    block: int,
) -> np.ndarray:
    """Return the highest cosine, float32 [n], of unit ``rows`` with a candidate of their group.

    ``order`` sorts the candidates by group, ``ordered`` are the groups so sorted: the right ones of
    a query are a range.
    """
    first, end = (
        np.searchsorted(ordered, group, side="left"),
        np.searchsorted(ordered, group, side="right"),
    )
    starts = np.concatenate([[0], np.cumsum(end - first)])
    best = np.full(len(rows), -np.inf, dtype=np.float32)
    for start in range(0, starts[-1], block):
        pairs = np.arange(start, min(start + block, starts[-1]))
        query = np.searchsorted(starts, pairs, side="right") - 1
        right = _unit(candidates[order[first[query] + pairs - starts[query]]])
        np.maximum.at(best, query, np.einsum("pd,pd->p", rows[query], right))
    return best


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def retrieval(
    images: FeatureCache,
    texts: FeatureCache,
    block: int = BLOCK,
    *,
    split: tuple[float, float] | None = None,
) -> dict:
    """Return what ``scores.json`` holds: recall in both directions, what was left out, and whose
    features these are.

    Texts without an image are left out. Images without a text stand among the candidates and are no
    queries. With a ``split``, only the rows of both caches whose
    :func:`~dimefm.data.selection.place` is at least split[0] and below split[1] take part. Raises
    CacheError when the caches are not of one encoder or of the wrong kinds, DataError when no text
    has an image.
    """
    check_same_encoder(images, texts)
    pictures, image_keys = _of_split(images, split)
    sentences, text_keys = _of_split(texts, split)
    image_groups, text_groups = pair(image_keys, text_keys)
    kept, asked = (
        np.flatnonzero(text_groups >= 0),
        np.flatnonzero(np.isin(image_groups, text_groups)),
    )
    if not len(kept):
        raise DataError(
            f"{texts.store}: no text has the key of an image ({_first_key(texts)} against"
            f" {_first_key(images)} in {images.store}){_in_split(split)}; expected equal keys, or"
            " KEY#NUMBER for several texts of an image"
        )
    right, asking, right_groups = sentences.of(kept), pictures.of(asked), text_groups[kept]
    found = {
        "text to image": ranks(right, right_groups, pictures, image_groups, block),
        "image to text": ranks(asking, image_groups[asked], right, right_groups, block),
    }
    sizes = {"text to image": len(pictures), "image to text": len(right)}
    scores = [
        Recall(way, tuple(float((r < k).mean()) for k in AT), len(r), sizes[way])
        for way, r in found.items()
    ]
    card = images.manifest.encoder
    return {
        "model": card.name,
        "weights_sha256": card.weights_sha256,
        "protocol": "cosine, float32; the best right candidate counts; ties count against it",
        "split": None if split is None else list(split),
        "images": {
            "fingerprint": images.manifest.fingerprint,
            "rows": len(pictures),
            "without_text": len(pictures) - len(asking),
        },
        "texts": {
            "fingerprint": texts.manifest.fingerprint,
            "rows": len(sentences),
            "without_image": len(sentences) - len(right),
        },
        "at": list(AT),
        "scores": [asdict(score) for score in scores],
        "libraries": libraries(),
    }


def _of_split(
    cache: FeatureCache, split: tuple[float, float] | None
) -> tuple[Subset, Iterable[str]]:
    """Return the rows of a cache that lie in the split, None: all, and their keys; raise DataError
    when there is none.
    """
    if split is None:
        return Subset(cache, np.arange(len(cache))), keys_of(cache)
    found = {number: key for number, key in enumerate(keys_of(cache)) if within(key, split)}
    if not found:
        raise DataError(
            f"{cache.store}: none of its {len(cache)} rows is{_in_split(split)}; choose a wider one"
        )
    return Subset(cache, np.array(list(found), dtype=np.int64)), found.values()


def _in_split(split: tuple[float, float] | list[float] | None) -> str:
    return "" if split is None else f" in split {split[0]}:{split[1]}"


def check_same_encoder(images: FeatureCache, texts: FeatureCache) -> None:
    """Raise CacheError unless these are centre views and sentences, as one encoder has them."""
    for cache, kind in ((images, "image"), (texts, "text")):
        if cache.manifest.kind != kind:
            raise CacheError(
                f"{cache.store}: holds {cache.manifest.kind} features, expected {kind} features;"
                " swap the two"
            )
    expect_rows((images, texts))
    if images.manifest.how.get("views") is not None:
        raise CacheError(
            f"{images.store}: holds {images.manifest.views} random crops of each image, expected"
            " the centre view; extract without --views"
        )
    if texts.manifest.how.get("text_views") is not None:
        raise CacheError(
            f"{texts.store}: holds {texts.manifest.views} views of each row's sentences, expected"
            " these as they are; extract without --text-views, all of a row's with --captions all"
        )
    different = encoder_mismatch(images.manifest.encoder, texts.manifest.encoder)
    if different:
        raise CacheError(
            f"{images.store} and {texts.store} were made by different encoders"
            f" ({'; '.join(different)}); extract one of them again with the other's encoder"
        )


def _first_key(cache: FeatureCache) -> str:
    return repr(next(keys_of(cache), None))


def notes(result: dict) -> list[str]:
    """Return a sentence for each thing a reader of the scores must know."""
    images, texts, split = result["images"], result["texts"], result["split"]
    found = []
    if split is not None:
        found.append(
            f"Only the {images['rows']:,} images and {texts['rows']:,} texts{_in_split(split)} were"
            " compared."
        )
    if texts["without_image"]:
        found.append(
            f"{texts['without_image']:,} of {texts['rows']:,} texts have no image here and were"
            " left out."
        )
    if images["without_text"]:
        found.append(
            f"{images['without_text']:,} of {images['rows']:,} images have no text here: they are"
            " candidates, not queries."
        )
    if result["weights_sha256"] is None:
        found.append(
            "The weights that made these features are unknown: that both caches are theirs is not"
            " proven."
        )
    return found


def cells(result: dict) -> list[tuple[str, ...]]:
    """Return the table of the scores, heads first, as text."""
    rows = [
        (
            s["direction"],
            *(f"{100 * recall:.2f}" for recall in s["recall"]),
            f"{s['queries']:,}",
            f"{s['candidates']:,}",
        )
        for s in result["scores"]
    ]
    return [HEADS, *rows]


def terminal(result: dict) -> str:
    """Return the result of :func:`retrieval` as an aligned table in percent."""
    table = cells(result)
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADS))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *([""] if notes(result) else []), *notes(result)])


def markdown(result: dict) -> str:
    """Return the result of :func:`retrieval` as a Markdown report."""
    weights = (
        f"weights `{result['weights_sha256'][:12]}`"
        if result["weights_sha256"]
        else "weights unknown"
    )
    head, *rows = cells(result)
    lines = [
        f"# Retrieval with `{result['model']}`",
        "",
        f"Recall in percent, {weights}. Protocol: {result['protocol']}.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    for note in notes(result):
        lines += ["", note]
    return "\n".join(lines) + "\n"

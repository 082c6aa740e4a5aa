"""Which sentences belong to which images: rows of equal keys, whatever order they are in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.data.views.patch_tokens import expect_rows

SENTENCE = re.compile(r"#\d+$")  # ends the key of one of several sentences of a row


def pair(image_keys: Iterable[str], text_keys: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups, int64, of images and of texts: equal numbers belong together, -1 is a text
    without an image.

    A text belongs to the images whose key is its own, or else its own without ``#`` and a number at
    the end, as the keys of several sentences of one row are (``photo.jpg#0``), or without two of
    them (``photo.jpg#0#0``), and so on.
    """
    numbers: dict[str, int] = {}
    images = [numbers.setdefault(key, len(numbers)) for key in image_keys]
    texts = [
        next((numbers[name] for name in rows_of(key) if name in numbers), -1) for key in text_keys
    ]
    return np.array(images, dtype=np.int64), np.array(texts, dtype=np.int64)


def rows_of(key: str) -> Iterator[str]:
    """Yield the keys of the rows that the sentence of ``key`` may be of: its own, and without one
    ``#NUMBER`` more each.
    """
    yield key
    while (shorter := SENTENCE.sub("", key)) != key:
        yield (key := shorter)


def keys_of(cache: FeatureCache) -> Iterator[str]:
    """Yield the keys of a cache's rows, in order."""
    return (key for info in cache.manifest.shards for keys, _ in cache.blocks(info) for key in keys)


@dataclass(frozen=True)
class Pairs:
    """Images that have sentences, numbered 0..len-1: the cache row of each, and the raw rows of its
    sentences.
    """

    images: np.ndarray  # [n] cache rows
    starts: np.ndarray  # [n + 1] where the sentences of each begin in ``sentences``
    sentences: np.ndarray  # [m] raw rows

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, numbers: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Return the raw row of one sentence for each of the images ``numbers`` [n], as its seed
        selects; int64 [n].
        """
        counts = self.starts[numbers + 1] - self.starts[numbers]
        places = [seed % count for seed, count in zip(seeds, counts.tolist(), strict=True)]
        return self.sentences[self.starts[numbers] + np.array(places, dtype=np.int64)]

    @staticmethod
    def from_cache(cache: FeatureCache, text_keys: Iterable[str]) -> Pairs:
        """Pair the images of a cache with sentences by key; of images with one key the first is
        taken.

        Raises CacheError for a cache of tokens.
        """
        expect_rows([cache])
        image_groups, text_groups = pair(keys_of(cache), text_keys)
        order = np.argsort(text_groups, kind="stable")
        order = order[np.searchsorted(text_groups[order], 0) :]  # those with an image
        groups, starts = np.unique(text_groups[order], return_index=True)
        _, first = np.unique(image_groups, return_index=True)  # groups are 0, 1, 2, ...
        return Pairs(first[groups], np.append(starts, len(order)), order)

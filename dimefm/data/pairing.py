"""Find the texts that belong to an image: rows of equal keys, whatever order they are in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.data.views.patch_tokens import expect_rows

SENTENCE = re.compile(r"#\d+$")  # ends the key of one of several texts of a row
NO_IMAGE = -1  # the group of a text that belongs to no image


def pair(image_keys: Iterable[str], text_keys: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups, int64, of images and of texts.

    Images and texts of equal numbers belong together; -1 is a text without an image.

    A text belongs to the images that have the text's key. Where there are none it belongs to those
    that have its key without ``#`` and a number at the end, as the keys of several texts of one
    row are (``photo.jpg#0``), or without two of them (``photo.jpg#0#0``), and so on.
    """
    numbers: dict[str, int] = {}
    images: list[int] = []
    for key in image_keys:
        number = numbers.setdefault(key, len(numbers))
        images.append(number)
    texts = [_group(key, numbers) for key in text_keys]
    return np.array(images, dtype=np.int64), np.array(texts, dtype=np.int64)


def _group(text_key: str, numbers: dict[str, int]) -> int:
    """Return the number of the images that a text belongs to, NO_IMAGE if there are none."""
    for key in rows_of(text_key):
        if key in numbers:
            return numbers[key]
    return NO_IMAGE


def rows_of(key: str) -> Iterator[str]:
    """Yield the keys of the rows that the text of ``key`` may belong to.

    The first is ``key`` itself; every further one has one ``#NUMBER`` less.
    """
    yield key
    shorter = SENTENCE.sub("", key)
    while shorter != key:
        key = shorter
        yield key
        shorter = SENTENCE.sub("", key)


def keys_of(cache: FeatureCache) -> Iterator[str]:
    """Yield the keys of a cache's rows, in order."""
    for info in cache.manifest.shards:
        for keys in cache.key_blocks(info):
            yield from keys


@dataclass(frozen=True)
class Pairs:
    """Images that have texts, numbered 0..len-1: the cache row and the raw rows of the texts."""

    images: np.ndarray  # [n] cache rows
    starts: np.ndarray  # [n + 1] where the texts of an image begin in ``sentences``
    sentences: np.ndarray  # [m] raw rows of texts

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, numbers: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Return the raw row of one text for each of the images ``numbers`` [n]; int64 [n].

        The image's seed selects the text.
        """
        starts = self.starts[numbers]
        ends = self.starts[numbers + 1]
        counts = (ends - starts).tolist()
        places = [seed % count for seed, count in zip(seeds, counts, strict=True)]
        return self.sentences[starts + np.array(places, dtype=np.int64)]

    @staticmethod
    def from_cache(cache: FeatureCache, text_keys: Iterable[str]) -> Pairs:
        """Pair the images of a cache with texts by key; of images with one key the first is taken.

        Raises CacheError for a cache of tokens.
        """
        expect_rows([cache])
        image_groups, text_groups = pair(keys_of(cache), text_keys)
        order = np.argsort(text_groups, kind="stable")
        first_paired = np.searchsorted(text_groups[order], 0)
        order = order[first_paired:]  # texts that have an image
        groups, starts = np.unique(text_groups[order], return_index=True)
        _, first_images = np.unique(image_groups, return_index=True)  # groups are 0, 1, 2, ...
        return Pairs(
            images=first_images[groups],
            starts=np.append(starts, len(order)),
            sentences=order,
        )

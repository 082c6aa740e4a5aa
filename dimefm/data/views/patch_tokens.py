"""Caches of tokens: a few vectors of each image or sentence, chosen by the teacher, in place of its
one row.

Token t of source row i of a shard is row i * count + t, and its key is the row's key, ``#`` and t,
as views have them. The tokens of a source row are all there or all quarantined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dimefm.cache import FeatureCache
from dimefm.errors import CacheError

VERSION = 1  # of how tokens are projected and chosen: models/tokens.py


@dataclass(frozen=True)
class TokenPolicy:
    """``count`` tokens of each item, chosen by ``rule``: "pooled" are those most similar to the
    teacher's own vector of the item, the most similar first; ``version`` is that of the choice."""

    count: int
    rule: str = "pooled"
    version: int = VERSION

    @staticmethod
    def from_manifest(how: dict) -> TokenPolicy | None:
        """Return the policy of a manifest's ``how``, None for a cache of rows; raise CacheError for
        another version.
        """
        fields = how.get("tokens")
        if fields is None:
            return None
        if (fields.get("rule"), fields.get("version")) != ("pooled", VERSION):
            raise CacheError(
                f"the tokens were chosen by rule {fields.get('rule')!r}, version"
                f" {fields.get('version')}; this dimefm has 'pooled', version {VERSION}. Fix:"
                " extract them again"
            )
        return TokenPolicy(**fields)

    def how(self) -> dict:
        """Return the policy as the manifest states it: plain JSON values."""
        return dataclasses.asdict(self)


def expect_rows(caches: Sequence[FeatureCache]) -> None:
    """Raise CacheError, naming the first, when one of ``caches`` holds tokens in place of rows."""
    for cache in caches:
        policy = TokenPolicy.from_manifest(cache.manifest.how)
        if policy is not None:
            raise CacheError(
                f"{cache.store}: holds {policy.count} tokens of each {cache.manifest.kind},"
                " expected its one row. Fix: name a cache that was extracted without --tokens"
            )


def expect_tokens(caches: Sequence[FeatureCache]) -> None:
    """Raise CacheError, naming the first, when one of ``caches`` holds rows in place of tokens."""
    for cache in caches:
        if TokenPolicy.from_manifest(cache.manifest.how) is None:
            raise CacheError(
                f"{cache.store}: holds one row of each {cache.manifest.kind}, expected tokens."
                " Fix: extract them with --tokens 16 into a folder of their own"
            )


class TokenRows:
    """The tokens in a cache, by the row of the first token of each item, which is what
    ``Aligned.locate`` gives.
    """

    def __init__(self, cache: FeatureCache):
        """Raises CacheError when ``cache`` holds no tokens."""
        expect_tokens([cache])
        self.cache, self.count = cache, cache.manifest.how["tokens"]["count"]

    def __getitem__(self, first: np.ndarray) -> np.ndarray:
        """Return the tokens [n, count, D], unit length but for their dtype, of items whose first
        tokens are rows ``first`` [n]."""
        rows = np.asarray(first)[:, None] + np.arange(self.count)
        return self.cache[rows.reshape(-1)].reshape(len(rows), self.count, self.cache.dim)

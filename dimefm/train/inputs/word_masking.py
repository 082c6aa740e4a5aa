"""Words hidden from a text tower, for it to tell (masked language modelling): pure functions of
tokens and seeds.

open_clip's vocabulary has no token for a hidden word, and a new one above the end of a sentence
would be taken for that end, because its towers pool at the largest id. So ``!``, id 0, which also
fills what follows a sentence, hides words here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dimefm.errors import DataError

LEFT = -100  # label of a place whose token is not hidden
MASKED, REPLACED = (
    0.8,
    0.1,
)  # shares of hidden tokens that become the mask, or a random one; others stay


@dataclass(frozen=True)
class Draws:
    """What becomes of each token of sentences, bool [n, L]: ``hidden`` ones are to be told; of
    these ``masked`` ones become the mask, else ``replaced`` ones those of ``words``, int64 [n, L];
    the others stay as they are.
    """

    hidden: np.ndarray
    masked: np.ndarray
    replaced: np.ndarray
    words: np.ndarray

    def apply(self, tokens: np.ndarray, mask: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (tokens as the tower sees them, tokens that were hidden, -100 elsewhere), both
        int64 [n, L].
        """
        shown = np.where(self.hidden & self.replaced, self.words, tokens)
        return np.where(self.hidden & self.masked, mask, shown), np.where(self.hidden, tokens, LEFT)


@dataclass(frozen=True)
class Masking:
    """Hides each word of a sentence with probability ``share``: 80 % become ``mask``, 10 % a random
    word, 10 % stay.

    ``begin`` and ``end`` enclose a sentence; they and what follows are never hidden. ``vocabulary``
    is the number of ids; the defaults are open_clip's. Random words are drawn from all ids but
    ``begin``, ``end`` and ``mask``; with ``words`` "any", as published, from these too, so that a
    sentence may seem to end early. Source: DeCLIP, released mask_tokens.py:5-29; its mask has an id
    of its own below ``begin``.
    """

    share: float = 0.15
    mask: int = 0
    begin: int = 49406
    end: int = 49407
    vocabulary: int = 49408
    words: Literal["ordinary", "any"] = "ordinary"

    def __call__(self, tokens: np.ndarray, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return (tokens with hidden words, the words that were hidden, -100 elsewhere) of
        sentences, int64 [n, L].

        The same words are hidden for the same seed, whatever else is in the batch and however long
        the padding is. Raises DataError for a sentence without an end.
        """
        return self.draw(tokens, seeds).apply(tokens, self.mask)

    def draw(self, tokens: np.ndarray, seeds: Sequence[int]) -> Draws:
        """Return what becomes of each token of sentences [n, L], sentence i by seed i."""
        ends = tokens == self.end
        if not ends.any(axis=1).all():
            row = int(np.flatnonzero(~ends.any(axis=1))[0])
            raise DataError(
                f"tokens of sentence {row} of a batch have no end, id {self.end}; words are hidden"
                " in open_clip's tokens alone: leave mask_words out, or choose a student with that"
                " tokenizer"
            )
        inside = (np.arange(tokens.shape[1]) < ends.argmax(axis=1)[:, None]) & (
            tokens != self.begin
        )
        drawn = [np.random.default_rng(seed).random((tokens.shape[1], 3)) for seed in seeds]
        chance, fate, word = (
            np.stack(drawn).transpose(2, 0, 1) if drawn else np.empty((3, *tokens.shape))
        )
        hidden, masked = inside & (chance < self.share), fate < MASKED
        return Draws(hidden, masked, ~masked & (fate < MASKED + REPLACED), self._words(word))

    def _words(self, chance: np.ndarray) -> np.ndarray:
        """Return ids for numbers in [0, 1)."""
        left_out = [] if self.words == "any" else sorted({self.begin, self.end, self.mask})
        found = (chance * (self.vocabulary - len(left_out))).astype(np.int64)
        for one in left_out:
            found += found >= one
        return found

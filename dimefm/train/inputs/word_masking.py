"""Words hidden from a text tower, for it to predict (masked language modelling).

All of it is a pure function of tokens and seeds. open_clip's vocabulary has no mask token, and a
new one above the end of a text would be taken for that end, because its towers pool at the largest
id. So ``!``, id 0, which also pads texts, is the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dimefm.errors import DataError

NOT_HIDDEN = -100
"""The label of a place whose token is not hidden."""

# Shares of hidden tokens that become the mask, or a random token; the others stay.
MASKED = 0.8
REPLACED = 0.1


class MaskedTokens(NamedTuple):
    """Tokens with hidden words, int64 [n, L] both."""

    shown: np.ndarray  # tokens as the tower sees them
    labels: np.ndarray  # tokens that were hidden, NOT_HIDDEN elsewhere


@dataclass(frozen=True)
class Draws:
    """What becomes of each token of texts, bool [n, L].

    The tower is to predict ``hidden`` tokens. Of these, ``masked`` ones become the mask; of the
    others ``replaced`` ones become those of ``words``, int64 [n, L]; the rest stay as they are.
    """

    hidden: np.ndarray
    masked: np.ndarray
    replaced: np.ndarray
    words: np.ndarray

    def apply(self, tokens: np.ndarray, mask: int) -> MaskedTokens:
        """Return tokens [n, L] with hidden words."""
        becomes_word = self.hidden & self.replaced
        becomes_mask = self.hidden & self.masked
        shown = np.where(becomes_word, self.words, tokens)
        shown = np.where(becomes_mask, mask, shown)
        labels = np.where(self.hidden, tokens, NOT_HIDDEN)
        return MaskedTokens(shown, labels)


@dataclass(frozen=True)
class Masking:
    """Hides each word of a text with probability ``share``.

    Of the hidden words 80 % become ``mask``, 10 % a random word, and 10 % stay. ``begin`` and
    ``end`` enclose a text; they and what follows are never hidden. ``vocabulary`` is the number of
    ids; the defaults are open_clip's. Random words are drawn from all ids but ``begin``, ``end``
    and ``mask``; with ``words`` "any", as published, from these too, so that a text may seem to end
    early. Source: DeCLIP, released mask_tokens.py:5-29; its mask has an id of its own below
    ``begin``.
    """

    share: float = 0.15
    mask: int = 0
    begin: int = 49406
    end: int = 49407
    vocabulary: int = 49408
    words: Literal["ordinary", "any"] = "ordinary"

    def __call__(self, tokens: np.ndarray, seeds: Sequence[int]) -> MaskedTokens:
        """Return texts [n, L], int64, with hidden words.

        The same words are hidden for the same seed, whatever else is in the batch and however long
        the padding is. Raises DataError for a text without an end.
        """
        draws = self.draw(tokens, seeds)
        return draws.apply(tokens, self.mask)

    def draw(self, tokens: np.ndarray, seeds: Sequence[int]) -> Draws:
        """Return what becomes of each token of texts [n, L]; seed i is for text i."""
        chance, fate, word = self._random_numbers(tokens.shape, seeds)
        hidden = self._is_word(tokens) & (chance < self.share)
        masked = fate < MASKED
        replaced = ~masked & (fate < MASKED + REPLACED)
        return Draws(hidden, masked, replaced, self._words(word))

    def _is_word(self, tokens: np.ndarray) -> np.ndarray:
        """Return which tokens [n, L] lie between begin and end; raise DataError without an end."""
        ends = tokens == self.end
        has_end = ends.any(axis=1)
        if not has_end.all():
            row = int(np.flatnonzero(~has_end)[0])
            raise DataError(
                f"tokens of sentence {row} of a batch have no end, id {self.end}; words are hidden"
                " in open_clip's tokens alone. Fix: remove mask_words, or choose a student with"
                " that tokenizer"
            )
        places = np.arange(tokens.shape[1])
        first_end = ends.argmax(axis=1)
        before_end = places < first_end[:, None]
        return before_end & (tokens != self.begin)

    def _random_numbers(self, shape: tuple[int, ...], seeds: Sequence[int]) -> np.ndarray:
        """Return three numbers in [0, 1) for each token, [3, n, L]."""
        if not len(seeds):
            return np.empty((3, *shape))
        numbers = []
        for seed in seeds:
            generator = np.random.default_rng(seed)
            numbers.append(generator.random((shape[1], 3)))
        return np.stack(numbers).transpose(2, 0, 1)

    def _words(self, chance: np.ndarray) -> np.ndarray:
        """Return random ids for numbers in [0, 1)."""
        excluded: list[int] = []
        if self.words == "ordinary":
            excluded = sorted({self.begin, self.end, self.mask})
        count = self.vocabulary - len(excluded)
        ids = (chance * count).astype(np.int64)
        for special in excluded:
            ids += ids >= special
        return ids

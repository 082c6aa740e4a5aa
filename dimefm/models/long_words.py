"""Byte-pair encoding of long words in n log n steps; the pieces are open_clip's.

``SimpleTokenizer.bpe`` looks at the whole word for every merge, which is quadratic: a word of
20,000 letters takes it minutes. Of a very long word only the first pieces are made: it is cut where
no piece of the vocabulary can reach across, so the first pieces are those of the whole word.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from open_clip.tokenizer import SimpleTokenizer

END = "</w>"  # of the last piece of a word
SHORT = 100  # letters of a word that SimpleTokenizer encodes as quickly
MOST_LETTERS = 1 << 17  # of a word; the first hundred pieces do not depend on what is behind them
PLACES = 4096  # of a word at which it may be cut

Ranks = Mapping[tuple[str, str], int]


class LongWords:
    """The pieces of words of any length by the vocabulary of a tokenizer."""

    def __init__(self, tokenizer: SimpleTokenizer):
        self._ranks = tokenizer.bpe_ranks
        self._vocabulary = {piece.removesuffix(END) for piece in tokenizer.encoder}
        self._longest = max(map(len, self._vocabulary))

    def pieces(self, letters: str) -> list[str]:
        """Return the pieces of a word, at least one letter long."""
        return merged([*letters[:-1], letters[-1] + END], self._ranks)

    def first_pieces(self, letters: str, count: int) -> list[str]:
        """Return at least ``count`` first pieces of a word, all of them if they are fewer."""
        letters = letters[:MOST_LETTERS]
        enough = count * self._longest
        for place in range(enough, min(enough + PLACES, len(letters))):
            if self._is_edge(letters, place):
                return merged([*letters[:place]], self._ranks)
        return self.pieces(letters)

    def _is_edge(self, letters: str, place: int) -> bool:
        """Tell whether no piece of the vocabulary reaches across a place of a word."""
        first = max(0, place - self._longest + 1)
        last = place + self._longest - 1
        for start in range(place - 1, first - 1, -1):  # short pieces are the most frequent ones
            for end in range(place + 1, min(last, start + self._longest) + 1):
                if letters[start:end] in self._vocabulary:
                    return False
        return True


def install(tokenizer: SimpleTokenizer) -> None:
    """Let a tokenizer encode long words in n log n steps."""
    short_bpe = tokenizer.bpe
    long_words = LongWords(tokenizer)

    def bpe(token: str) -> str:
        if len(token) <= SHORT:
            return short_bpe(token)
        return " ".join(long_words.pieces(token))

    tokenizer.bpe = bpe


def merged(symbols: list[str | None], ranks: Ranks) -> list[str]:
    """Return the pieces that the letters ``symbols`` of a word merge into.

    Of all pairs of neighbors that have a rank, those of the lowest rank are merged, from left to
    right, until no pair has one.
    """
    following = list(range(1, len(symbols) + 1))
    preceding = list(range(-1, len(symbols) - 1))
    heap = [
        (ranks[pair], place)
        for place, pair in enumerate(zip(symbols, symbols[1:], strict=False))
        if pair in ranks
    ]
    heapq.heapify(heap)
    while heap:
        rank = heap[0][0]
        new_places: list[int] = []
        while heap and heap[0][0] == rank:
            _, place = heapq.heappop(heap)
            if _rank(symbols, following, place, ranks) != rank:
                continue  # an earlier merge took one of the two
            second = following[place]
            symbols[place] += symbols[second]
            symbols[second] = None
            following[place] = following[second]
            if following[second] < len(symbols):
                preceding[following[second]] = place
            new_places += [preceding[place], place]
        for place in new_places:
            new_rank = _rank(symbols, following, place, ranks)
            if new_rank is not None:
                heapq.heappush(heap, (new_rank, place))
    return [symbol for symbol in symbols if symbol is not None]


def _rank(symbols: list[str | None], following: list[int], place: int, ranks: Ranks) -> int | None:
    """Return the rank of the pair that begins at a place, None when no pair of a rank does."""
    if place < 0 or symbols[place] is None or following[place] >= len(symbols):
        return None
    return ranks.get((symbols[place], symbols[following[place]]))

"""open_clip's own tokenizer with a cache of words: the same tokens, an order of magnitude faster.

None of its patterns matches across white space, so the tokens of a cleaned text are those of its
words, one after another. Cleaning (ftfy, HTML entities) is skipped where it changes nothing:
printable ASCII without ``&``.

Of a text that is far too long only the beginning is read: enough for the tokens that fit, and its
length is that of what was read.

For open_clip_torch 3.x.
"""

from __future__ import annotations

import copy
from typing import Any

import ftfy
import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from torch import Tensor

from dimefm.models.long_words import MOST_LETTERS, SHORT, LongWords

KEPT_WORDS = 1 << 18  # words that are cached before all are dropped
KEPT_CHARACTERS = 32  # of a cached word at most; text without spaces is one word
COUNTED_TOKENS = 20_000  # of a text; the rest of it is not read
LONG_WORD = 1 << 15  # letters of a word of which only the first tokens are made
LONG_TEXT = 1 << 20  # characters of a text of which the beginning is read first
MOST_CLEANED = ftfy.TextFixerConfig().max_decode_length  # characters that ftfy cleans at once


class _Fixed(dict):
    """A dict that ignores new keys: ``SimpleTokenizer`` would keep every string that it sees."""

    def __setitem__(self, key: str, value: str) -> None:
        pass


class CachedTokenizer:
    """Tokens of texts by ``SimpleTokenizer``; threads may share one object."""

    def __init__(self, tokenizer: SimpleTokenizer):
        self._tokenizer = copy.copy(tokenizer)
        specials = _specials(tokenizer)
        self._tokenizer.cache = _Fixed((special, special) for special in specials)
        self._lowers = tokenizer.clean_fn is get_clean_fn("lower")
        self._known: dict[str, list[int]] = {}  # word -> tokens
        self._long_words = LongWords(tokenizer)

    def __call__(self, sentences: list[str]) -> Tensor:
        """Return the tokens int64 [N, L] of texts."""
        tokens, _ = self.tokenize(sentences)
        return tokens

    def tokenize(self, sentences: list[str]) -> tuple[Tensor, list[int]]:
        """Return (tokens int64 [N, L], lengths [N]) as ``SimpleTokenizer`` cuts and fills them.

        A length counts the start and end tokens and the tokens that were cut, so a length above L
        means that the text was cut. A length above COUNTED_TOKENS is a lower bound, and so is that
        of a text with a word above LONG_WORD.
        """
        start = self._tokenizer.sot_token_id
        end = self._tokenizer.eot_token_id
        context = self._tokenizer.context_length
        flat: list[int] = []
        lengths: list[int] = []
        for sentence in sentences:
            ids = [start, *self._ids(sentence), end]
            lengths.append(len(ids))
            if len(ids) > context:
                ids[context - 1 :] = [end]
            flat += ids
        tokens = np.zeros((len(sentences), context), np.int64)
        column_of_lengths = np.array(lengths, np.int64)[:, None]
        is_token = np.arange(context) < column_of_lengths
        tokens[is_token] = flat
        return torch.from_numpy(tokens), lengths

    def _ids(self, sentence: str) -> list[int]:
        """Return the tokens of a text without those of its start and end."""
        if len(sentence) > LONG_TEXT:
            words = self._split(_beginning(sentence))
            if words and len(words[-1]) <= MOST_LETTERS:  # the cut may have changed it
                words.pop()
            ids = self._ids_of_words(words)
            if len(ids) > self._tokenizer.context_length:
                return ids
        return self._ids_of_words(self._split(sentence))

    def _ids_of_words(self, words: list[str]) -> list[int]:
        """Return the tokens of cleaned words, of as many as give COUNTED_TOKENS."""
        known = self._known
        ids: list[int] = []
        for word in words:
            ids += known.get(word) or self._encode(word)
            if len(ids) > COUNTED_TOKENS:
                break
        return ids

    def _split(self, sentence: str) -> list[str]:
        """Return the words of a text after cleaning."""
        is_clean = sentence.isascii() and sentence.isprintable() and "&" not in sentence
        if self._lowers and is_clean:
            return sentence.lower().split()
        return self._tokenizer.clean_fn(sentence).split(" ")

    def _encode(self, word: str) -> list[int]:
        """Return the tokens of a cleaned word, and cache those of a short one.

        It is the second half of ``SimpleTokenizer.encode``.
        """
        inner = self._tokenizer
        ids: list[int] = []
        for match in inner.pat.finditer(word):
            raw = match[0][:MOST_LETTERS].encode("utf-8")
            letters = "".join(inner.byte_encoder[byte] for byte in raw)
            ids += [inner.encoder[piece] for piece in self._pieces(letters)]
            if len(ids) > COUNTED_TOKENS:
                break
        if len(word) <= KEPT_CHARACTERS:
            if len(self._known) >= KEPT_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids

    def _pieces(self, letters: str) -> list[str]:
        """Return the pieces of a word, the first ones of a very long word."""
        if len(letters) <= SHORT:
            return SimpleTokenizer.bpe(self._tokenizer, letters).split(" ")
        if len(letters) <= LONG_WORD:
            return self._long_words.pieces(letters)
        return self._long_words.first_pieces(letters, self._tokenizer.context_length)


def _beginning(sentence: str) -> str:
    """Return the beginning of a very long text, cut where ftfy cuts it when it cleans the text."""
    place = 0
    while place < LONG_TEXT:
        line_end = sentence.find("\n", place) + 1 or len(sentence)
        place = min(line_end, place + MOST_CLEANED)
    return sentence[:place]


def length_of(tokenizer: Any, sentence: str) -> int:
    """Return the number of tokens of a text before it is cut, with those of its start and end.

    ``tokenizer`` is one of open_clip's or a :class:`CachedTokenizer`.
    """
    if isinstance(tokenizer, CachedTokenizer):
        _, (length,) = tokenizer.tokenize([sentence])
        return length
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None:
        return len(inner(sentence)["input_ids"])
    return len(tokenizer.encode(sentence)) + 2


def cached_tokenizer(tokenizer: Any) -> CachedTokenizer | None:
    """Return a tokenizer with a cache of words, None where single words do not decide the tokens.

    That is any other class, a strategy that drops tokens at random, or a special token that holds
    white space.
    """
    if type(tokenizer) is not SimpleTokenizer:
        return None
    if tokenizer.reduction_fn is not None:
        return None
    for special in _specials(tokenizer):
        if len(special.split()) != 1:
            return None
    return CachedTokenizer(tokenizer)


def _specials(tokenizer: SimpleTokenizer) -> list[str]:
    """Return the special tokens as text."""
    return [tokenizer.decoder[number] for number in tokenizer.all_special_ids]

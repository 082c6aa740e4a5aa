"""open_clip's own tokenizer with a cache of words: the same tokens, an order of magnitude faster.

None of its patterns matches across white space, so the tokens of a cleaned text are those of its
words, one after another. Cleaning (ftfy, HTML entities) is skipped where it changes nothing:
printable ASCII without ``&``.

For open_clip_torch 3.x.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from torch import Tensor

KEPT_WORDS = 1 << 18  # words that are cached before all are dropped
KEPT_CHARACTERS = 32  # of a cached word at most; text without spaces is one word


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

    def tokenize(self, sentences: list[str]) -> tuple[Tensor, list[int]]:
        """Return (tokens int64 [N, L], lengths [N]) as ``SimpleTokenizer`` cuts and fills them.

        A length counts the start and end tokens and the tokens that were cut, so a length above L
        means that the text was cut.
        """
        start = self._tokenizer.sot_token_id
        end = self._tokenizer.eot_token_id
        context = self._tokenizer.context_length
        known = self._known
        flat: list[int] = []
        lengths: list[int] = []
        for sentence in sentences:
            ids = [start]
            for word in self._split(sentence):
                ids += known.get(word) or self._encode(word)
            ids.append(end)
            lengths.append(len(ids))
            if len(ids) > context:
                ids[context - 1 :] = [end]
            flat += ids
        tokens = np.zeros((len(sentences), context), np.int64)
        column_of_lengths = np.array(lengths, np.int64)[:, None]
        is_token = np.arange(context) < column_of_lengths
        tokens[is_token] = flat
        return torch.from_numpy(tokens), lengths

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
        for token in inner.pat.findall(word):
            letters = [inner.byte_encoder[byte] for byte in token.encode("utf-8")]
            pieces = inner.bpe("".join(letters)).split(" ")
            ids += [inner.encoder[piece] for piece in pieces]
        if len(word) <= KEPT_CHARACTERS:
            if len(self._known) >= KEPT_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids


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

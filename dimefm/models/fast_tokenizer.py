"""open_clip's own tokenizer with a memory for words: the same tokens, an order of magnitude faster;
for open_clip_torch 3.x.

None of its patterns matches across white space, so the tokens of a cleaned sentence are those of
its words, one after another. Cleaning (ftfy, HTML entities) is skipped where it changes nothing:
printable ASCII without ``&``.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from torch import Tensor

KEPT_WORDS, KEPT_CHARACTERS = 1 << 18, 32
"""How many words are remembered before all are forgotten, and how long they may be (text without
spaces is one word).
"""


class _Fixed(dict):
    """A dict that takes nothing in: ``SimpleTokenizer`` would keep every string it ever met."""

    def __setitem__(self, key: str, value: str) -> None:
        pass


class CachedTokenizer:
    """Tokens of sentences by ``SimpleTokenizer``; threads may share one object."""

    def __init__(self, tokenizer: SimpleTokenizer):
        self._tokenizer, self._known = copy.copy(tokenizer), dict[str, list[int]]()
        self._tokenizer.cache = _Fixed((special, special) for special in _specials(tokenizer))
        self._lower = tokenizer.clean_fn is get_clean_fn("lower")

    def tokenize(self, sentences: list[str]) -> tuple[Tensor, list[int]]:
        """Return (tokens int64 [N, L], lengths [N]) as ``SimpleTokenizer`` cuts and fills them.

        A length counts the start and end tokens and what was cut, so that one above L means that
        the sentence was cut.
        """
        start, end, context = (
            self._tokenizer.sot_token_id,
            self._tokenizer.eot_token_id,
            self._tokenizer.context_length,
        )
        known, flat, lengths = self._known, list[int](), list[int]()
        for sentence in sentences:
            ids = [start]
            for word in self._split(sentence):
                ids += known.get(word) or self._learn(word)
            ids.append(end)
            lengths.append(len(ids))
            if len(ids) > context:
                ids[context - 1 :] = [end]
            flat += ids
        tokens = np.zeros((len(sentences), context), np.int64)
        tokens[np.arange(context) < np.array(lengths, np.int64)[:, None]] = flat
        return torch.from_numpy(tokens), lengths

    def _split(self, sentence: str) -> list[str]:
        """Return the words of a sentence after cleaning."""
        if self._lower and sentence.isascii() and sentence.isprintable() and "&" not in sentence:
            return sentence.lower().split()
        return self._tokenizer.clean_fn(sentence).split(" ")

    def _learn(self, word: str) -> list[int]:
        """Return the tokens of a cleaned word, by the second half of ``SimpleTokenizer.encode``,
        and remember short ones.
        """
        inner, ids = self._tokenizer, list[int]()
        for token in inner.pat.findall(word):
            symbols = "".join(inner.byte_encoder[byte] for byte in token.encode("utf-8"))
            ids += [inner.encoder[piece] for piece in inner.bpe(symbols).split(" ")]
        if len(word) <= KEPT_CHARACTERS:
            if len(self._known) >= KEPT_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids


def cached_tokenizer(tokenizer: Any) -> CachedTokenizer | None:
    """Return a tokenizer's memory for words, or None where its tokens are not a matter of single
    words.

    That is any other class, a strategy that drops tokens at random, or a special token that holds
    white space.
    """
    if type(tokenizer) is not SimpleTokenizer or tokenizer.reduction_fn is not None:
        return None
    return (
        None
        if any(len(special.split()) != 1 for special in _specials(tokenizer))
        else CachedTokenizer(tokenizer)
    )


def _specials(tokenizer: SimpleTokenizer) -> list[str]:
    return [tokenizer.decoder[number] for number in tokenizer.all_special_ids]

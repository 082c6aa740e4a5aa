"""The captions of pairs in a step: which of a row's, in whose words, and which words are hidden."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dimefm.data.rows import Row
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import BadRow
from dimefm.models.fast_tokenizer import length_of
from dimefm.recipe import Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.captions import Captions
from dimefm.train.inputs.sources import Sources
from dimefm.train.inputs.word_masking import Masking

Tokenize = Callable[[list[str]], Tensor]
Caption = str | None  # None: the row has no text


class Sentences:
    """``captions_per_step`` captions of each pair: a pure function of the pair's place and epoch.

    A text cache of several texts a row is replayed, the next ones in each epoch; for a text cache
    of one text a row the caption is the row's first text. Without text caches captions are drawn
    from the row's texts, and all but the first are augmented as the recipe says.
    """

    def __init__(self, sources: Sources, recipe: Recipe, tokenize: Tokenize):
        """Raise DataError when words are to be hidden in tokens without an end of a text."""
        self.sources = sources
        self.recipe = recipe
        self.tokenize = tokenize
        self.count = recipe.captions_per_step
        self.captions = Captions(sources.raw, recipe.captions)
        self.context: int | None = None  # the most tokens of a caption
        if recipe.long_texts == "quarantine":
            self.context = tokenize([""]).shape[1]
        self.augment: TextPolicy | None = None
        if recipe.text_augment != "none" and self.count > 1:
            settings = {"augment": recipe.text_augment, "seed": recipe.seed}
            self.augment = TextPolicy.parse(self.count, settings)
        self.masking: Masking | None = None
        if recipe.mask_words:
            self.masking = Masking(recipe.mask_words)
            self._refuse_other_tokenizer(self.masking)

    def _refuse_other_tokenizer(self, masking: Masking) -> None:
        """Raise DataError for a tokenizer with other special tokens, before the first step."""
        tokens = self.tokenize([""])
        masking(tokens.numpy(), [0])

    def choose(self, number: int, row: Row, place: int, epoch: int) -> list[str]:
        """Return the captions of raw row ``number`` at ``place`` of the run.

        Raises BadRow when it has none.
        """
        captions: list[Caption]
        policy = self.sources.text_policy
        if policy is not None:
            captions = self._replay(policy, row, epoch)
        elif self.sources.text_caches:
            captions = list(row.texts[:1]) or [None]
        else:
            captions = self._draw(number, row, place, epoch)
        chosen = [caption for caption in captions if caption and caption.strip()]
        if len(chosen) < len(captions):
            raise BadRow("has no sentence to pair its image with")
        if self.context is not None:
            self._refuse_long(chosen, self.context)
        return chosen

    def _refuse_long(self, captions: list[str], context: int) -> None:
        """Raise BadRow for a caption of more tokens than the student reads."""
        for caption in captions:
            length = length_of(self.tokenize, caption)
            if length > context:
                raise BadRow(
                    f"sentence has {length} tokens, the student reads {context} (long_texts ="
                    " 'truncate' cuts it)"
                )

    def _replay(self, policy: TextPolicy, row: Row, epoch: int) -> list[Caption]:
        """Return the texts that a text cache holds, the next ones in each epoch."""
        captions: list[Caption] = []
        first = epoch * self.count
        for number in range(first, first + self.count):
            view = number % policy.count
            text = policy.draw(row.key, view, row.texts)
            captions.append(text)
        return captions

    def _draw(self, number: int, row: Row, place: int, epoch: int) -> list[Caption]:
        """Return captions of a row without cached texts.

        Those after the first are other texts of the row, or the first one augmented.
        """
        seed = seed_of(self.recipe.seed, "view", place)
        first = self.captions(number, row, seed)
        captions = [first]
        if self.augment is None:
            for further in range(1, self.count):
                further_seed = seed_of(seed, further)
                captions.append(self.captions(number, row, further_seed))
            return captions
        if not first or not first.strip():
            return captions
        further_count = self.count - 1
        first_view = 1 + epoch * further_count
        for view in range(first_view, first_view + further_count):
            augmented = self.augment.vary(row.key, view, first)
            captions.append(augmented)
        return captions

    def tokens(
        self, captions: Sequence[Sequence[str]], places: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Return (tokens, hidden tokens) of the captions of n pairs at ``places``.

        Tokens are [n, L], or [n, C, L] for several captions. Hidden tokens are [n, L], None where
        no words are hidden. With ``mlm_caption = "extra"`` one more caption, the last, is the first
        one with hidden words.
        """
        flat = [caption for of_pair in captions for caption in of_pair]
        shape = (len(captions), self.count)
        tokens = tokenize_all(flat, self.tokenize).unflatten(0, shape)
        hidden = None
        if self.masking is not None:
            tokens, hidden = self._hide_words(self.masking, tokens, places)
        if tokens.shape[1] == 1:
            tokens = tokens[:, 0]
        return tokens, hidden

    def _hide_words(
        self, masking: Masking, tokens: Tensor, places: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return (tokens [n, C, L] with a caption with hidden words, hidden tokens [n, L])."""
        seeds = [seed_of(self.recipe.seed, "mask", place) for place in places]
        first = tokens[:, 0].numpy()
        masked = masking(first, seeds)
        shown = np.ascontiguousarray(masked.shown)
        caption = torch.from_numpy(shown)[:, None]
        if self.recipe.mlm_caption == "extra":
            captions = [tokens, caption]
        else:
            captions = [caption, tokens[:, 1:]]
        return torch.cat(captions, dim=1), torch.from_numpy(masked.labels)


def tokenize_all(texts: list[str], tokenize: Tokenize) -> Tensor:
    """Return the tokens [n, L] of n texts, which may be none."""
    tokens = tokenize(texts or [""])
    return tokens[: len(texts)]

"""The sentences of pairs in a step: which of a row's, in whose words, and which of these are
hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dimefm.data.rows import Row
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import BadRow
from dimefm.recipe import Recipe
from dimefm.runtime.seeding import seed_of
from dimefm.train.inputs.captions import Captions
from dimefm.train.inputs.sources import Sources
from dimefm.train.inputs.word_masking import Masking


class Sentences:
    """``captions_per_step`` sentences of each pair, as a pure function of the pair's place and its
    epoch.

    Those of a text cache of several a row are replayed, the next ones each epoch; of a cache of one
    a row it is the row's first. Without caches they are drawn from the row's own, and all behind
    the first are augmented as the recipe says.
    """

    def __init__(self, sources: Sources, recipe: Recipe, tokenize: Callable[[list[str]], Tensor]):
        """Raises DataError when words are to be hidden in tokens that have no end of a sentence."""
        self.sources, self.recipe, self.tokenize = sources, recipe, tokenize
        self.count = recipe.captions_per_step
        self.captions = Captions(sources.raw, recipe.captions)
        augment, several = recipe.text_augment, self.count > 1
        how = {"augment": augment, "seed": recipe.seed}
        self.augment = TextPolicy.parse(self.count, how) if augment != "none" and several else None
        self.masking = Masking(recipe.mask_words) if recipe.mask_words else None
        if self.masking is not None:
            self.masking(
                tokenize([""]).numpy(), [0]
            )  # refuses another tokenizer's tokens before the first step

    def of(self, number: int, row: Row, place: int, epoch: int) -> list[str]:
        """Return the sentences of raw row ``number`` at ``place`` of the run; raise BadRow when it
        has none.
        """
        policy = self.sources.text_policy
        if policy is not None:
            shown = range(epoch * self.count, (epoch + 1) * self.count)
            found = [policy.draw(row.key, view % policy.count, row.texts) for view in shown]
        elif self.sources.text_caches:
            found = [next(iter(row.texts), None)]
        else:
            found = self._drawn(number, row, place, epoch)
        if not all(sentence and sentence.strip() for sentence in found):
            raise BadRow("has no sentence to pair its image with")
        return found

    def _drawn(self, number: int, row: Row, place: int, epoch: int) -> list[str | None]:
        """Return sentences of a row without cached ones; further ones are others of its own, or the
        first augmented.
        """
        seed = seed_of(self.recipe.seed, "view", place)
        first = self.captions(number, row, seed)
        if self.augment is None:
            return [
                first,
                *(
                    self.captions(number, row, seed_of(seed, further))
                    for further in range(1, self.count)
                ),
            ]
        if not first or not first.strip():
            return [first]
        views = range(1 + epoch * (self.count - 1), 1 + (epoch + 1) * (self.count - 1))
        return [first, *(self.augment.vary(row.key, view, first) for view in views)]

    def tokens(
        self, sentences: Sequence[Sequence[str]], places: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Return (tokens [n, L], or [n, C, L] of several captions, hidden tokens [n, L] or None) of
        n pairs at ``places``.

        Where words are hidden ``apart``, one more caption, the last, is the first one with hidden
        words.
        """
        flat = [sentence for each in sentences for sentence in each]
        tokens = self.tokenize(flat or [""])[: len(flat)].unflatten(0, (len(sentences), self.count))
        labels = None
        if self.masking is not None:
            seeds = [seed_of(self.recipe.seed, "mask", place) for place in places]
            masked, hidden = self.masking(tokens[:, 0].numpy(), seeds)
            first, labels = (
                torch.from_numpy(np.ascontiguousarray(masked))[:, None],
                torch.from_numpy(hidden),
            )
            apart = self.recipe.mlm_caption == "extra"
            tokens = torch.cat([tokens, first] if apart else [first, tokens[:, 1:]], dim=1)
        return tokens[:, 0] if tokens.shape[1] == 1 else tokens, labels

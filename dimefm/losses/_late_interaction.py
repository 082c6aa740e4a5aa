"""Late interaction: similarities of images and sentences by their tokens, as FILIP has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dimefm.losses._features import TextTokenStates, full

CHUNK = 2**24  # similarities of tokens at a time

Padding = Literal["counted", "left out"]


@dataclass(frozen=True)
class TokenEmbeddings:
    """Unit tokens [B, n, E] of items; where ``there`` [B, n] is False a token does not count. None:
    all do.
    """

    rows: Tensor
    there: Tensor | None = None

    @staticmethod
    def from_rows(rows: Tensor, there: Tensor | None = None) -> TokenEmbeddings:
        """Return tokens from rows of any length."""
        return TokenEmbeddings(F.normalize(full(rows), dim=-1), there)

    def most(self, others: TokenEmbeddings, count: int) -> TokenEmbeddings:
        """Return of each item the ``count`` tokens, or all, with the largest sum of similarities to
        those of its partner.

        The choice has no gradient, the chosen tokens do.
        """
        with torch.no_grad():
            partner = others.rows if others.there is None else others.rows * others.there[..., None]
            score = (self.rows @ partner.sum(1)[..., None])[..., 0]
            score = score if self.there is None else score.masked_fill(~self.there, -torch.inf)
            best = score.topk(min(count, score.shape[1]), dim=1).indices
        rows = self.rows.gather(1, best[..., None].expand(-1, -1, self.rows.shape[2]))
        return TokenEmbeddings(rows, None if self.there is None else self.there.gather(1, best))


def present(words: TextTokenStates, padding: Padding) -> Tensor | None:
    """Return which places of sentences are words [B, L], or None where padding counts as words."""
    if padding == "counted":
        return None
    return torch.arange(words.states.shape[1], device=words.states.device) < words.lengths[:, None]


def late(
    queries: TokenEmbeddings, keys: TokenEmbeddings, *, pool: Literal["mean", "max"] = "mean"
) -> Tensor:
    """Return [B, N]: over the tokens of item i the mean (or largest) of their largest cosine to a
    token of item j.

    Items of ``queries`` go in chunks that are computed again for the gradient, so memory is that of
    one chunk of similarities of tokens and of [B, N].
    """
    count, n = queries.rows.shape[:2]
    others, k = keys.rows.shape[:2]
    size = max(1, CHUNK // (n * others * k))
    there = (
        queries.there
        if queries.there is not None
        else queries.rows.new_ones(count, n, dtype=torch.bool)
    )
    parts = [
        (rows, own, keys, pool)
        for rows, own in zip(queries.rows.split(size), there.split(size), strict=True)
    ]
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([_late(*part) for part in parts])
    return torch.cat(
        [checkpoint(_late, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    )


def _late(queries: Tensor, there: Tensor, keys: TokenEmbeddings, pool: str) -> Tensor:
    """Return late similarities [C, N] of tokens [C, n, E] that are ``there`` [C, n]."""
    found = torch.einsum("cne,jke->cnjk", queries, keys.rows)
    if keys.there is not None:
        found = found.masked_fill(~keys.there, -torch.inf)
    best = found.max(dim=-1).values
    if pool == "max":
        return best.masked_fill(~there[..., None], -torch.inf).max(dim=1).values
    return (best * there[..., None]).sum(1) / there.sum(1, keepdim=True)

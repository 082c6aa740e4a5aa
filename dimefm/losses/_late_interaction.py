"""Late interaction: similarities of images and captions by their tokens, as in FILIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dimefm.losses._features import TextTokenStates, to_full_precision

CHUNK = 2**24
"""Similarities of tokens that are in memory at a time."""

Padding = Literal["counted", "left out"]


@dataclass(frozen=True)
class TokenEmbeddings:
    """Unit tokens [B, n, E] of items.

    A token counts where ``valid`` [B, n] is True; None: all count.
    """

    rows: Tensor
    valid: Tensor | None = None

    @staticmethod
    def from_rows(rows: Tensor, valid: Tensor | None = None) -> TokenEmbeddings:
        """Return tokens from rows of any length."""
        rows = to_full_precision(rows)
        return TokenEmbeddings(F.normalize(rows, dim=-1), valid)

    def top(self, partners: TokenEmbeddings, count: int) -> TokenEmbeddings:
        """Return the ``count`` tokens of each item that are most similar to its partner's tokens.

        They have the largest sums of similarities; all tokens are returned if there are fewer. The
        choice has no gradient, the chosen tokens do.
        """
        chosen = self._top_places(partners, count)
        dim = self.rows.shape[2]
        index = chosen[..., None].expand(-1, -1, dim)
        rows = self.rows.gather(1, index)
        valid = None
        if self.valid is not None:
            valid = self.valid.gather(1, chosen)
        return TokenEmbeddings(rows, valid)

    @torch.no_grad()
    def _top_places(self, partners: TokenEmbeddings, count: int) -> Tensor:
        """Return the places [B, count] of the tokens that :meth:`top` chooses."""
        partner = partners.rows
        if partners.valid is not None:
            partner = partner * partners.valid[..., None]
        partner_sum = partner.sum(1)
        scores = (self.rows @ partner_sum[..., None])[..., 0]
        if self.valid is not None:
            scores = scores.masked_fill(~self.valid, -torch.inf)
        count = min(count, scores.shape[1])
        return scores.topk(count, dim=1).indices


def word_mask(words: TextTokenStates, padding: Padding) -> Tensor | None:
    """Return which places of captions count as words [B, L]; None where padding counts too."""
    if padding == "counted":
        return None
    length = words.states.shape[1]
    places = torch.arange(length, device=words.states.device)
    return places < words.lengths[:, None]


def late_similarity(
    queries: TokenEmbeddings, keys: TokenEmbeddings, *, pool: Literal["mean", "max"] = "mean"
) -> Tensor:
    """Return the token-wise similarities [B, N] of items.

    For items i and j: the mean (or largest) over the tokens of i of the largest cosine to a token
    of j. Items of ``queries`` go in chunks that are computed again for the gradient, so memory is
    that of one chunk of similarities of tokens and of [B, N].
    """
    chunks = _chunks_of(queries, keys)
    recompute = len(chunks) > 1 and torch.is_grad_enabled()
    similarities = []
    for rows, valid in chunks:
        if recompute:
            similarity = checkpoint(
                _late_similarity,
                rows,
                valid,
                keys,
                pool,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        else:
            similarity = _late_similarity(rows, valid, keys, pool)
        similarities.append(similarity)
    return torch.cat(similarities)


def _chunks_of(queries: TokenEmbeddings, keys: TokenEmbeddings) -> list[tuple[Tensor, Tensor]]:
    """Return the tokens of some items each, and which of them count."""
    count, tokens, _ = queries.rows.shape
    key_count, key_tokens, _ = keys.rows.shape
    size = max(1, CHUNK // (tokens * key_count * key_tokens))
    valid = queries.valid
    if valid is None:
        valid = queries.rows.new_ones(count, tokens, dtype=torch.bool)
    rows = queries.rows.split(size)
    return list(zip(rows, valid.split(size), strict=True))


def _late_similarity(queries: Tensor, valid: Tensor, keys: TokenEmbeddings, pool: str) -> Tensor:
    """Return similarities [C, N] of tokens [C, n, E], of which the ``valid`` [C, n] count."""
    cosines = torch.einsum("cne,jke->cnjk", queries, keys.rows)
    if keys.valid is not None:
        cosines = cosines.masked_fill(~keys.valid, -torch.inf)
    best = cosines.max(dim=-1).values
    counts = valid[..., None]
    if pool == "max":
        return best.masked_fill(~counts, -torch.inf).max(dim=1).values
    return (best * counts).sum(1) / valid.sum(1, keepdim=True)

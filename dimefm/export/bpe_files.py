"""The merges of CLIP's own tokenizer, and which models have that tokenizer."""

from __future__ import annotations

import functools
from typing import Any

from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

from dimefm.errors import ModelError

SPECIALS = ["<start_of_text>", "<end_of_text>"]


@functools.cache
def _usual_ranks() -> dict[tuple[str, str], int]:
    return SimpleTokenizer().bpe_ranks


def is_clip_bpe(tokenizer: Any) -> bool:
    """Tell whether a tokenizer is CLIP's own: its merges, small letters, two special tokens."""
    if type(tokenizer) is not SimpleTokenizer:
        return False
    if tokenizer.bpe_ranks != _usual_ranks():
        return False
    if tokenizer.reduction_fn is not None or tokenizer.clean_fn is not get_clean_fn("lower"):
        return False
    names = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
    return names == SPECIALS


def require_clip_bpe(tokenizer: Any, target: str, remedy: str) -> SimpleTokenizer:
    """Return open_clip's own tokenizer; raise ModelError for another one.

    ``target`` names the export, ``remedy`` what works for other tokenizers.
    """
    if not is_clip_bpe(tokenizer):
        raise ModelError(
            f"an export to {target} needs CLIP's own tokenizer, and this text tower has"
            f" {type(tokenizer).__name__} with other settings. Fix: {remedy}"
        )
    return tokenizer


def merges_of(tokenizer: SimpleTokenizer) -> str:
    """Return the pairs that the tokenizer joins: a pair a line, the most frequent first."""
    ranks = tokenizer.bpe_ranks
    pairs = sorted(ranks, key=lambda pair: ranks[pair])
    lines = [" ".join(pair) for pair in pairs]
    return "\n".join(lines) + "\n"

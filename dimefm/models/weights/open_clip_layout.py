"""open_clip: the names are those that this package uses.

The shapes do not tell the number of heads, nor the activation, so the architecture must be named
where several of open_clip's have the same shapes.
"""

from __future__ import annotations

from dimefm.models.weights.family import Family, Tensors, is_plain, without

COUNTERS = r"(text\.)?attn_mask|text\.transformer\.embeddings\.position_ids"


def remap(tensors: Tensors) -> Tensors:
    """Return the tensors without constants that older versions saved."""
    return without(tensors, COUNTERS)


FAMILY = Family(name="open_clip", title="open_clip", claims=is_plain, remap=remap)

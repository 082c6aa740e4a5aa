"""Position embeddings for another number of patches: resampled, as timm does it."""

from __future__ import annotations

import math

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from dimefm.models.weights.inheritance.blocks import NotInheritable

NAMES = ("positional_embedding", "pos_embed")


def is_of_images(name: str, is_text: bool) -> bool:
    """Tell whether a weight holds the positions of the patches of an image tower."""
    return not is_text and name.rpartition(".")[2] in NAMES


def resampled(positions: Tensor, count: int) -> Tensor:
    """Return the embeddings of ``count`` places from those of a square grid of another size.

    ``positions`` are [N, W] or [1, N, W], with or without places before the grid, such as that of
    a class token, which are kept. Raises NotInheritable when either is no square.
    """
    places = positions.shape[-2]
    if places == count:
        return positions
    batched = positions if positions.ndim == 3 else positions[None]
    for before in (1, 0, 2, 5):  # a class token, none, a distillation token, registers
        old_side = math.isqrt(max(places - before, 0))
        new_side = math.isqrt(max(count - before, 0))
        is_square = old_side**2 == places - before and new_side**2 == count - before
        if is_square and old_side and new_side:
            grid = resample_abs_pos_embed(
                batched.float(),
                new_size=[new_side, new_side],
                old_size=[old_side, old_side],
                num_prefix_tokens=before,
            )
            grid = grid.to(positions.dtype)
            return grid if positions.ndim == 3 else grid[0]
    raise NotInheritable(
        f"its {count} positions are no grid that can be made from {places} positions"
    )

"""OpenAI's CLIP: open_clip took its names over.

A file of OpenAI is a TorchScript program, which :mod:`dimefm.models.weights.archive` reads without
running it. Its weights are of half precision, and three numbers stand beside them.

Source: openai/CLIP clip/model.py:399-436. They need the activation QuickGELU (clip/model.py:166).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dimefm.models.weights.family import Family, Tensors, is_plain, without

NUMBERS = "input_resolution|context_length|vocab_size"


def claims(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the numbers of OpenAI's files are there."""
    numbers = NUMBERS.split("|")
    return is_plain(tensors) and all(name in tensors for name in numbers)


def remap(tensors: Tensors) -> Tensors:
    """Return the tensors without the numbers and the constant mask of the text tower."""
    return without(tensors, f"{NUMBERS}|attn_mask|transformer\\.resblocks\\.[0-9]+\\.attn_mask")


FAMILY = Family(
    name="openai",
    title="OpenAI's CLIP",
    claims=claims,
    remap=remap,
    from_shapes=True,
    settings={"quick_gelu": True},
)

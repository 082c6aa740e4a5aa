"""TinyCLIP (ICCV 2023): three modules side by side, and models whose layers differ.

A checkpoint has its towers below ``_image_encoder``, ``_text_encoder`` and ``_logit_scale``, each
perhaps wrapped in ``module``. One that was trained after automatic inheritance has every tensor a
second time below ``image_encoder_without_ddp`` and ``text_encoder_without_ddp``, and before the cut
its gates below ``l0_module``. The layers of a cut model have different numbers of heads and hidden
units, and an attention that lost all its heads is not there at all; :mod:`dimefm.models.pruned`
computes such towers. All published models have heads of 64 channels and use GELU.

Source: microsoft/Cream 4a13c40, TinyCLIP/src/open_clip/model.py:317-339 and 820-1065.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dimefm.errors import ModelError
from dimefm.models import pruned
from dimefm.models.weights.family import Family, Tensors

TOWER = re.compile(r"_(?:image_encoder|text_encoder|logit_scale)\.(?:module\.)?(.+)")
COPY = re.compile(r"(?:image|text)_encoder_without_ddp\.(?:module\.)?(.+)")
GATES = "l0_module."
BLOCK = re.compile(r"((?:visual\.)?transformer\.resblocks\.[0-9]+\.)mlp\.c_proj\.bias")


def claims(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a name begins as TinyCLIP's, or the layers of a plain CLIP differ."""
    if any(TOWER.fullmatch(name) or COPY.fullmatch(name) for name in tensors):
        return True
    return _layers_differ(tensors)


def remap(tensors: Tensors) -> Tensors:
    """Return the tensors under open_clip's names, a bias of zero for an attention that is gone.

    Raises ModelError for a model that still has its gates, and for copies that differ.
    """
    result: Tensors = {}
    for name, tensor in tensors.items():
        match = TOWER.fullmatch(name) or COPY.fullmatch(name)
        plain_name = match[1] if match else name
        if plain_name.startswith(GATES):
            raise ModelError(
                f"'{name}' is a gate of automatic inheritance, so the model is not cut yet. Fix:"
                " import a checkpoint of after the cut"
            )
        before = result.get(plain_name)
        if before is not None and not torch.equal(before, tensor):
            raise ModelError(
                f"'{name}' has other values than its copy under another name. Fix: fetch the file"
                " again"
            )
        result[plain_name] = tensor
    for name in list(result):
        match = BLOCK.fullmatch(name)
        bias = f"{match[1]}attn.out_proj.bias" if match else ""
        weight = f"{match[1]}attn.out_proj.weight" if match else ""
        if match and bias not in result and weight not in result:
            result[bias] = torch.zeros_like(result[name])
    return result


def _layers_differ(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether no ordinary config describes the layers of a tower."""
    for prefix in ("visual.", ""):
        try:
            description = pruned.describe(tensors, prefix)
        except ModelError:
            continue
        if not pruned.is_even(description):
            return True
    return False


FAMILY = Family(
    name="tinyclip",
    title="TinyCLIP (ICCV 2023)",
    claims=claims,
    remap=remap,
    from_shapes=True,
)

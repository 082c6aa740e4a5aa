"""Cut a gated model down to what its gates leave: a smaller model with the same embeddings.

Source: TinyCLIP (ICCV 2023), released src/open_clip/model.py:139-205 and 317-339. Deviations: the
released cut multiplies the last projection by the channels' gates, which the gated model does not,
and drops the bias of an attention without heads, which the gated model adds. So the released cut
changes the embeddings; this one does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dimefm.models import open_clip
from dimefm.models.student import new_tower
from dimefm.models.towers import ImageTower, TextTower
from dimefm.models.weights.inheritance.gated import Gates
from dimefm.models.weights.inheritance.gates import Masks, Structure
from dimefm.models.weights.inheritance.layout import (
    Tower,
    cut_weight,
    described,
    gated_weight,
    is_left,
    kept_structure,
    place_of,
    structure_of,
    tower_of,
    with_layers,
)


@torch.no_grad()
def cut(model: nn.Module, config: Mapping, gates: Gates) -> tuple[nn.Module, dict]:
    """Return (the cut model, its config) of a gated ``model`` with this open_clip config.

    The gates are the settled ones. ``model`` is left as it was.
    """
    training = gates.training
    all_masks = gates.eval().masks()
    gates.train(training)
    tensors = dict(model.state_dict())
    layers: dict[str, dict] = {}
    for name, masks in all_masks.items():
        tower = tower_of(model, name)
        left = kept_structure(structure_of(tower), masks)
        layers[tower.config_key] = described(left)
        tensors.update(_cut_weights(tower, masks, left))
        for weight_name in _lost_weights(tower, left):
            del tensors[weight_name]
    small_config = with_layers(config, layers)
    small = build(small_config, model)
    small.load_state_dict(tensors)
    return small, small_config


def build(config: dict, like: nn.Module) -> nn.Module:
    """Return a model of ``config`` with random weights, of the kind and on the device of ``like``.

    Random numbers are left as they were.
    """
    weight = next(like.parameters())
    with torch.random.fork_rng(devices=[]):
        if isinstance(like, ImageTower | TextTower):
            model = new_tower(config, isinstance(like, TextTower))
        else:
            model = open_clip.from_config(config)
    model = model.to(weight.device, weight.dtype).train(like.training)
    if isinstance(like, TextTower):
        return model
    preprocess = getattr(like.visual, "preprocess_cfg", None)
    if preprocess is not None:
        model.visual.preprocess_cfg = preprocess  # the pixels that its weights expect
    return model.to(memory_format=torch.channels_last)


def _cut_weights(tower: Tower, masks: Masks, left: Structure) -> dict[str, Tensor]:
    """Return the weights that are left of a tower, by their names in the model."""
    tensors = {}
    for name, weight in tower.weights():
        place = place_of(name)
        if is_left(name, place, left):
            gated = gated_weight(weight, place, masks, left.head_width)
            tensors[tower.prefix + name] = cut_weight(gated, place, masks, left.head_width)
    return tensors


def _lost_weights(tower: Tower, left: Structure) -> list[str]:
    """Return the names in the model of the weights that a tower loses as a whole."""
    lost = []
    for name, _ in tower.weights():
        if not is_left(name, place_of(name), left):
            lost.append(tower.prefix + name)
    return lost

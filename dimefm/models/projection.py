"""Bridges: a student keeps its own dimension while it learns, and ends in its teacher's.

A bridge is a linear map without bias from the student's dimension to the teacher's, learned next to
the tower; its rows are what the losses see. Two linear maps in a row are one, so a finished tower
takes the bridge B into its last projection: B (W x + b) = (B W) x + B b. Nothing of it is left but
the tower's new dimension.

Source: CLIP-KD (CVPR 2024) learns such maps for students of another width than their teacher's
(released src/open_clip/loss.py:233-235). Deviations: they have a bias there, and are thrown away
after training.

Knows where towers of open_clip and timm project last; written against open_clip_torch 3.x.
"""

from __future__ import annotations

import copy

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models.towers import ImageTower, TextTower
from dimefm.runtime.seeding import seed_of

TOLERANCE = 1e-3
"""How far folded rows may lie from unfolded ones in the check, as a share of the largest number in
them.
"""


def draw(own: int, teacher: int, seed: int) -> nn.Linear:
    """Return a bridge from ``own`` to ``teacher`` dimensions with random weights drawn from
    ``seed``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "bridge") % 2**32)
        return nn.Linear(own, teacher, bias=False)


@torch.no_grad()
def folded(tower: ImageTower | TextTower, bridge: nn.Linear) -> nn.Module:
    """Return a copy of ``tower`` whose rows are those of ``bridge`` behind it, up to rounding.

    Weights are multiplied in float64. Raises ModelError when the last thing that the tower does is
    no projection.
    """
    tower = copy.deepcopy(tower)
    owner, name = _last_projection(tower)
    last, weight = getattr(owner, name), bridge.weight.double()
    if isinstance(last, nn.Linear):
        new = nn.Linear(
            last.in_features,
            len(weight),
            last.bias is not None,
            last.weight.device,
            last.weight.dtype,
        )
        new.weight.copy_(weight @ last.weight.double())
        if last.bias is not None:
            new.bias.copy_(weight @ last.bias.double())
        setattr(owner, name, new)
    else:
        setattr(owner, name, nn.Parameter((last.double() @ weight.T).to(last.dtype)))
    return tower


@torch.no_grad()
def check(
    tower: ImageTower | TextTower, bridge: nn.Linear, ordinary: nn.Module, inputs: Tensor
) -> None:
    """Raise ModelError unless ``tower`` can take in ``bridge`` and is then an ``ordinary`` tower of
    the new dimension.

    Tried on ``inputs``, pixels [B, 3, S, S] or tokens [B, L]. ``tower`` is left as it was,
    ``ordinary`` takes the weights.
    """
    training = tower.training
    expected = bridge(_encode(tower.eval(), inputs))
    tower.train(training)
    try:
        ordinary.load_state_dict(folded(tower, bridge).state_dict())
    except RuntimeError as error:  # shapes that differ
        raise ModelError("not only its last projection depends on its dimension") from error
    off = float(
        (_encode(ordinary.eval(), inputs) - expected).abs().max()
        / expected.abs().max().clamp(min=1e-12)
    )
    if not off <= TOLERANCE:
        raise ModelError(
            f"its last projection is not the last thing that it does (folded rows are {off:.0%}"
            " off)"
        )


def _encode(tower: nn.Module, inputs: Tensor) -> Tensor:
    return tower.encode_text(inputs) if isinstance(tower, TextTower) else tower.encode_image(inputs)


def _last_projection(tower: ImageTower | TextTower) -> tuple[nn.Module, str]:
    """Return the module that holds a tower's last projection, a Linear or a matrix [W, D], and the
    attribute's name.
    """
    if isinstance(tower, TextTower):
        owner, name = tower.text, "text_projection"
    elif isinstance(tower.visual, TimmModel):
        owner, name = _last_linear(tower.visual)
    elif isinstance(tower.visual, ModifiedResNet):
        owner, name = tower.visual.attnpool, "c_proj"
    else:
        owner, name = tower.visual, "proj"
    if not isinstance(getattr(owner, name, None), nn.Linear | nn.Parameter):
        raise ModelError("its last layer is no linear projection")
    return owner, name


def _last_linear(visual: TimmModel) -> tuple[nn.Module, str]:
    """Return where the last Linear of a timm tower is: in open_clip's head behind the trunk, or the
    trunk's classifier.
    """
    if len(visual.head):
        last = [module for module in visual.head.modules() if isinstance(module, nn.Linear)][-1:]
    else:
        last = [visual.trunk.get_classifier()]
    for owner in visual.modules():
        for name, module in owner.named_children():
            if last and module is last[0]:
                return owner, name
    return visual, ""

"""A linear projection from the student's dimension to the teacher's, folded in after training.

The projection P is a linear map without bias. It is trained together with the tower, and the losses
compare the projected embeddings with the teacher's. Two linear maps in a row are one linear map, so
:func:`folded` multiplies P into the tower's last projection W: P (W x + b) = (P W) x + P b. The
finished tower has the teacher's dimension and no further layer.

Source: CLIP-KD (CVPR 2024) trains such maps for students of another width than the teacher
(released src/open_clip/loss.py:233-235). Deviations: the released maps have a bias, and CLIP-KD
drops them after training.

Written against the last projections of open_clip_torch 3.x and timm 1.x.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models.towers import ImageTower, TextTower
from dimefm.runtime.seeding import seed_of

TOLERANCE = 1e-3
"""Largest difference between embeddings before and after folding, as a share of the largest number
in the embeddings.
"""


class NotFoldable(ModelError):
    """Why a projection cannot be folded into a tower; whoever catches it names the model."""


def draw(student_dim: int, teacher_dim: int, seed: int) -> nn.Linear:
    """Return a projection from ``student_dim`` to ``teacher_dim`` dimensions.

    Its weights are drawn from ``seed``, and torch's own random numbers are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        stream = seed_of(seed, "bridge")  # the stream's first name; a new name draws new weights
        torch.manual_seed(stream % 2**32)
        return nn.Linear(student_dim, teacher_dim, bias=False)


@torch.no_grad()
def folded(tower: ImageTower | TextTower, projection: nn.Linear) -> nn.Module:
    """Return a copy of ``tower`` that computes ``projection(tower(x))``, up to rounding.

    Weights are multiplied in float64. Raises NotFoldable when the tower's last layer is no linear
    projection.
    """
    tower = copy.deepcopy(tower)
    owner, name = last_projection(tower)
    last = getattr(owner, name)
    weight = projection.weight.double()
    if isinstance(last, nn.Linear):
        product = _linear_product(weight, last)
    else:
        matrix = last.double() @ weight.T
        product = nn.Parameter(matrix.to(last.dtype))
    setattr(owner, name, product)
    return tower


def _linear_product(weight: Tensor, last: nn.Linear) -> nn.Linear:
    """Return one Linear for ``last`` followed by ``weight``, float64 [teacher_dim, student_dim]."""
    product = nn.Linear(
        in_features=last.in_features,
        out_features=len(weight),
        bias=last.bias is not None,
        device=last.weight.device,
        dtype=last.weight.dtype,
    )
    product.weight.copy_(weight @ last.weight.double())
    if last.bias is not None:
        product.bias.copy_(weight @ last.bias.double())
    return product


@torch.no_grad()
def check(
    tower: ImageTower | TextTower, projection: nn.Linear, ordinary: nn.Module, inputs: Tensor
) -> None:
    """Raise NotFoldable unless ``projection`` can be folded into ``tower``.

    ``ordinary`` is a tower of the same architecture with the teacher's dimension. It loads the
    folded weights, and its embeddings of ``inputs``, pixels [B, 3, S, S] or tokens [B, L], must
    equal the projected ones. ``tower`` is left as it was.
    """
    training = tower.training
    expected = projection(_encode(tower.eval(), inputs))
    tower.train(training)
    try:
        folded_tower = folded(tower, projection)
        ordinary.load_state_dict(folded_tower.state_dict())
    except RuntimeError as error:  # shapes that differ
        raise NotFoldable("not only its last projection depends on its dimension") from error
    embeddings = _encode(ordinary.eval(), inputs)
    largest_difference = (embeddings - expected).abs().max()
    largest_number = expected.abs().max().clamp(min=1e-12)
    off = float(largest_difference / largest_number)
    if not off <= TOLERANCE:
        raise NotFoldable(
            f"its last projection is not the last thing that it does (folded rows are {off:.0%}"
            " off)"
        )


@contextlib.contextmanager
def removed(tower: ImageTower | TextTower) -> Iterator[None]:
    """Let ``tower`` return what its last projection reads, for the time of the block.

    Raises NotFoldable when the tower's last layer is no linear projection.
    """
    owner, name = last_projection(tower)
    last = getattr(owner, name)
    if isinstance(last, nn.Linear):
        width = last.in_features
        identity: nn.Linear | nn.Parameter = nn.Linear(width, width, bias=False)
        identity.weight = nn.Parameter(torch.eye(width).to(last.weight), requires_grad=False)
    else:
        identity = nn.Parameter(torch.eye(len(last)).to(last), requires_grad=False)
    setattr(owner, name, identity)
    try:
        yield
    finally:
        setattr(owner, name, last)


@torch.no_grad()
def replace(layer: nn.Linear | nn.Parameter, weight: Tensor, bias: Tensor | None) -> None:
    """Write ``weight`` [K, D] and ``bias`` [K] into a last projection."""
    if isinstance(layer, nn.Parameter):
        layer.copy_(weight.T)
        return
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


def _encode(tower: nn.Module, inputs: Tensor) -> Tensor:
    """Return the embeddings [B, D] of pixels or tokens, as the tower's kind asks for."""
    if isinstance(tower, TextTower):
        return tower.encode_text(inputs)
    return tower.encode_image(inputs)


def last_projection(tower: ImageTower | TextTower) -> tuple[nn.Module, str]:
    """Return where a tower's last projection is: the module that holds it and the attribute's name.

    The projection is a Linear, or a matrix [W, D].
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
        raise NotFoldable("its last layer is no linear projection")
    return owner, name


def _last_linear(visual: TimmModel) -> tuple[nn.Module, str]:
    """Return where the last Linear of a timm tower is.

    It is in open_clip's head behind the trunk, or it is the trunk's classifier.
    """
    last = None
    if len(visual.head):
        for module in visual.head.modules():
            if isinstance(module, nn.Linear):
                last = module
    else:
        last = visual.trunk.get_classifier()
    for owner in visual.modules():
        for name, module in owner.named_children():
            if module is last:
                return owner, name
    return visual, ""

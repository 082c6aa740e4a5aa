"""A tower that starts with a part of a larger one: which tower of an encoder, and by which rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models import open_clip
from dimefm.models.encoder import BorrowedTower, Encoder
from dimefm.models.initial import Side, Taken, digest, last_projection, tower_names
from dimefm.models.weights.inheritance import importance, manual
from dimefm.models.weights.inheritance.blocks import NotInheritable, matching
from dimefm.models.weights.inheritance.manual import Inherited
from dimefm.models.weights.inheritance.measure import measure

Rule = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], int, bool], Inherited]
"""Returns the weights of a student from its tensors, those of a teacher, the width of a head, and
whether the tower is one of texts."""


def teacher_model(encoder: Encoder, side: Side) -> nn.Module:
    """Return the model of an encoder that has the tower of this side."""
    if side == "text":
        return encoder.text_model
    if isinstance(encoder.image_model, BorrowedTower):
        return encoder.image_model.teacher
    return encoder.image_model


def by_importance(teacher: nn.Module, side: Side, inputs: Tensor) -> Rule:
    """Return the rule that takes what counts most in the teacher's tower for ``inputs``."""

    def rule(
        own: Mapping[str, Tensor], of_teacher: Mapping[str, Tensor], width: int, is_text: bool
    ) -> Inherited:
        scores = measure(teacher, side, inputs)
        taken = importance.inherit(own, of_teacher, width, is_text, scores)
        details = {**taken.details, "measured_rows": len(inputs)}
        return dataclasses.replace(taken, details=details)

    return rule


@torch.no_grad()
def inherit(
    model: nn.Module, side: Side, teacher: nn.Module, source: str, rule: Rule = manual.inherit
) -> Taken:
    """Load a part of the teacher's tower into the student's; return what was taken.

    The last projection is left random where it leads to more dimensions than the teacher's. Raises
    ModelError, and loads nothing, when the student's tower is no part of the teacher's.
    """
    init = f"inherit:{source}"
    own = _tensors(model, side)
    of_teacher = _tensors(teacher, side)
    drawn = _wider_projection(last_projection(model, side), own, of_teacher)
    for name in drawn:
        own.pop(name)
        of_teacher.pop(name, None)
    try:
        matching(own, of_teacher)
        width = _head_width(model, teacher, side)
        inherited = rule(own, of_teacher, width, side == "text")
    except NotInheritable as reason:
        raise ModelError(
            f"init = '{init}': the student's {side} tower cannot inherit from it: {reason}. Fix:"
            " choose a student of the same family that is nowhere larger, or another teacher"
        ) from reason
    details = {"layers": _layers_in_words(inherited.layers), **inherited.details}
    activations = [open_clip.activation_of(model), open_clip.activation_of(teacher)]
    if activations[0] != activations[1]:
        details["activation"] = f"{activations[0]}, the teacher's is {activations[1]}"
    names = tower_names(model, side)
    state = model.state_dict()
    for name, tensor in inherited.tensors.items():
        state[names[name]].copy_(tensor)
    return Taken(
        side=side,
        init=init,
        source=source,
        sha256=digest(of_teacher),
        tensors=len(inherited.tensors),
        parameters=sum(tensor.numel() for tensor in inherited.tensors.values()),
        drawn=tuple(names[name] for name in drawn),
        details=details,
    )


def _tensors(model: nn.Module, side: Side) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[full_name] for name, full_name in tower_names(model, side).items()}


def _wider_projection(
    names: set[str], own: Mapping[str, Tensor], of_teacher: Mapping[str, Tensor]
) -> list[str]:
    """Return the names of the last projection where the teacher's has fewer dimensions."""
    for name in sorted(names):
        theirs = of_teacher.get(name)
        if theirs is None or theirs.ndim != own[name].ndim:
            return sorted(names)
        is_linear = name.endswith((".weight", ".bias"))
        axis = 0 if is_linear else -1
        if own[name].shape[axis] > theirs.shape[axis]:
            return sorted(names)
    return []


def _head_width(model: nn.Module, teacher: nn.Module, side: Side) -> int:
    """Return the width of a head, the same in both; 1 where there is no attention."""
    ours = next(_head_widths(model, side), None)
    theirs = next(_head_widths(teacher, side), None)
    if ours is None or theirs is None:
        return 1
    if ours != theirs:
        raise NotInheritable(
            f"its attention heads are {ours} wide, the teacher's {theirs}; expected equal widths"
        )
    return ours


def _head_widths(model: nn.Module, side: Side) -> Iterator[int]:
    """Yield the width of the heads of each attention layer of a tower."""
    for name, module in model.named_modules():
        if name.startswith("visual.") != (side == "image"):
            continue
        width = getattr(module, "head_dim", None)
        if isinstance(module, AttentionPool2d):
            width = module.k_proj.in_features // module.num_heads
        if isinstance(width, int):
            yield width


def _layers_in_words(layers: Mapping[int, list[int]]) -> str:
    """Return the layers that were taken: "0, 2, 4", of several stages "0, 1 | 0, 2"."""
    return " | ".join(", ".join(map(str, layers[stage])) for stage in sorted(layers))

"""Manual inheritance, TinyCLIP's: the first channels, heads and units of every k-th layer.

Source: TinyCLIP (ICCV 2023), released ``weight_inherit.py`` (microsoft/Cream 4a13c40), section 2.1
of its specification. With T layers of the teacher and S of the student, layer i of the student
begins with layer i * (T // S) of the teacher. Of each of its tensors the student takes the first
rows and columns, of attention those of the first heads. Norms, biases and running statistics are
taken in the same way; nothing is rescaled.

Deviations: layers are ordered by number, where the release orders them as the file lists them,
which gives wrong layers when names are sorted as texts. Where the grid of patches differs, the
position embeddings are resampled, not cut. Another size of patches or another vocabulary, which
the release cuts silently, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dimefm.models.weights.inheritance import positions
from dimefm.models.weights.inheritance.blocks import NotInheritable, matching
from dimefm.runtime.text import first_few

FEW = 3  # tensors in a message
ATTENTION = ("qkv", "attn.in_proj_")
PATCHES = ("conv1.weight", "patch_embed.proj.weight")
VOCABULARY = "token_embedding.weight"


@dataclass(frozen=True)
class Inherited:
    """The weights that a student takes, by its own names, and from which layers of the teacher.

    ``layers`` maps a stage to the teacher's layers in the order of the student's. ``details`` are
    further facts for the record, as JSON values.
    """

    tensors: dict[str, Tensor]
    layers: dict[int, list[int]] = field(default_factory=dict)
    details: dict = field(default_factory=dict)


def inherit(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    head_width: int,
    is_text: bool = False,
) -> Inherited:
    """Return the weights of ``teacher`` for each tensor of ``student``, both of one tower.

    ``head_width`` is the width of an attention head, the same in both. Of ``student`` only the
    shapes count. Raises NotInheritable, which names the reason, when the student cannot be a part
    of the teacher.
    """
    layers = layers_of(student, teacher)
    sources = source_names(student, teacher, layers)
    refuse_other_inputs(student, teacher, sources)
    tensors = {}
    too_large = []
    for name, source in sources.items():
        tensor = teacher[source]
        shape = list(student[name].shape)
        if positions.is_of_images(name, is_text):
            tensor = positions.resampled(tensor, shape[-2])
        if tensor.ndim != len(shape) or _is_larger(shape, tensor):
            too_large.append(f"{name} {shape} from {list(tensor.shape)}")
            continue
        tensors[name] = _first(name, tensor, shape, head_width)
    if too_large:
        raise NotInheritable(f"it is wider than the teacher: {first_few(too_large, FEW)}")
    return Inherited(tensors, layers)


def layers_of(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[int, list[int]]:
    """Return the teacher's layers of each stage: 0, k, 2k and so on with k = T // S."""
    ours, theirs = matching(student, teacher)
    layers = {}
    for stage, depth in ours.depths.items():
        step = theirs.depths[stage] // depth
        layers[stage] = [number * step for number in range(depth)]
    return layers


def source_names(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], layers: dict[int, list[int]]
) -> dict[str, str]:
    """Return the name of the teacher's tensor for each tensor of the student.

    Raises NotInheritable when the teacher lacks some, or its first layers have some that the
    student does not have.
    """
    ours, theirs = matching(student, teacher)
    sources = {}
    missing = []
    for name in student:
        source = name
        if name in ours.places:
            place = ours.places[name]
            layer = layers[place.stage][place.block]
            source = theirs.names.get(type(place)(place.stage, layer, place.rest), "")
        if source not in teacher:
            missing.append(name)
        sources[name] = source
    if missing:
        raise NotInheritable(f"the teacher has no {first_few(missing, FEW)}")
    outside = [name for name in teacher if name not in theirs.places and name not in student]
    if outside:
        raise NotInheritable(f"it has no {first_few(outside, FEW)}, which the teacher has")
    return sources


def refuse_other_inputs(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], sources: Mapping[str, str]
) -> None:
    """Raise NotInheritable when a student cuts images or texts into other pieces than the teacher.

    The first weights of a larger patch, or of another vocabulary, mean nothing to it.
    """
    for name, source in sources.items():
        ours = list(student[name].shape)
        theirs = list(teacher[source].shape)
        if name.endswith(PATCHES) and ours[2:] != theirs[2:]:
            raise NotInheritable(
                f"its patches or first filters are of {ours[2:]} pixels, the teacher's of"
                f" {theirs[2:]}"
            )
        if name.endswith(VOCABULARY) and ours[0] != theirs[0]:
            raise NotInheritable(
                f"its vocabulary has {ours[0]:,} tokens, the teacher's {theirs[0]:,}"
            )


def _is_larger(shape: list[int], tensor: Tensor) -> bool:
    return any(size > most for size, most in zip(shape, tensor.shape, strict=True))


def _first(name: str, tensor: Tensor, shape: list[int], head_width: int) -> Tensor:
    """Return the first part of a tensor that has ``shape``, of attention by heads."""
    if tensor.numel() == 1 and not shape:
        return tensor
    if not any(part in name for part in ATTENTION):
        return tensor[tuple(slice(size) for size in shape)].clone()
    teacher_heads = tensor.shape[0] // (3 * head_width)
    heads = shape[0] // (3 * head_width)
    rest = tensor.shape[1:]
    by_head = tensor.reshape(3, teacher_heads, head_width, *rest)[:, :heads]
    inputs = tuple(slice(size) for size in shape[1:])
    return by_head[(slice(None), slice(None), slice(None), *inputs)].reshape(shape).clone()

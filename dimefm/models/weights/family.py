"""Family: the layout in which a group of authors published checkpoints.

Each family has a file of this package, which maps its names to open_clip's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Tensors = dict[str, Tensor]

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Family:
    """What is known of the checkpoints of one group of authors.

    ``claims`` tells from names and shapes whether a state dict is of the family, and ``remap``
    returns it under open_clip's names, without what the family keeps beside its model. ``students``
    are names of architectures to try where the shapes alone do not describe the model;
    ``from_shapes`` says that they do. ``settings`` are keys of the model config that no shape
    tells, and ``preprocess`` differs from OpenAI's in the given keys.
    """

    name: str
    title: str
    claims: Callable[[Mapping[str, Tensor]], bool]
    remap: Callable[[Tensors], Tensors]
    students: Sequence[str] = ()
    from_shapes: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)
    preprocess: Mapping[str, object] = field(default_factory=dict)


def is_plain(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has open_clip's names of a whole CLIP."""
    has_text = "token_embedding.weight" in tensors or any(
        name.startswith("text.") for name in tensors
    )
    return has_text and any(name.startswith("visual.") for name in tensors)


def without(tensors: Tensors, pattern: str) -> Tensors:
    """Return the tensors whose whole names do not match a pattern."""
    unwanted = re.compile(pattern)
    return {name: tensor for name, tensor in tensors.items() if not unwanted.fullmatch(name)}


def renamed(tensors: Tensors, pattern: str, replacement: str) -> Tensors:
    """Return the tensors, names that begin with a pattern changed; two never become one."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        new_name = re.sub(f"^(?:{pattern})", replacement, name)
        is_taken = new_name in result or (new_name != name and new_name in tensors)
        result[name if is_taken else new_name] = tensor
    return result

"""Inheritance by importance: evenly spread layers, and the channels, heads and units that count.

What counts is measured on rows of the run, see :mod:`.measure`: the root mean square of a channel
of the residual stream after the norms of the layers that are taken, and of what a head or a hidden
unit adds to the residual stream. The residual stream of a tower has one choice of channels, which
all layers, embeddings and projections share; of a ResNet each stage has one. What is chosen keeps
its order, so a student of the teacher's own shape is the teacher.

Source: activation-based importance of Minitron (Muralidharan et al., 2024, arXiv 2407.14679,
section 2.2), for language models. Deviations: heads and units count by what they add through their
output weights, where Minitron has their own size; squares are averaged over rows and places alike.
Evenly spread layers, the first and the last among them, are a rule of this package; TinyCLIP
takes every k-th, the last one often not.

Knows open_clip's ViT, text transformer and ModifiedResNet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dimefm.models.weights.inheritance import positions
from dimefm.models.weights.inheritance.blocks import NotInheritable, matching
from dimefm.models.weights.inheritance.manual import (
    Inherited,
    refuse_other_inputs,
    source_names,
)

Groups = tuple[str | None, ...]
"""For each axis of a tensor the group of channels that it runs over; None: all are taken."""

FREE = None

TRANSFORMER: dict[str, Groups] = {
    r"conv1\.weight": ("channels", FREE, FREE, FREE),
    r"(class_embedding|cls_emb)": ("channels",),
    r"(ln_pre|ln_post|ln_final)\.(weight|bias)": ("channels",),
    r"positional_embedding": (FREE, "channels"),
    r"token_embedding\.weight": (FREE, "channels"),
    r"(proj|text_projection)": ("channels", FREE),
    r"text_projection\.weight": (FREE, "channels"),
    r"text_projection\.bias": (FREE,),
    r".*resblocks\.N\.ln_[12]\.(weight|bias)": ("channels",),
    r".*resblocks\.N\.ls_[12]\.gamma": ("channels",),
    r".*resblocks\.N\.attn\.in_proj_weight": ("heads N 3", "channels"),
    r".*resblocks\.N\.attn\.in_proj_bias": ("heads N 3",),
    r".*resblocks\.N\.attn\.out_proj\.weight": ("channels", "heads N 1"),
    r".*resblocks\.N\.attn\.out_proj\.bias": ("channels",),
    r".*resblocks\.N\.mlp\.c_fc\.weight": ("units N", "channels"),
    r".*resblocks\.N\.mlp\.c_fc\.bias": ("units N",),
    r".*resblocks\.N\.mlp\.c_proj\.weight": ("channels", "units N"),
    r".*resblocks\.N\.mlp\.c_proj\.bias": ("channels",),
}
RESNET: dict[str, Groups] = {
    r"conv1\.weight": ("stem 1", FREE, FREE, FREE),
    r"conv2\.weight": ("stem 2", "stem 1", FREE, FREE),
    r"conv3\.weight": ("stage 0", "stem 2", FREE, FREE),
    r"bn1\..+": ("stem 1",),
    r"bn2\..+": ("stem 2",),
    r"bn3\..+": ("stage 0",),
    r"layerS\.N\.conv1\.weight": ("inner S N 1", "into S N", FREE, FREE),
    r"layerS\.N\.bn1\..+": ("inner S N 1",),
    r"layerS\.N\.conv2\.weight": ("inner S N 2", "inner S N 1", FREE, FREE),
    r"layerS\.N\.bn2\..+": ("inner S N 2",),
    r"layerS\.N\.conv3\.weight": ("stage S", "inner S N 2", FREE, FREE),
    r"layerS\.N\.bn3\..+": ("stage S",),
    r"layerS\.N\.downsample\.0\.weight": ("stage S", "into S N", FREE, FREE),
    r"layerS\.N\.downsample\.1\..+": ("stage S",),
    r"attnpool\.positional_embedding": (FREE, "stage 4"),
    r"attnpool\.[qkv]_proj\.weight": ("heads 0 1", "stage 4"),
    r"attnpool\.[qkv]_proj\.bias": ("heads 0 1",),
    r"attnpool\.c_proj\.weight": (FREE, "heads 0 1"),
    r"attnpool\.c_proj\.bias": (FREE,),
}
"""The groups of each tensor by its name: N is the number of a block, S of a stage."""

IN_RESNET = re.compile(r"layer(?P<stage>\d+)\.(?P<block>\d+)\.")
IN_TRANSFORMER = re.compile(r"(?P<stage>)resblocks\.(?P<block>\d+)\.")


def inherit(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    head_width: int,
    is_text: bool,
    scores: Mapping[str, Tensor],
) -> Inherited:
    """Return the weights of ``teacher`` for each tensor of ``student``, both of one tower.

    ``scores`` are those of :func:`.measure.measure`. Raises NotInheritable, which names the reason,
    when the student cannot be a part of the teacher.
    """
    layers = evenly_spread(student, teacher)
    sources = source_names(student, teacher, layers)
    refuse_other_inputs(student, teacher, sources)
    choice = _Choice(scores, layers, head_width)
    is_resnet = 0 not in layers  # its stages count from 1
    tensors = {}
    for name, source in sources.items():
        shape = list(student[name].shape)
        tensor = teacher[source]
        if positions.is_of_images(name, is_text):
            tensor = positions.resampled(tensor, shape[-2])
        for axis, group in enumerate(groups_of(source, is_resnet)[: len(shape)]):
            places = choice.places(group, shape[axis], tensor.shape[axis], name)
            tensor = tensor.index_select(axis, places)
        tensors[name] = tensor
    return Inherited(tensors, layers, {"inherit_by": "importance"})


def evenly_spread(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
) -> dict[int, list[int]]:
    """Return the teacher's layers of each stage, evenly spread from the first to the last."""
    ours, theirs = matching(student, teacher)
    layers = {}
    for stage, depth in ours.depths.items():
        last = theirs.depths[stage] - 1
        spread = torch.linspace(0, last, depth, dtype=torch.float64)
        layers[stage] = [int(number + 0.5) for number in spread.tolist()]
    return layers


def groups_of(name: str, is_resnet: bool) -> Groups:
    """Return the groups of the axes of a teacher's tensor; raise NotInheritable for another one."""
    table = RESNET if is_resnet else TRANSFORMER
    in_block = IN_RESNET.match(name) if is_resnet else IN_TRANSFORMER.search(name)
    stage, block = "", ""
    plain = name
    if in_block is not None:
        stage, block = in_block["stage"], in_block["block"]
        plain = name.replace(in_block[0], "layerS.N." if is_resnet else "resblocks.N.", 1)
    for pattern, groups in table.items():
        if re.fullmatch(pattern, plain):
            return tuple(_numbered(group, stage, block) for group in groups)
    raise NotInheritable(f"inherit_by = 'importance' does not know its tensor {name}")


def _numbered(group: str | None, stage: str, block: str) -> str | None:
    """Return the name of a group with the numbers of stage and block."""
    if group is None:
        return None
    if group.startswith("into"):
        before = int(stage) - 1 if block == "0" else int(stage)
        return f"stage {before}"
    words = group.split()
    numbers = {"S": stage, "N": block}
    return " ".join(numbers.get(word, word) for word in words)


class _Choice:
    """What is taken of each group: the places with the highest scores, in their order."""

    def __init__(
        self, scores: Mapping[str, Tensor], layers: Mapping[int, list[int]], head_width: int
    ):
        self.scores = scores
        self.layers = layers
        self.head_width = head_width

    def places(self, group: str | None, size: int, most: int, name: str) -> Tensor:
        """Return which ``size`` of ``most`` places an axis of tensor ``name`` takes."""
        if size > most:
            raise NotInheritable(f"it is wider than the teacher: {name} {size} from {most}")
        if group is None or size == most:
            return torch.arange(size)
        if group.startswith("heads"):
            return self._of_heads(group, size)
        return _highest(self._score(group), size)

    def _of_heads(self, group: str, size: int) -> Tensor:
        """Return the rows of the best heads; the last word of a group is the number of parts."""
        name, _, parts = group.rpartition(" ")
        width = self.head_width
        heads = _highest(self._score(name), size // (int(parts) * width))
        rows = heads[:, None] * width + torch.arange(width)
        all_rows = len(self._score(name)) * width
        shifts = torch.arange(int(parts)) * all_rows
        return (shifts[:, None] + rows.flatten()).flatten()

    def _score(self, group: str) -> Tensor:
        """Return the scores of a group: of the residual stream, over what is taken of it."""
        if group == "channels":
            taken = [self.scores[f"channels {layer}"] for layer in self.layers[0]]
            return torch.stack([*taken, self.scores["channels last"]]).sum(0)
        if group.startswith("stage") and group != "stage 0":
            stage = int(group.split()[1])
            taken = [self.scores[f"{group} {layer}"] for layer in self.layers[stage]]
            return torch.stack(taken).sum(0)
        return self.scores[group]


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return the places of the ``count`` highest scores, ascending; of equal ones the first."""
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values

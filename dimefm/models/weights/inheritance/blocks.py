"""The blocks of a tower: which layer, of which stage, a weight belongs to, by its name.

Names are those of a tower alone: open_clip's ViT and text transformer, its ModifiedResNet, and
timm's networks behind ``trunk.``. Layers are numbers here, never texts, so the order of the names
in a file does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dimefm.errors import ModelError

STAGE, BLOCK, REST = r"(?P<stage>\d+)", r"(?P<block>\d+)", r"(?P<rest>.+)"

PATTERNS = {
    "resblocks.N": re.compile(rf"(?P<head>.*?)resblocks\.{BLOCK}\.{REST}"),
    "layers.S.blocks.N": re.compile(rf"(?P<head>.*?)layers\.{STAGE}\.blocks\.{BLOCK}\.{REST}"),
    "stages.S.blocks.N": re.compile(rf"(?P<head>.*?)stages\.{STAGE}\.blocks\.{BLOCK}\.{REST}"),
    "blocks.S.N": re.compile(rf"(?P<head>.*?)blocks\.{STAGE}\.{BLOCK}\.{REST}"),
    "layerS.N": re.compile(rf"(?P<head>.*?)layer{STAGE}\.{BLOCK}\.{REST}"),
    "blocks.N": re.compile(rf"(?P<head>.*?)blocks\.{BLOCK}\.{REST}"),
}
"""How families of networks name blocks, a longer pattern before the one that it contains."""


class NotInheritable(ModelError):
    """Why a tower cannot begin with weights of another; whoever catches it names the two."""


@dataclass(frozen=True)
class Place:
    """Where a weight is: its ``rest`` is its name inside block ``block`` of stage ``stage``."""

    stage: int
    block: int
    rest: str


@dataclass
class Blocks:
    """The blocks of a tower, named by one of :data:`PATTERNS`.

    ``places`` has the weights inside blocks by name; ``depths`` the number of blocks of each stage.
    """

    pattern: str
    places: dict[str, Place] = field(default_factory=dict)
    depths: dict[int, int] = field(default_factory=dict)
    names: dict[Place, str] = field(default_factory=dict)

    @staticmethod
    def of(names: Iterable[str], owner: str = "it") -> Blocks:
        """Return the blocks that the names of a tower's weights describe; ``owner`` is whose.

        Raises NotInheritable when there are none, or a block is missing in between.
        """
        known = list(names)
        blocks = Blocks("")
        for label, pattern in PATTERNS.items():
            matches = {name: pattern.fullmatch(name) for name in known}
            found = {name: match for name, match in matches.items() if match is not None}
            if found:
                blocks = Blocks(label)
                for name, match in found.items():
                    blocks._add(name, match)
                break
        if not blocks.pattern:
            raise NotInheritable(
                f"{owner} has no blocks with names of open_clip or timm; expected one of"
                f" {', '.join(PATTERNS)}"
            )
        blocks._count(owner)
        return blocks

    def _add(self, name: str, match: re.Match) -> None:
        stage = int(match.groupdict().get("stage") or 0)
        place = Place(stage, int(match["block"]), match["rest"])
        self.places[name] = place
        self.names[place] = name

    def _count(self, owner: str) -> None:
        """Count the blocks of each stage; raise NotInheritable when numbers are left out."""
        numbers: dict[int, set[int]] = {}
        for place in self.places.values():
            numbers.setdefault(place.stage, set()).add(place.block)
        for stage in sorted(numbers):
            present = numbers[stage]
            if present != set(range(len(present))):
                raise NotInheritable(f"{owner} has blocks {sorted(present)} of stage {stage}")
            self.depths[stage] = len(present)


def matching(student: Iterable[str], teacher: Iterable[str]) -> tuple[Blocks, Blocks]:
    """Return the blocks of student and teacher.

    Raises NotInheritable unless both are named alike, have the same stages, and the teacher has at
    least as many blocks in each.
    """
    ours = Blocks.of(student)
    theirs = Blocks.of(teacher, "the teacher")
    if ours.pattern != theirs.pattern:
        raise NotInheritable(
            f"its blocks are named {ours.pattern}, those of the teacher {theirs.pattern}: they are"
            " of different families"
        )
    if ours.depths.keys() != theirs.depths.keys():
        raise NotInheritable(
            f"it has {len(ours.depths)} stages of blocks, the teacher {len(theirs.depths)}"
        )
    for stage, depth in ours.depths.items():
        if depth > theirs.depths[stage]:
            where = f" in stage {stage}" if len(ours.depths) > 1 else ""
            raise NotInheritable(
                f"it has {depth} layers{where}, the teacher has fewer: {theirs.depths[stage]}"
            )
    return ours, theirs

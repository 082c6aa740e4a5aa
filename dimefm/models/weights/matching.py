"""Whether a state dict is all that a model expects, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.runtime import console
from dimefm.runtime.text import first_few, shortened

FEW = 2  # names of a kind in a message
MOST_REASON = 250  # characters of all names in a message
MOST_LISTED = 1000  # names of a kind in the list that --verbose prints
COUNTER = ".num_batches_tracked"  # of a batch norm; evaluation does not read it


@dataclass(frozen=True)
class Unmatched:
    """Names of weights that do not fit: the model's, the file's, and those of another shape."""

    missing: Sequence[str]
    unexpected: Sequence[str]
    shapes: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def describe(self) -> str:
        """Return in words how many names of each kind there are, and the first few of them."""
        parts = []
        for words, names in self._kinds():
            if names:
                parts.append(f"{len(names):,} {words}: {first_few(names, FEW)}")
        return "; ".join(parts)

    def listed(self) -> str:
        """Return the names, one a line, at most ``MOST_LISTED`` of each kind."""
        lines = []
        for words, names in self._kinds():
            lines += [f"  {words}: {name}" for name in names[:MOST_LISTED]]
            left = len(names) - MOST_LISTED
            if left > 0:
                lines.append(f"  {words}: {left:,} more")
        return "\n".join(lines)

    def _kinds(self) -> list[tuple[str, Sequence[str]]]:
        return [
            ("missing", self.missing),
            ("of another shape", self.shapes),
            ("unexpected", self.unexpected),
        ]


def complete(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as ``model`` takes them: float32, and scalars in the model's shape.

    A batch norm's counter that the file lacks is zero: training alone reads it.
    """
    expected = model.state_dict()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensor = tensor.float()
        wanted = expected.get(name)
        if wanted is not None and wanted.numel() == 1 and tensor.numel() == 1:
            tensor = tensor.reshape(wanted.shape)
        result[name] = tensor
    for name, wanted in expected.items():
        if name not in result and name.endswith(COUNTER):
            result[name] = torch.zeros_like(wanted)
    return result


def unmatched(model: nn.Module, tensors: Mapping[str, Tensor]) -> Unmatched:
    """Return what does not fit between a model and tensors of :func:`complete`."""
    expected = model.state_dict()
    shapes = []
    for name in sorted(expected.keys() & tensors.keys()):
        wanted = list(expected[name].shape)
        got = list(tensors[name].shape)
        if got != wanted:
            shapes.append(f"{name} {got}, expected {wanted}")
    return Unmatched(
        missing=sorted(expected.keys() - tensors.keys()),
        unexpected=sorted(tensors.keys() - expected.keys()),
        shapes=shapes,
    )


def refuse_unmatched(names: Unmatched, where: str, architecture: str) -> None:
    """Raise ModelError when there are such names; ``--verbose`` lists all."""
    if not names:
        return
    name = architecture
    if "/" in name:
        name = Path(name).name
    console.detail(f"{where}: does not fit {name}:\n{names.listed()}")
    reason = shortened(names.describe(), MOST_REASON)
    raise ModelError(
        f"{where}: does not fit {name}: {reason}; nothing was loaded. Fix: name another"
        " --student or --family, or fetch the whole file; -v lists all names"
    )

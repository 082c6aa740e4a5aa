"""Image towers through torch's compiler (inductor), with their weights frozen and packed for
batches of one shape.

Each further shape would be compiled anew, a quarter of a minute for a ViT-B-32, so short batches
are filled up (``micro_batches.Pieces``). That is also why text towers are not compiled: sentences
run at the length of the longest of their batch, and each length is another shape.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models.inference.micro_batches import is_out_of_memory
from dimefm.models.open_clip import reason_of

CPU_ROWS = 32
"""Rows of a compiled batch on a CPU at most: more are not faster there, and a short batch is filled
up to so many.
"""


class Compiled(nn.Module):
    """The image tower of a model, compiled as a whole when it runs first, and anew for each shape
    of batch.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._encode = torch.compile(model.encode_image, dynamic=False, fullgraph=True)
        self._compiled, self._one_at_a_time = set[torch.Size](), threading.Lock()

    @property
    def visual(self) -> nn.Module:
        """The image tower itself."""
        return self.model.visual

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return rows [B, D], not normalised, of pixels [B, 3, S, S]; raise ModelError when they
        cannot be compiled.
        """
        if pixels.shape in self._compiled:
            return self._encode(pixels)
        with self._one_at_a_time, _frozen():
            rows = self._encode(pixels)
            self._compiled.add(pixels.shape)
            return rows


def check(device: torch.device) -> None:
    """Raise ModelError when the compiler does not work on this machine, e.g. without C++; it has to
    compile a trifle.
    """
    with _frozen(), torch.no_grad():
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))


@contextmanager
def _frozen() -> Iterator[None]:
    """Compile what runs first here for weights that never change."""
    from torch._inductor import (
        config,
    )  # the compiler; to import it takes seconds that most runs need not spend

    try:
        with config.patch(freezing=True):
            yield
    except Exception as error:  # the compiler raises whatever the tools that it starts raise
        if is_out_of_memory(error):
            raise
        complaint = Exception(
            str(error).split("\n\nSet TORCH")[0]
        )  # what follows is for people who debug torch
        raise ModelError(
            f"--compile: the image tower cannot be compiled ({reason_of(complaint)}). Fix: leave"
            " it out"
        ) from error

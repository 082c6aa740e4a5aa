"""How many rows run through a tower at once: as many as memory allows, and no more than are worth
while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from dimefm.errors import ModelError
from dimefm.runtime import console

SMALLEST = 16
LARGEST = {"cpu": 256, "cuda": 1024}  # by kind of device
SECONDS = 6.0  # after which the search for a batch size tries no further one
ENOUGH = 0.97  # of the best rate: the smallest batch that reaches it is taken
NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA out of memory",
    "std::bad_alloc",
    "STATUS_ALLOC_FAILED",
)

Encode = Callable[[Tensor], Tensor]


class Pieces:
    """The rows that run through a tower together: all that are given, until memory runs out; from
    then on half as many.

    ``most`` is how many rows a piece has at most, None as long as nothing limits it. With ``full``
    every piece has exactly as many: a smaller one is filled up with zeros, whose rows are cut off
    again.
    """

    def __init__(self, most: int | None = None, full: bool = False):
        self.most, self.full = most, full
        self._told = False

    def encode(self, encode: Encode, inputs: Tensor) -> Tensor:
        """Return the rows [N, D] that ``encode`` gives for inputs [N, ...], piece by piece.

        The first time that memory runs out, a line on stderr says so. Raises ModelError when it
        does for a single row.
        """
        done: list[Tensor] = []
        start = 0
        while start < len(inputs) or not done:
            rows = self._piece(encode, inputs[start : start + (self.most or len(inputs))])
            if rows is not None:
                done.append(rows)
                start += len(rows)
        return done[0] if len(done) == 1 else torch.cat(done)

    def _piece(self, encode: Encode, inputs: Tensor) -> Tensor | None:
        """Return the rows of one piece, None when memory ran out and the next one is to be
        smaller.
        """
        rows = self.most if self.full and self.most else len(inputs)
        try:
            return encode(filled_up(inputs, rows))[: len(inputs)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [""])[0]
        self._halve(rows, reason)  # behind the handler: the error holds on to what was computed
        return None

    def _halve(self, rows: int, reason: str) -> None:
        if rows <= 1:
            raise ModelError(
                f"out of memory for a single row ({reason}). Fix: free memory of other programs, or"
                " change --device"
            )
        self.most = rows // 2
        if not self._told:
            console.note(f"note: out of memory with {rows} rows at once; going on with fewer")
        self._told = True


def filled_up(inputs: Tensor, rows: int) -> Tensor:
    """Return inputs [N, ...] with zeros behind them, [rows, ...], contiguous; itself when there are
    as many already.
    """
    if len(inputs) == rows:
        return inputs.contiguous()
    return torch.cat([inputs, inputs.new_zeros(rows - len(inputs), *inputs.shape[1:])])


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device or the machine has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def fitting_batch_size(encode: Encode, row: Tensor, kind: str) -> int:
    """Return a batch size that fits into memory and is worth while, by measuring ``encode`` on this
    machine.

    ``row`` [...] is an example of one row of its input; ``kind`` of device is "cpu" or "cuda".
    Sizes are doubled from 16 to 256 on a CPU and to 1024 on a GPU, as long as memory and six
    seconds last; of these the smallest is taken that comes within 3 % of the best rate. The last
    one before memory ran out is left out: other things need some of it, too.
    """
    until = time.perf_counter() + SECONDS
    rates: dict[int, float] = {}
    size, expected = SMALLEST, SMALLEST * (_seconds(encode, row, 1) or 0.0)
    while size <= LARGEST[kind] and time.perf_counter() + 2 * expected < until:
        seconds = _seconds(encode, row, size)
        if seconds is None:
            rates.pop(size // 2, None)
            break
        rates[size] = size / seconds
        size, expected = 2 * size, 2 * seconds
    good = ENOUGH * max(rates.values(), default=0.0)
    return min((size for size, rate in rates.items() if rate >= good), default=SMALLEST)


def _seconds(encode: Encode, row: Tensor, size: int) -> float | None:
    """Return how long a batch of ``size`` takes, the better of two runs; None when memory does not
    suffice.
    """
    best = float("inf")
    try:
        batch = row.expand(size, *row.shape).contiguous()
        for _ in range(2):
            started = time.perf_counter()
            encode(batch).cpu()
            best = min(best, time.perf_counter() - started)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return best

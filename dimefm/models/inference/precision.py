"""The precisions that towers run in, and whether this machine is any quicker in them.

``fp32-fast`` keeps weights, activations and sums in float32, but the factors of matrix products may
be rounded on the way in: to bf16 on a CPU with units for it (AMX, AVX-512 BF16), to TF32 on a GPU.
Elsewhere it is fp32. Convolutions stay as torch has them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dimefm.errors import RecipeError

FAST = "fp32-fast"
PRECISIONS = {"fp32": None, FAST: None, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDE = 512  # of the rows and a third of the outputs of the product that is computed to find out
SLOW = 0.9  # of the time of fp32 for such a product, from which on a precision gains nothing


class _Products:
    """How this process multiplies matrices of float32: one setting in torch, for all threads.

    Threads that want the same compute at the same time; one that wants the other waits until they
    have left.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._fast, self._inside, self._before = False, 0, ("", True)

    def enter(self, fast: bool) -> None:
        with self._turn:
            self._turn.wait_for(lambda: not self._inside or self._fast == fast)
            if fast and not self._inside:
                self._before = (
                    torch.get_float32_matmul_precision(),
                    torch.backends.cuda.flash_sdp_enabled(),
                )
                self._set("medium", False)
            self._fast = fast
            self._inside += 1

    def leave(self) -> None:
        with self._turn:
            self._inside -= 1
            if not self._inside:
                if self._fast:
                    self._set(*self._before)
                self._turn.notify_all()

    def _set(self, precision: str, flash: bool) -> None:
        """Set how products round, and whether attention may take torch's flash kernel: that
        multiplies each head alone on a CPU, where oneDNN takes longer to begin a rounded product
        than to compute it."""
        torch.set_float32_matmul_precision(precision)
        torch.backends.cuda.enable_flash_sdp(flash)


_products = _Products()


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Let a tower compute in ``precision``, a name in PRECISIONS, on ``device``; not to be nested
    in itself.

    What torch says of matrix products is the process's own again once the last thread has left,
    also by an exception. Threads with ``fp32-fast`` and threads without it take turns, so that
    neither computes as the other wants.
    """
    dtype = PRECISIONS[precision]
    _products.enter(precision == FAST)
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        _products.leave()


@functools.cache
def chosen(device: torch.device, compiled: bool = False) -> tuple[str, str]:
    """Return (precision, why, in words): what is quick on this machine and never overflows, as fp16
    may.

    A GPU takes bf16 if it says that it has units for it. A CPU takes fp32-fast if a product of
    matrices, a matter of milliseconds, is quicker in it; never bf16, which costs a ViT more in
    conversions than it saves. Else it is fp32.
    """
    if device.type != "cpu":
        with torch.cuda.device(device):
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            ("bf16", "this GPU computes in it")
            if able
            else ("fp32", "this GPU has no bf16; fp16 may be quicker")
        )
    if compiled:
        return "fp32", f"since compiled towers are slower in {FAST} on a CPU"
    times = seconds_of_product(FAST) / seconds_of_product("fp32")
    words = f"on this CPU a product of matrices takes {times:.1f} times as long in {FAST}"
    return FAST if times < SLOW else "fp32", words


def check_compiled(precision: str, device: torch.device) -> None:
    """Raise RecipeError for a compiled tower that would be slower than one that is not.

    Compiled attention multiplies each place by its own copy of the weights, and all copies are
    rounded; without the copies it is still no quicker than one that is not compiled.
    """
    if precision == FAST and device.type == "cpu":
        raise RecipeError(
            f"--compile with --precision {FAST}: on a CPU a transformer takes six times as long so."
            " Fix: leave --compile out, or say --precision fp32"
        )


def advice(precision: str, device: torch.device) -> str | None:
    """Return a line for people when another precision is better on this machine, else None."""
    if device.type != "cpu" or precision == "fp32":
        return None
    if PRECISIONS[precision] is not None:
        return (
            f"note: --precision {precision} is no quicker than fp32 on a CPU, and may be much"
            f" slower; auto takes {FAST} where that is quicker"
        )
    found, why = chosen(device)
    return (
        None
        if found == precision
        else f"note: --precision {precision} is no quicker than fp32 here: {why}"
    )


def seconds_of_product(precision: str) -> float:
    """Return how long the CPU takes for the first product of attention in fp32 or fp32-fast, the
    best of five.
    """
    rows, best = torch.ones(32, 50, SIDE), float("inf")
    weights, bias = torch.ones(3 * SIDE, SIDE), torch.ones(3 * SIDE)
    with computing(precision, torch.device("cpu")), torch.inference_mode():
        for _ in range(5):
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weights, bias)
            best = min(best, time.perf_counter() - started)
    return best

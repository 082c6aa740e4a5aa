"""The precisions that towers run in, and whether this machine is any quicker in them."""

from __future__ import annotations

import time

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDE = 512  # of the matrices that are multiplied to find out


def advice(precision: str, device: torch.device) -> str | None:
    """Return a line for people when a precision gains nothing on this machine, else None.

    A CPU without units for it only imitates it: bf16 autocast of a ViT then takes 3 to 10 times as long as fp32.
    """
    dtype = PRECISIONS[precision]
    if dtype is None or device.type != "cpu":
        return None
    times = seconds_of_product(dtype) / seconds_of_product(torch.float32)
    if times < 0.9:
        return None
    return (
        f"note: --precision {precision} is no quicker than fp32 on this CPU, and may be much slower: a product of matrices "
        f"takes {times:.1f} times as long"
    )


def seconds_of_product(dtype: torch.dtype) -> float:
    """Return how long the CPU takes for a product of two matrices [512, 512] of ``dtype``, the best of five."""
    matrix, best = torch.ones(SIDE, SIDE, dtype=dtype), float("inf")
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - started)
    return best

"""DIME-FM's loss, VL both ways and P-VL, forward and backward: the chunked form beside whole
matrices of similarities.

    python -m benchmarks._train_losses {chunked,whole} B N DIM [DEVICE]

prints one line of JSON: the MiB that one pass takes beyond its inputs, gradients included, and its
seconds. On a CPU that is the highest resident memory of a process of its own in which arrays are
given back as soon as they are freed; on CUDA what torch's allocator held at most.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._timing import Line, Work, interleaved
from dimefm.losses import Features, LossConfig, Objective

SIZES = (4096, 8192)
MEMORY, SPEED = ("<=", 1 / 16), (">=", 1.0)
PAGES = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
WARM = 512  # rows of a pass that is not measured, so that libraries have their buffers

Loss = Callable[[Features, Features], Tensor]
chunked = Objective([LossConfig("dime.vl", 0.7), LossConfig("dime.pvl", 0.3)])


def whole(student: Features, teacher: Features) -> dict[str, Tensor]:
    """Return the same total from whole matrices [B, N] and [B, B]."""

    def kl(s: Tensor, t: Tensor, temperature: float) -> Tensor:
        target, found = F.log_softmax(t / temperature, dim=1), F.log_softmax(s / temperature, dim=1)
        return F.kl_div(found, target, reduction="batchmean", log_target=True)

    s, t = ((side.image * teacher.logit_scale) @ teacher.text.T for side in (student, teacher))
    vl = kl(s, t, 1.0) + kl(s.T, t.T, 1.0)
    s, t = ((side.image * teacher.logit_scale) @ teacher.image.T for side in (student, teacher))
    return {"total": 0.7 * vl + 0.3 * 2 * kl(s, t, 3.0)}


FORMS = {"chunked": chunked, "whole": whole}


def task(form: str, b: int, n: int, dim: int, device: str) -> Callable[..., None]:
    """Return one forward and backward of a form over made rows, which are near each other as CLIP's
    are.
    """
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(dim, generator=draw)
    image, text, found = (
        torch.randn(rows, dim, generator=draw).add_(shared).to(device) for rows in (b, n, b)
    )
    for rows in (image, text, found):
        rows.div_(rows.norm(dim=1, keepdim=True))
    teacher, student = Features(image, text, 100.0), Features(found.requires_grad_(), text, 100.0)

    def run(_: int = 0) -> None:
        found.grad = None
        FORMS[form](student, teacher)["total"].backward()
        if found.is_cuda:
            torch.cuda.synchronize()

    return run


def resident(field: str) -> float:
    """Return a figure of this process's memory in MiB."""
    return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measured(form: str, b: int, n: int, dim: int, device: str = "cpu") -> dict[str, float]:
    """Return the MiB beyond its inputs that one pass takes, and its seconds, in this process."""
    task(form, WARM, WARM, dim, device)()
    run = task(form, b, n, dim, device)
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the highest figure starts anew
        before = resident("VmRSS")
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    peak = resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return {"MiB": peak - before, "seconds": seconds}


def memory(form: str, b: int, n: int, dim: int, device: str = "cpu") -> float:
    """Return the MiB beyond its inputs that one pass takes in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, form, str(b), str(n), str(dim), device]
    where = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=where, env=os.environ | PAGES, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return json.loads(done.stdout)["MiB"]


def losses(
    sizes: Sequence[int] = SIZES, dim: int = 768, repeats: int = 3, device: str = "cpu"
) -> list[Line]:
    """Return memory and speed of the chunked form beside whole matrices at each B = N."""
    lines = []
    for size in sizes:
        what = f"VL + P-VL, forward and backward, B = N = {size}, D = {dim}"
        held = {form: memory(form, size, size, dim, device) for form in FORMS}
        rates = interleaved(
            {form: Work(task(form, size, size, dim, device), size) for form in FORMS}, repeats
        )
        lines += [
            Line(
                f"loss memory {size}",
                f"{what}: extra memory",
                held["chunked"],
                "MiB",
                held["whole"],
                MEMORY if size >= SIZES[0] else None,
            ),
            Line(f"loss {size}", f"{what}", rates["chunked"], "images/s", rates["whole"], SPEED),
        ]
    return lines


if __name__ == "__main__":
    _form, _b, _n, _dim, *_device = sys.argv[1:]
    print(json.dumps(measured(_form, int(_b), int(_n), int(_dim), *_device)))

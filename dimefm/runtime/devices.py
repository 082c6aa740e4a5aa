"""The device that a command computes on."""

from __future__ import annotations

import os
import re

import torch

from dimefm.errors import ModelError


def pick_device(name: str) -> torch.device:
    """Return the device ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` is a GPU if the machine has one, else the CPU; a process that torchrun started gets the
    GPU of its local rank. Raises ModelError when the device does not exist.
    """
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            local_rank = os.environ.get("LOCAL_RANK", "0")
            name = f"cuda:{local_rank}"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ModelError(f"--device {name}: no such device. Fix: use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ModelError(
                f"--device {name}: this machine has {count} CUDA devices that torch"
                f" {torch.__version__} can use. Fix: use --device cpu, or check the GPU driver"
            )
    return device

"""The device that a command computes on."""

from __future__ import annotations

import os
import re

import torch

from dimefm.errors import ModelError


def pick_device(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; raise ModelError when it is
    not there.

    ``auto`` is a GPU where there are any, in a process that torchrun started the one of its number
    on this machine.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ModelError(f"--device {name}: no such device; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices that torch"
            f" {torch.__version__} can use; use --device cpu, or mend the driver"
        )
    return device

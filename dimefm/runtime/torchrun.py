"""The rank of this process, from torchrun's environment, and its end when torchrun is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

POLL_SECONDS = 1.0
GRACE_SECONDS = 30.0  # between asking a process to end and ending it, as torchrun has it


def rank_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (rank, number of processes), from RANK and WORLD_SIZE; (0, 1) without torchrun."""
    rank = int(environment.get("RANK", "0"))
    world_size = int(environment.get("WORLD_SIZE", "1"))
    return rank, world_size


def end_with_torchrun(environment: Mapping[str, str] = os.environ) -> None:
    """End this process when torchrun has ended without it, as after ``kill -9``.

    Processes would otherwise go on, and block the GPUs and folders of the next run. The process
    gets SIGTERM, which leaves a checkpoint, and ends at the latest after GRACE_SECONDS. A process
    that torchrun has not started is left alone.
    """
    is_watching = any(thread.name == _WATCHER for thread in threading.enumerate())
    if "TORCHELASTIC_RUN_ID" in environment and not is_watching:
        parent = os.getppid()
        threading.Thread(target=_watch, args=(parent,), name=_WATCHER, daemon=True).start()


_WATCHER = "torchrun watcher"


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)

"""Resume a run from its newest checkpoint, only where its caches and files are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from dimefm.errors import CacheError, DimefmError
from dimefm.train import checkpoint
from dimefm.train.distributed import DistributedContext
from dimefm.train.early_stopping import EarlyStopping
from dimefm.train.ema import Ema
from dimefm.train.inputs.sources import Sources


def source_fingerprints(sources: Sources) -> dict[str, list[str]]:
    """Return the fingerprints of what a run is trained on, by the key of the recipe.

    They are those of the image and text caches, one for each teacher, and of neighbor graphs and
    token caches. Pairs without teachers have the digests of their files under ``pairs``.
    """
    fingerprints = {
        "image_cache": [cache.manifest.fingerprint for cache in sources.image_caches],
        "text_cache": [cache.manifest.fingerprint for cache in sources.text_caches],
    }
    for key, further in sources.further_fingerprints().items():
        if further:
            fingerprints[key] = further
    if not sources.teachers:
        fingerprints["pairs"] = [shard.digest() for shard in sources.raw.shards]
    return fingerprints


def restore(
    out: Path,
    fingerprints: dict[str, list[str]],
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    early_stopping: EarlyStopping | None,
    echo: Callable[[str], None],
) -> int:
    """Restore the newest checkpoint of ``out``; return its step, 0 when there is no checkpoint.

    Raises CacheError when the run was trained on something else than ``fingerprints``, and
    ModelError when the checkpoint is damaged.
    """
    checkpoints = checkpoint.checkpoints(out)
    if not checkpoints:
        return 0
    newest = checkpoints[-1]
    step, saved = checkpoint.load(newest, student, optimizer, ema, early_stopping)
    if saved != fingerprints:
        raise CacheError(
            f"{newest}: the run was trained on {_short(saved)}, now there are"
            f" {_short(fingerprints)}. Fix: use the caches and files of the first start, or start"
            " a new run"
        )
    echo(f"resumed after step {step} from {newest}")
    return step


def _short(fingerprints: dict[str, list[str]]) -> str:
    """Return the beginnings of fingerprints on one line, for an error message."""
    parts = []
    for key, values in fingerprints.items():
        if values:
            beginnings = " ".join(value[:12] for value in values)
            parts.append(f"{key} {beginnings}")
    return ", ".join(parts) or "none"


def refuse_different_files(context: DistributedContext, out: Path, rows: int, step: int) -> None:
    """Raise DimefmError unless all processes have the same number of ``rows`` and resume step.

    They differ on machines that do not share a disk.
    """
    values = torch.tensor([rows, step], device=context.device)
    per_process = context.gather(values).tolist()
    main_rows, main_step = per_process[0]
    for rank, (peer_rows, peer_step) in enumerate(per_process):
        if (peer_rows, peer_step) != (main_rows, main_step):
            raise DimefmError(
                f"{out}: process 0 found {main_rows:,} rows and the run after step {main_step},"
                f" process {rank} {peer_rows:,} rows and step {peer_step}; all need the same files"
                " and one --out, on a disk that they share"
            )

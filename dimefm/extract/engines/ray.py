"""The engine that is a Ray cluster: parts of the shards are tasks, each on a GPU where there are
any.

Parts whose node dies are tried again on another one, where the shards that they have finished are
not redone. The nodes need the same files under the same names: a shared file system, or URLs.
``RAY_ADDRESS`` names the cluster; without it Ray uses the one that this machine is part of, or
starts one on this machine alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from dimefm.cache.manifest import FILE, Manifest
from dimefm.errors import DimefmError, RecipeError
from dimefm.extract.job import Extraction
from dimefm.extract.pipeline import Report
from dimefm.extract.sharding import Share
from dimefm.models.encoder import Encoder
from dimefm.storage.stores import open_store

PARTS_PER_SLOT = 8  # so that nodes of different speed end together, and a lost one costs little
CPUS = 2  # of a task without a GPU
RETRIES = 16  # on other nodes, when one dies


def run(extraction: Extraction, share: Share, echo: Callable[[str], None]) -> None:
    """Do all of ``extraction`` on a Ray cluster; raise DimefmError when Ray is missing or a part
    fails.
    """
    ray = _ray()
    if not share.whole or share.ranks > 1:
        raise RecipeError(
            "--engine ray deals out the shards by itself; leave --shard-range and torchrun out"
        )
    if extraction.mode != "create":
        raise RecipeError(
            "--append and --retry-bad are the work of one process; leave --engine ray out"
        )
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, logging_level="error")
    try:
        reports = _run(ray, extraction, share, echo)
    finally:
        if started_here:
            ray.shutdown()
    for place, found in reports.items():
        echo(_together(place, extraction.scratch, found).describe())


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise DimefmError(
            "--engine ray needs the package ray, which is not installed; pip install 'dimefm[ray]'"
        ) from error
    return ray


def _run(
    ray: Any, extraction: Extraction, share: Share, echo: Callable[[str], None]
) -> dict[str, list[Report]]:
    """Run all parts as tasks and return the reports of each cache, by its place."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    slots = gpus or max(1, int(ray.cluster_resources().get("CPU", CPUS)) // CPUS)
    parts = PARTS_PER_SLOT * slots
    echo(
        f"ray: {slots} {'GPUs' if gpus else 'pairs of CPUs'} on {len(ray.nodes())} nodes, {parts}"
        " parts"
    )
    needs = {"num_gpus": 1} if gpus else {"num_cpus": CPUS}
    task = ray.remote(**needs, max_retries=RETRIES, scheduling_strategy="SPREAD")(_part)
    quiet = dataclasses.replace(
        extraction, settings=dataclasses.replace(extraction.settings, progress=False)
    )
    waiting = [
        task.remote(quiet, dataclasses.replace(share, part=part, parts=parts))
        for part in range(parts)
    ]
    reports: dict[str, list[Report]] = {
        place: [] for kind, _ in extraction.sources for place in extraction.places(kind)
    }
    while waiting:
        done, waiting = ray.wait(waiting)
        try:
            found = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DimefmError):
                raise error.cause from error
            raise DimefmError(
                f"a part failed on the cluster: {error.cause!r}; mend that, then run again"
            ) from error
        except ray.exceptions.RayError as error:
            raise DimefmError(
                f"a part was lost with its nodes {RETRIES} times ({type(error).__name__}); finished"
                " shards are kept: run the same command again"
            ) from error
        for place, report in zip(reports, found, strict=True):
            reports[place].append(report)
    return reports


def _part(extraction: Extraction, share: Share) -> list[Report]:
    """Do one part in a process of the cluster."""
    reports = list(extraction.run(_encoders(extraction), extraction.open(), share))
    for report in reports:
        report.manifest = None  # whoever asked reads it from the cache
    return reports


_kept: dict[str, list[Encoder]] = {}


def _encoders(extraction: Extraction) -> list[Encoder]:
    """Return the loaded teachers; a process that does many parts loads them once."""
    name = repr(extraction.teachers)
    if name not in _kept:
        _kept.clear()
        _kept[name] = extraction.load()
    return _kept[name]


def _together(place: str, scratch: str | None, reports: list[Report]) -> Report:
    """Return one report of the parts of the cache at ``place``."""
    store = open_store(place, scratch)
    whole = Report(
        out=str(store), manifest=None if store.size(FILE) is None else Manifest.read(store)
    )
    whole.missing, whole.encode_threads = (
        min(report.missing for report in reports),
        reports[0].encode_threads,
    )
    for report in reports:
        whole.rows_done += report.rows_done
        whole.unused_captions += report.unused_captions
        whole.streamed += report.streamed
        whole.wall = max(whole.wall, report.wall)
        for name, seconds in report.seconds.items():
            whole.seconds[name] += seconds
    return whole

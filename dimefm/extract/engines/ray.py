"""The engine that is a Ray cluster.

Parts of the shards are tasks, each on a GPU if the cluster has any. When a node dies, its parts are
tried again on another node, which skips the shards that are finished. The nodes need the same files
under the same names: a shared file system, or URLs. ``RAY_ADDRESS`` names the cluster. Without it
Ray uses the cluster that this machine is part of, or starts one on this machine alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from dimefm.cache.manifest import FILE, Manifest
from dimefm.errors import DimefmError, RecipeError
from dimefm.extract.job import Extraction
from dimefm.extract.report import Report
from dimefm.extract.sharding import Share
from dimefm.models.encoder import Encoder
from dimefm.storage.stores import open_store

PARTS_PER_SLOT = 8  # nodes of different speed then end together, and a lost part costs little
CPUS_PER_TASK = 2  # of a task without a GPU
MAX_RETRIES = 16  # of a part whose node dies


def run(extraction: Extraction, share: Share, echo: Callable[[str], None]) -> list[Report]:
    """Do all of ``extraction`` on a Ray cluster and return its reports; ``echo`` prints one.

    Raises RecipeError for a ``share`` or mode that Ray cannot take, and DimefmError when Ray is
    missing or a part fails.
    """
    ray = _import_ray()
    if not share.whole or share.ranks > 1:
        raise RecipeError(
            "--engine ray distributes the shards itself. Fix: remove --shard-range, and do not"
            " start it with torchrun"
        )
    if extraction.mode != "create":
        raise RecipeError("--append and --retry-bad run in one process. Fix: remove --engine ray")
    start_ray = not ray.is_initialized()
    if start_ray:
        ray.init(log_to_driver=False, logging_level="error")
    try:
        reports = _run_parts(ray, extraction, share, echo)
    finally:
        if start_ray:
            ray.shutdown()
    merged_reports = []
    for place, parts in reports.items():
        merged = _merge_reports(place, extraction.scratch, parts)
        echo(merged.describe())
        merged_reports.append(merged)
    return merged_reports


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise DimefmError(
            "--engine ray needs the package ray, which is not installed. Fix: pip install"
            " 'dimefm[ray]'"
        ) from error
    return ray


def _run_parts(
    ray: Any, extraction: Extraction, share: Share, echo: Callable[[str], None]
) -> dict[str, list[Report]]:
    """Run all parts as tasks; return the reports of each cache, by its folder or URL."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if gpus:
        slots = gpus
        slot_name = "GPUs"
        needs = {"num_gpus": 1}
    else:
        slots = max(1, int(resources.get("CPU", CPUS_PER_TASK)) // CPUS_PER_TASK)
        slot_name = "pairs of CPUs"
        needs = {"num_cpus": CPUS_PER_TASK}
    parts = PARTS_PER_SLOT * slots
    echo(f"ray: {slots} {slot_name} on {len(ray.nodes())} nodes, {parts} parts")

    task = ray.remote(**needs, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD")(_run_part)
    quiet_settings = dataclasses.replace(extraction.settings, progress=False)
    quiet_extraction = dataclasses.replace(extraction, settings=quiet_settings)
    waiting = []
    for part in range(parts):
        share_of_part = dataclasses.replace(share, part=part, parts=parts)
        waiting.append(task.remote(quiet_extraction, share_of_part))

    reports: dict[str, list[Report]] = {}
    for kind, _ in extraction.sources:
        for place in extraction.places(kind):
            reports[place] = []
    while waiting:
        finished, waiting = ray.wait(waiting)
        part_reports = _result(ray, finished[0])
        for place, report in zip(reports, part_reports, strict=True):
            reports[place].append(report)
    return reports


def _result(ray: Any, task: Any) -> list[Report]:
    """Return the reports of a finished task; raise DimefmError when it failed."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DimefmError):
            raise error.cause from error
        raise DimefmError(
            f"a part failed on the cluster: {error.cause!r}. Fix: remove the cause and run the same"
            " command again"
        ) from error
    except ray.exceptions.RayError as error:
        raise DimefmError(
            f"a part was lost with its nodes {MAX_RETRIES} times ({type(error).__name__}); finished"
            " shards are kept. Fix: run the same command again"
        ) from error


def _run_part(extraction: Extraction, share: Share) -> list[Report]:
    """Do one part in a process of the cluster."""
    encoders = _load_once(extraction)
    reports = list(extraction.run(encoders, extraction.open(), share))
    for report in reports:
        report.manifest = None  # it may be large, and the caller can read it from the cache
    return reports


_loaded: dict[str, list[Encoder]] = {}


def _load_once(extraction: Extraction) -> list[Encoder]:
    """Return the loaded teachers; a process that does many parts loads them once."""
    name = repr(extraction.teachers)
    if name not in _loaded:
        _loaded.clear()
        _loaded[name] = extraction.load()
    return _loaded[name]


def _merge_reports(place: str, scratch: str | None, reports: list[Report]) -> Report:
    """Return one report of all parts of the cache at ``place``."""
    store = open_store(place, scratch)
    merged = Report(out=str(store))
    if store.size(FILE) is not None:
        merged.manifest = Manifest.read(store)
    merged.missing = min(report.missing for report in reports)
    merged.encode_threads = reports[0].encode_threads
    merged.skipped = reports[0].skipped  # every part opens all sources
    merged.selection = reports[0].selection
    merged.already_finished = all(report.already_finished for report in reports)
    for report in reports:
        merged.rows_done += report.rows_done
        merged.unused_captions += report.unused_captions
        merged.streamed += report.streamed
        merged.wall = max(merged.wall, report.wall)
        for stage, seconds in report.seconds.items():
            merged.seconds[stage] += seconds
    return merged

"""What each loss, view, dtype and number of sentences is worth: many small runs of ``dimefm``, as a
table and a plot.

    python -m benchmarks.study --out study [--scale 1] [--cells a,b] [--seeds 0,1] [--jobs 2]
    [--report-only]

Cells stand in ``pipelines/study/study.toml``. Every run is a ``dimefm`` command, which is printed,
and its result is a line of ``OUT/results.jsonl``. Stopped at any time, the same command goes on: no
finished run is done again, an unfinished one goes on at its last checkpoint. ``OUT/study.md`` and
``OUT/study.png`` are made anew from the results at the end, and at any time by ``--report-only``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from benchmarks._study_cells import ROOT, Plan, chosen, read
from benchmarks._study_report import report
from benchmarks._study_run import Processes, Runs, prepare, todo
from dimefm.errors import DimefmError

DATA = ROOT / "../shared/data"


def main(arguments: list[str] | None = None) -> int:
    """Run what is not done yet and write the report; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("study"),
        help="folder of data, caches, runs and results  [study]",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        help="folder of real sets  [../shared/data beside the checkout]",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on all numbers of steps  [1]"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the study's images, above 0 and at most 1  [1]"
    )
    parser.add_argument("--cells", default="", metavar="A,B", help="only these  [all]")
    parser.add_argument(
        "--seeds", default="", metavar="0,1", help="only these  [those of the study]"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs at once, each with its part of the cores  [one for each core]",
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="make table and plot from the results; run nothing",
    )
    options = parser.parse_args(arguments)
    jobs = options.jobs or os.cpu_count() or 1
    if not (options.scale > 0 and 0 < options.share <= 1 and jobs > 0):
        parser.error("--scale and --jobs are above 0, --share above 0 and at most 1")
    start = Processes(max(1, (os.cpu_count() or 1) // jobs))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _stop(start))
    try:
        return _run(options, jobs, start)
    except DimefmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _stop(start: Processes) -> None:
    start.stop()
    raise KeyboardInterrupt


def _run(options: argparse.Namespace, jobs: int, start: Processes) -> int:
    study = read()
    plan = Plan(study, options.out, options.data, options.scale, options.share)
    cells = chosen(study, _listed(options.cells))
    failed: list[str] = []
    if not options.report_only:
        prepare(plan, cells, start, _say)
        runs = Runs(plan, start, _say)
        runs(todo(plan, cells, [int(seed) for seed in _listed(options.seeds)] or study.seeds), jobs)
        failed = runs.failed
    _say(report(plan))
    _say(
        f"failed: {', '.join(failed)}"
        if failed
        else f"written: {options.out}/study.md, {options.out}/study.png"
    )
    return 1 if failed else 0


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # in one piece: several threads speak
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())

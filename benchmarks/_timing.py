"""What every benchmark needs: interleaved medians, a table with ratios beside their goals, and the
machine they hold on.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HEAD = ("what", "ours", "against", "ratio", "goal", "met")


@dataclass(frozen=True)
class Work:
    """Something to time: ``run(repeat)`` handles ``rows`` rows; ``after`` tidies up and is not
    timed.
    """

    run: Callable[[int], object]
    rows: int
    after: Callable[[], object] | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table.

    ``ours`` and ``against`` are in ``unit``; the ratio is ours / against. ``goal`` is ``(">=" or
    "<=", value)``: of the ratio if there is something to compare with, else of ``ours``. ``item``
    names the line in the JSON file and never changes.
    """

    item: str
    what: str
    ours: float
    unit: str = "rows/s"
    against: float | None = None
    goal: tuple[str, float] | None = None

    @property
    def ratio(self) -> float | None:
        """How many times ``against``; None where there is nothing to compare with."""
        return None if self.against is None else self.ours / self.against

    @property
    def met(self) -> bool | None:
        """Whether the goal is met, None without one."""
        if self.goal is None:
            return None
        sign, limit = self.goal
        value = self.ours if self.ratio is None else self.ratio
        return value >= limit if sign == ">=" else value <= limit

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the table, in the order of HEAD."""
        against = "-" if self.against is None else number(self.against)
        ratio = "-" if self.ratio is None else number(self.ratio)
        goal = "-" if self.goal is None else f"{self.goal[0]} {number(self.goal[1])}"
        met = {None: "-", True: "yes", False: "no"}[self.met]
        return self.what, f"{number(self.ours)} {self.unit}", against, ratio, goal, met

    def fields(self) -> dict:
        """Return plain values for a line of JSON."""
        goal = None if self.goal is None else " ".join(map(str, self.goal))
        shown = {
            "item": self.item,
            "what": self.what,
            "ours": self.ours,
            "against": self.against,
            "unit": self.unit,
        }
        return {**shown, "ratio": self.ratio, "goal": goal, "met": self.met}


def number(value: float) -> str:
    """Return a number for people: three digits, thousands as k and M."""
    if abs(value) < 0.01 and value:
        return f"{value:.1e}"
    if abs(value) < 10:
        return f"{value:.6f}" if 0.999 < abs(value) < 1 else f"{value:.3f}"
    for limit, ending in ((1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if ending == ' M' else 1e3):.3g}{ending}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def interleaved(
    works: Mapping[str, Work], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return rows/s of each work: medians of ``repeats`` rounds after one not counted; each begins
    with another work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            started = clock()
            works[name].run(repeat)
            seconds[name].append(clock() - started)
            if works[name].after:
                works[name].after()
    return {
        name: works[name].rows / statistics.median(values[1:]) for name, values in seconds.items()
    }


def table(lines: Sequence[tuple[str, Sequence[Line]]]) -> str:
    """Return sections ``(title, lines)`` as one table of text."""
    rows = [line.cells() for _, section in lines for line in section]
    widths = [max(len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD))]

    def text(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(w) if not i else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join((first, *others)).rstrip()

    shown = [text(HEAD), "  ".join("-" * width for width in widths)]
    for title, section in lines:
        shown += ["", title, *(text(line.cells()) for line in section)]
    return "\n".join(shown)


def machine(folder: Path) -> dict[str, str]:
    """Return the machine, the file system of ``folder`` and the versions that decide speed."""
    info = Path("/proc/cpuinfo")
    models = (
        re.findall(r"model name\s*: (.*)", info.read_text())
        if info.exists()
        else [platform.processor()]
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "folder": file_system(folder),
        "python": platform.python_version(),
    }
    return found | {
        name: importlib.metadata.version(name) for name in ("dimefm", "numpy", "h5py", "pyarrow")
    }


def file_system(folder: Path) -> str:
    """Return device and type of the file system that holds ``folder``."""
    mounts = Path("/proc/mounts")
    entries = (
        [line.split()[:3] for line in mounts.read_text().splitlines()] if mounts.exists() else []
    )
    holding = [
        (len(at), f"{kind} on {device}")
        for device, at, kind in entries
        if folder.resolve().is_relative_to(at)
    ]
    return max(holding)[1] if holding else "unknown"


def record(
    path: Path,
    what: str,
    settings: dict,
    sections: Sequence[tuple[str, Sequence[Line]]],
    place: dict,
) -> None:
    """Append to ``path`` one JSON line for the machine and one for each line of the table, all with
    the same ``run``.
    """
    run = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with path.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"benchmark": what, "run": run, "machine": place, "settings": settings})
            + "\n"
        )
        for _, lines in sections:
            for line in lines:
                file.write(
                    json.dumps({"benchmark": what, "run": run, **line.fields()}, ensure_ascii=False)
                    + "\n"
                )

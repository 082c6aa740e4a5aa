"""Running the study: each cell is some ``dimefm`` commands, two or more cells at once; what is done
is never done again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from benchmarks import _study_data
from benchmarks._study_cells import FOLDER, Cell, Plan, cache_commands, caches_of, commands
from dimefm.errors import DataError, DimefmError
from dimefm.storage.files import to_json, write_text

RESULTS, MADE = "results.jsonl", "made.json"
Start = Callable[[Sequence[str], Path, Path], float]
"""Runs ``dimefm WORDS`` in a folder, appending what it says to a file; returns its CPU seconds,
raises DimefmError when it fails."""


class Processes:
    """Starts commands as processes of ``threads`` threads; :meth:`stop` ends those that run, which
    keep a checkpoint.
    """

    def __init__(self, threads: int):
        self.threads, self.stopped = threads, False
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.RLock()  # stop() may be called by a signal's handler

    def __call__(self, words: Sequence[str], folder: Path, log: Path) -> float:
        """Run ``dimefm WORDS``, see :data:`Start`; raise KeyboardInterrupt when it was stopped."""
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "passive",
        }
        command = [sys.executable, "-m", "dimefm", *words]
        with log.open("ab") as said:
            with self._lock:
                if self.stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command, cwd=folder, stdout=said, stderr=said, env=environment
                )
                self._running.add(process)
            _, status, used = os.wait4(process.pid, 0)
            with self._lock:
                process.returncode = os.waitstatus_to_exitcode(status)
                self._running.discard(process)
        if self.stopped:
            raise KeyboardInterrupt
        if process.returncode:
            raise DimefmError(
                f"dimefm {words[0]} ended with {process.returncode}: {_last_line(log)} (see {log})"
            )
        return used.ru_utime + used.ru_stime

    def stop(self) -> None:
        """Ask what runs to end, and start nothing more."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.terminate()


def _last_line(log: Path) -> str:
    return next(
        (line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()),
        "it said nothing",
    )


def prepare(plan: Plan, cells: Sequence[Cell], start: Start, say: Callable[[str], None]) -> None:
    """Make the files and the caches that the cells need and that are not made yet.

    Raises DataError when the real sets are absent, or when ``plan.out`` holds files of another
    share of the images.
    """
    lacking = _study_data.missing(plan.data)
    if lacking:
        raise DataError(
            f"{plan.data}: {lacking[0]} is not there; --data names the folder of real sets that the"
            " study needs"
        )
    plan.out.mkdir(parents=True, exist_ok=True)
    made = _made(plan.out)
    if made.setdefault("share", plan.share) != plan.share:
        raise DataError(
            f"{plan.out}: was made with --share {made['share']}, not {plan.share}; choose another"
            " --out"
        )
    if "data" not in made:
        say(f"pairs and sentences of {plan.data} -> {plan.out}/data")
        _study_data.write(plan.data, plan.out / "data", plan.share)
        _note(plan.out, made | {"data": sorted(_study_data.IMAGES)})
    for tower in FOLDER.glob("*.json"):
        shutil.copyfile(tower, plan.out / tower.name)
    for name in caches_of(plan, cells):
        made = _made(plan.out)
        if name not in made:
            for words in cache_commands(plan, name):
                say(typed(words))
                start(words, plan.out, plan.out / "prepare.log")
            _note(plan.out, made | {name: list(plan.study.caches[name])})
        elif made[name] != list(plan.study.caches[name]):
            raise DataError(
                f"{plan.out}/cache/{name}: the study makes it otherwise now; choose another --out"
            )


def _made(out: Path) -> dict:
    """Return what is made already: the share of images, and name -> commands of each cache."""
    return json.loads((out / MADE).read_text(encoding="utf-8")) if (out / MADE).exists() else {}


def _note(out: Path, made: dict) -> None:
    write_text(out / MADE, to_json(made))


def typed(words: Sequence[str]) -> str:
    """Return a command as a user would type it."""
    return f"dimefm {shlex.join(words)}"


def results(out: Path) -> list[dict]:
    """Return all results so far; a line that was cut off by a crash is left out."""
    path = out / RESULTS
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        if path.exists()
        else []
    )


def todo(plan: Plan, cells: Sequence[Cell], seeds: Sequence[int]) -> list[tuple[Cell, int]]:
    """Return the runs that have no result yet: all cells with the first seed, then with the second,
    and so on.
    """
    done = [(found["cell"], found["seed"], found["settings"]) for found in results(plan.out)]
    return [
        (cell, seed)
        for seed in seeds
        for cell in cells
        if (cell.name, seed, plan.settings(cell)) not in done
    ]


class Runs:
    """Runs cells and appends a result for each to ``results.jsonl``; ``failed`` are those that did
    not end well.
    """

    def __init__(self, plan: Plan, start: Start, say: Callable[[str], None]):
        self.plan, self.start, self.say = plan, start, say
        self.failed: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, left: Sequence[tuple[Cell, int]], jobs: int) -> None:
        """Run what is left, ``jobs`` at a time; a cell that fails is reported and the others go
        on.
        """
        self._began, self._all, self._done = time.perf_counter(), len(left), 0
        (self.plan.out / "runs").mkdir(exist_ok=True)
        with ThreadPoolExecutor(jobs) as pool:
            running: list[Future] = [pool.submit(self._one, cell, seed) for cell, seed in left]
            try:
                for finished in wait(running, return_when=FIRST_EXCEPTION).done:
                    finished.result()
            finally:
                for future in running:
                    future.cancel()

    def _one(self, cell: Cell, seed: int) -> None:
        plan, name, began = self.plan, f"{cell.name} seed {seed}", time.perf_counter()
        folder = plan.out / plan.folder(cell, seed)
        try:
            self._forget_another(cell, folder)
            used = 0.0
            for words in commands(plan, cell, seed):
                self.say(typed(words))
                used += self.start(words, plan.out, folder.with_suffix(".log"))
            found = scores(folder)
        except DimefmError as error:
            with self._lock:
                self.failed.append(name)
                self.say(f"{name}: failed: {error}")
            return
        seconds = {"seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(used, 1)}
        result = {
            "cell": cell.name,
            "seed": seed,
            **found,
            **seconds,
            "settings": plan.settings(cell),
        }
        with self._lock:
            with (plan.out / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            self._tell(f"{name}: {100 * found['mean']:.2f} %")

    def _forget_another(self, cell: Cell, folder: Path) -> None:
        """Remove a run that was made with other settings; raise nothing when there is none."""
        note, settings = folder.with_suffix(".json"), to_json(self.plan.settings(cell))
        if folder.exists() and (not note.exists() or note.read_text(encoding="utf-8") != settings):
            shutil.rmtree(folder)
        write_text(note, settings)

    def _tell(self, what: str) -> None:
        self._done += 1
        minutes = (time.perf_counter() - self._began) / 60
        rest = minutes / self._done * (self._all - self._done)
        self.say(
            f"{what}; {self._done} of {self._all} after {minutes:.0f} min, about {rest:.0f} min"
            " left"
        )


def scores(run: Path) -> dict:
    """Return ``mean`` and ``scores``, 0 to 1, of a finished run: of the last line of its log that
    has scores, or recalls.

    Raises DataError when there are none.
    """
    path = run / "scores/scores.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        recalls = {line["direction"]: line["recall"] for line in found["scores"]}
        each = {
            f"{way} R@{k}": value
            for way, values in recalls.items()
            for k, value in zip(found["at"], values, strict=True)
        }
        forward = recalls["text to image"]
        return {"mean": sum(forward) / len(forward), "scores": each}
    log = run / "log.jsonl"
    lines = (
        [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if log.exists()
        else []
    )
    last = next((line for line in reversed(lines) if "eval/mean" in line), None)
    if last is None:
        raise DataError(f"{run}: holds no scores; remove it and start the study again")
    each = {
        name.removeprefix("eval/"): value
        for name, value in last.items()
        if name.startswith("eval/")
    }
    return {"mean": each.pop("mean"), "scores": each}

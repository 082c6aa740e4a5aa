"""The record of a run: one JSON line per logged step, the rows left out, and TensorBoard scalars when asked."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from dimefm.cache.files import write_text
from dimefm.errors import RecipeError
from dimefm.recipe import Recipe

LOG, BAD_ROWS = "log.jsonl", "bad_rows.jsonl"


def forget_after(out: Path, step: int) -> None:
    """Drop the lines that an interrupted run wrote after the step it is resumed from."""
    for path in (out / LOG, out / BAD_ROWS):
        if path.exists():
            write_text(path, "".join(f"{line}\n" for line in _lines(path) if json.loads(line)["step"] <= step))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []


class Log:
    """Appends one JSON line per logged step, and TensorBoard scalars when asked."""

    def __init__(self, out: Path, recipe: Recipe, start: int = 0):
        self.out, self.recipe, self.start = out, recipe, start
        self.since, self.rows, self.waited = time.perf_counter(), 0, 0.0
        self.bad = len(_lines(out / BAD_ROWS))
        self.board = None

    def __enter__(self) -> Log:
        self.stack = contextlib.ExitStack()
        self.file = self.stack.enter_context((self.out / LOG).open("a", encoding="utf-8"))
        if self.recipe.report_to == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise RecipeError(
                    "--report-to tensorboard: tensorboard is not installed; pip install 'dimefm[log]'"
                ) from error
            self.board = self.stack.enter_context(SummaryWriter(str(self.out / "tensorboard"), purge_step=self.start + 1))
        return self

    def __exit__(self, *exception) -> None:
        self.stack.close()

    def count(self, step: int, values: dict) -> None:
        """Take note of a step that is not logged by itself."""
        self.rows += values["rows"]
        self.waited += values["waited"]
        self.bad += len(values["bad"])
        if values["bad"]:
            lines = [json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in values["bad"]]
            with (self.out / BAD_ROWS).open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def write(self, step: int, values: dict) -> dict:
        """Log ``step`` (counted from 1) with the rate since the last logged step; return the line's fields."""
        self.count(step, values)
        seconds = time.perf_counter() - self.since
        line = {"step": step} | {k: v for k, v in values.items() if k not in ("rows", "waited", "bad")}
        line |= {"rows_per_s": self.rows / seconds, "data_share": self.waited / seconds, "bad_rows": self.bad}
        self.file.write(json.dumps({k: float(f"{v:.8g}") if isinstance(v, float) else v for k, v in line.items()}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in line.items():
                self.board.add_scalar(name, value, step)
        self.since, self.rows, self.waited = time.perf_counter(), 0, 0.0
        return line

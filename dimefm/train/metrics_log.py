"""The log of a run: a JSON line for each logged step and evaluation, and the unreadable rows.

The figures also go to TensorBoard or Weights & Biases when the recipe asks for them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dimefm.losses import Features, project_to_teacher
from dimefm.recipe import Recipe
from dimefm.runs.folder import LOG
from dimefm.storage.files import write_text
from dimefm.train import loggers
from dimefm.train.early_stopping import EarlyStopping

BAD_ROWS = "bad_rows.jsonl"
NOT_LOGGED = ("rows", "waited", "bad")
"""The values of a step from which the figures of a line are computed."""


def forget_after(out: Path, step: int) -> None:
    """Remove the lines that an interrupted run wrote after the ``step`` it is resumed from."""
    for path in (out / LOG, out / BAD_ROWS):
        if not path.exists():
            continue
        kept = []
        for line in _lines(path):
            if _step_of(line) <= step:
                kept.append(f"{line}\n")
        write_text(path, "".join(kept))


def _step_of(line: str) -> float:
    """Return the step of a line, infinity when a power loss left none that can be read."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return float("inf")


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a file, none when there is no file."""
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


class Log:
    """Appends a JSON line for each logged step and evaluation, and sends its figures to loggers.

    ``step`` and ``total`` are the number and the loss of the last step. ``rows``, ``waited`` and
    ``seconds`` are totals since this object was made; they exclude evaluations.
    """

    def __init__(self, out: Path, recipe: Recipe, start: int = 0):
        self.out = out
        self.recipe = recipe
        self.start = start
        self.step = start
        self.total = float("nan")
        self.rows = 0
        self.waited = 0.0
        self.bad = len(_lines(out / BAD_ROWS))
        self._started = time.perf_counter()
        self._evaluation_seconds = 0.0
        self._rows_before = 0  # the totals when the last line was written
        self._waited_before = 0.0
        self._seconds_before = 0.0
        self._pending: dict | None = None  # values of the last step if it has no line yet

    def __enter__(self) -> Log:
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context((self.out / LOG).open("a", encoding="utf-8"))
            self.loggers = loggers.opened(self.recipe, self.out, self.start)
            for logger in self.loggers:
                stack.callback(logger.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    @property
    def seconds(self) -> float:
        """Seconds since this object was made, without evaluations."""
        return time.perf_counter() - self._started - self._evaluation_seconds

    def count(self, step: int, values: dict) -> None:
        """Add the ``values`` of a step to the totals without writing a line."""
        self.step = step
        self.total = values["total"]
        self.rows += values["rows"]
        self.waited += values["waited"]
        self.bad += len(values["bad"])
        self._pending = values
        if values["bad"]:
            self._append_bad_rows(step, values["bad"])

    def _append_bad_rows(self, step: int, bad_rows: list[dict]) -> None:
        lines = []
        for row in bad_rows:
            line = json.dumps({"step": step, **row}, ensure_ascii=False)
            lines.append(f"{line}\n")
        with (self.out / BAD_ROWS).open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def write(self, step: int, values: dict) -> dict:
        """Log ``step`` (counted from 1); return the figures of the line, see :meth:`flush`."""
        self.count(step, values)
        return self.flush()

    def flush(self) -> dict:
        """Log the last step if it has no line yet; return the figures of the line, else {}.

        Rates are those since the line before. ``data_s`` of the seconds since then were spent
        waiting for data, a share of ``data_share``; ``compute_s`` are the other seconds.
        """
        values = self._pending
        self._pending = None
        if values is None:
            return {}
        now = self.seconds
        seconds = max(now - self._seconds_before, 1e-9)
        rows = self.rows - self._rows_before
        waited = self.waited - self._waited_before
        self._seconds_before = now
        self._rows_before = self.rows
        self._waited_before = self.waited
        line: dict = {"step": self.step}
        for name, value in values.items():
            if name not in NOT_LOGGED:
                line[name] = value
        line["rows_per_s"] = rows / seconds
        line["data_share"] = waited / seconds
        line["data_s"] = waited
        line["compute_s"] = seconds - waited
        line["bad_rows"] = self.bad
        self._append(line)
        return line

    def evaluated(self, step: int, measure: Callable[[], dict[str, float]]) -> dict:
        """Log the figures that ``measure`` returns after ``step``, with its seconds.

        Returns the figures of the line.
        """
        started = time.perf_counter()
        figures = measure()
        seconds = time.perf_counter() - started
        self._evaluation_seconds += seconds
        line = {"step": step, **figures, "eval_seconds": seconds}
        self._append(line)
        return line

    def _append(self, line: dict) -> None:
        """Write a line to the file and send its figures to the loggers."""
        rounded = {}
        for name, value in line.items():
            rounded[name] = float(f"{value:.8g}") if isinstance(value, float) else value
        self.file.write(json.dumps(rounded) + "\n")
        self.file.flush()
        figures = dict(line)
        step = figures.pop("step")
        for logger in self.loggers:
            logger.add(step, figures)


@torch.no_grad()
def diagnostics(
    students: Sequence[Features], teachers: Sequence[Features], loss_modules: Sequence = ()
) -> dict[str, Tensor]:
    """Return figures of a step that are not losses: scalars, each the mean over teachers.

    ``logit_scale`` is the factor on cosines. With teachers, ``cosine`` is the mean cosine between
    the student's and the teacher's embedding of the same input; ``text_cosine`` is that of texts
    where both towers are trained. ``students`` and ``teachers`` are the features [B, D] that the
    losses compare. When the dimensions differ, the embeddings are compared after the projections
    among ``loss_modules``, or not at all.
    """
    scales = []
    for student in students:
        device = student.image.device
        scale = torch.as_tensor(student.logit_scale, dtype=torch.float32, device=device)
        scales.append(scale)
    figures = {"logit_scale": torch.stack(scales).mean()}
    if not teachers:
        return figures
    modules = loss_modules or [{}] * len(teachers)
    per_teacher = []
    for student, teacher, parts in zip(students, teachers, modules, strict=True):
        per_teacher.append(_cosines(student, teacher, parts))
    for name in per_teacher[0]:
        values = [cosines[name] for cosines in per_teacher]
        figures[name] = torch.stack(values).mean()
    return figures


def _cosines(student: Features, teacher: Features, modules: Mapping) -> dict[str, Tensor]:
    """Return the mean cosines between student and teacher, of images and of texts."""
    projections = []
    for name in ("image_projection", "text_projection"):
        projections.append(modules[name] if name in modules else nn.Identity())
    image, text = project_to_teacher(student, *projections)
    cosines = {}
    if image.shape == teacher.image.shape:
        cosines["cosine"] = _mean_cosine(image, teacher.image)
    if student.text is not teacher.text and text.shape == teacher.text.shape:
        cosines["text_cosine"] = _mean_cosine(text, teacher.text)
    return cosines


def _mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean cosine of the unit rows of ``a`` and ``b``, both [B, D]."""
    return (a * b).sum(-1).mean()


def run_summary(
    log: Log, weights: Path, early_stopping: EarlyStopping | None = None, steps: int | None = None
) -> str:
    """Return a human-readable summary of a run that was planned for ``steps``, in a few lines."""
    lines = [_pace(log), _outcome(log)]
    if early_stopping is not None and early_stopping.record():
        lines.append(_best(log, early_stopping, steps))
    lines.append(f"weights: {weights}")
    return "\n".join(lines)


def _pace(log: Log) -> str:
    """Return the line on the number of steps and the speed."""
    seconds = max(log.seconds, 1e-9)
    rate = log.rows / seconds
    share = log.waited / seconds
    resumed = ""
    if log.start:
        resumed = f" ({log.step - log.start:,} of them in this call)"
    return (
        f"{log.step:,} steps{resumed}, {log.rows:,} rows in {log.seconds:,.1f} s: {rate:,.0f}"
        f" rows/s, {share:.0%} of the time waiting for data"
    )


def _outcome(log: Log) -> str:
    """Return the line on the final loss and the unreadable rows."""
    outcome = "no step was left to do"
    if log.step > log.start:
        outcome = f"final loss {log.total:.4f}"
    if log.bad:
        outcome += f", {log.bad:,} unreadable rows left out ({BAD_ROWS})"
    return outcome


def _best(log: Log, early_stopping: EarlyStopping, steps: int | None) -> str:
    """Return the line on the best evaluation, and on why the run stopped early."""
    folder = log.out / "checkpoints" / "best"
    line = (
        f"best mean score {100 * early_stopping.best:.2f} % after step"
        f" {early_stopping.best_step:,}: {folder}"
    )
    if early_stopping.exhausted and log.step != steps:
        line += (
            f"; stopped early, evaluations in a row that were no better: {early_stopping.without}"
        )
    return line

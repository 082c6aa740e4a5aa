"""The record of a run: a JSON line per logged step and per evaluation, the rows left out, and
further boards when asked.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dimefm.losses import Features, project_to_teacher
from dimefm.recipe import Recipe
from dimefm.runs.folder import LOG
from dimefm.storage.files import write_text
from dimefm.train import loggers
from dimefm.train.early_stopping import EarlyStopping

BAD_ROWS = "bad_rows.jsonl"


def forget_after(out: Path, step: int) -> None:
    """Drop the lines that an interrupted run wrote after the step it is resumed from."""
    for path in (out / LOG, out / BAD_ROWS):
        if path.exists():
            write_text(
                path,
                "".join(f"{line}\n" for line in _lines(path) if json.loads(line)["step"] <= step),
            )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []


class Log:
    """Appends one JSON line per logged step and per evaluation, and sends the same figures to the
    recipe's boards.

    ``step`` and ``total`` are the last step's number and loss; ``rows``, ``waited`` and ``seconds``
    those of this call so far, evaluations not counted.
    """

    def __init__(self, out: Path, recipe: Recipe, start: int = 0):
        self.out, self.recipe, self.start = out, recipe, start
        self.step, self.total = start, float("nan")
        self.rows, self.waited = 0, 0.0
        self.bad = len(_lines(out / BAD_ROWS))
        self._started, self._aside = time.perf_counter(), 0.0
        self._before = (
            0,
            0.0,
            0.0,
        )  # rows, seconds waited and seconds when the last line was written
        self._unwritten: dict | None = None  # values of the last step where it has no line

    def __enter__(self) -> Log:
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context((self.out / LOG).open("a", encoding="utf-8"))
            self.boards = loggers.opened(self.recipe, self.out, self.start)
            for board in self.boards:
                stack.callback(board.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    @property
    def seconds(self) -> float:
        """Seconds of this call so far, evaluations not counted."""
        return time.perf_counter() - self._started - self._aside

    def count(self, step: int, values: dict) -> None:
        """Take note of a step that is not logged by itself."""
        self.step, self.total, self._unwritten = step, values["total"], values
        self.rows += values["rows"]
        self.waited += values["waited"]
        self.bad += len(values["bad"])
        if values["bad"]:
            lines = [
                json.dumps({"step": step, **row}, ensure_ascii=False) + "\n"
                for row in values["bad"]
            ]
            with (self.out / BAD_ROWS).open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def write(self, step: int, values: dict) -> dict:
        """Log ``step`` (counted from 1); return the line's fields, see :meth:`flush`."""
        self.count(step, values)
        return self.flush()

    def flush(self) -> dict:
        """Log the last step with the rate since the last logged one; return the line's fields, {}
        where it was logged.

        Of the seconds since then ``data_s`` were waiting for data, a ``data_share`` of them;
        ``compute_s`` is the rest.
        """
        values, self._unwritten = self._unwritten, None
        if values is None:
            return {}
        rows, waited, before = self._before
        self._before = (self.rows, self.waited, self.seconds)
        seconds = max(self._before[2] - before, 1e-9)
        line = {"step": self.step} | {
            k: v for k, v in values.items() if k not in ("rows", "waited", "bad")
        }
        data = self.waited - waited
        line |= {"rows_per_s": (self.rows - rows) / seconds, "data_share": data / seconds}
        line |= {"data_s": data, "compute_s": seconds - data}
        line |= {"bad_rows": self.bad}
        self._append(line)
        return line

    def evaluated(self, step: int, measure: Callable[[], dict[str, float]]) -> dict:
        """Log what ``measure`` finds after ``step``, on a line of its own with its seconds; return
        the line's fields.
        """
        started = time.perf_counter()
        found = measure()
        seconds = time.perf_counter() - started
        self._aside += seconds
        line = {"step": step, **found, "eval_seconds": seconds}
        self._append(line)
        return line

    def _append(self, line: dict) -> None:
        self.file.write(
            json.dumps(
                {k: float(f"{v:.8g}") if isinstance(v, float) else v for k, v in line.items()}
            )
            + "\n"
        )
        self.file.flush()
        for board in self.boards:
            board.add(line["step"], {name: value for name, value in line.items() if name != "step"})


@torch.no_grad()
def diagnostics(
    ours: Sequence[Features], theirs: Sequence[Features], loss_modules: Sequence = ()
) -> dict[str, Tensor]:
    """Return figures of a step that are no losses, each a scalar and the mean over teachers.

    ``logit_scale`` is the factor on cosines; ``cosine``, where there is a teacher, the mean cosine
    of a student's row and the teacher's row of the same input, and ``text_cosine`` that of
    sentences where both towers learn. ``ours`` and ``theirs`` are the features [B, D] that the
    losses compare; rows of another dimension than the teacher's are compared after the projections
    among the ``loss_modules`` parts, or not at all.
    """
    scales = [
        torch.as_tensor(one.logit_scale, dtype=torch.float32, device=one.image.device)
        for one in ours
    ]
    found = {"logit_scale": torch.stack(scales).mean()}
    if theirs:
        sets = zip(ours, theirs, loss_modules or [{}] * len(theirs), strict=True)
        cosines = [_cosines(our, their, parts) for our, their, parts in sets]
        found |= {name: torch.stack([each[name] for each in cosines]).mean() for name in cosines[0]}
    return found


def _cosines(ours: Features, theirs: Features, parts: Mapping) -> dict[str, Tensor]:
    same = torch.nn.Identity()
    maps = [
        parts[name] if name in parts else same for name in ("image_projection", "text_projection")
    ]
    image, text = project_to_teacher(ours, *maps)
    pairs = {"cosine": (image, theirs.image)}
    if ours.text is not theirs.text:
        pairs["text_cosine"] = (text, theirs.text)
    return {name: (a * b).sum(-1).mean() for name, (a, b) in pairs.items() if a.shape == b.shape}


def run_summary(
    log: Log, weights: Path, watch: EarlyStopping | None = None, steps: int | None = None
) -> str:
    """Return what to say after training, in a few lines: what was done of ``steps``, how fast, how
    well, and where the weights lie."""
    rate, share = log.rows / max(log.seconds, 1e-9), log.waited / max(log.seconds, 1e-9)
    here = log.step - log.start
    resumed = f" ({here:,} of them in this call)" if log.start else ""
    lines = [
        (
            f"{log.step:,} steps{resumed}, {log.rows:,} rows in {log.seconds:,.1f} s: {rate:,.0f}"
            f" rows/s, {share:.0%} of the time waiting for data"
        ),
        (f"final loss {log.total:.4f}" if here else "no step was left to do")
        + (f", {log.bad:,} unreadable rows left out ({BAD_ROWS})" if log.bad else ""),
    ]
    if watch is not None and watch.record():
        early = watch.exhausted and log.step != steps
        stopped = (
            f"; stopped early, evaluations in a row that were no better: {watch.without}"
            if early
            else ""
        )
        at = log.out / "checkpoints" / "best"
        lines.append(
            f"best mean score {100 * watch.best:.2f} % after step {watch.best_step:,}:"
            f" {at}{stopped}"
        )
    return "\n".join([*lines, f"weights: {weights}"])

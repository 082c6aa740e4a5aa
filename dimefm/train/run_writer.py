"""Write the files of a run: recipe, log, checkpoints, weights and ``run.json``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dimefm.errors import DimefmError
from dimefm.losses import Objective
from dimefm.models import filip, open_clip
from dimefm.recipe import Recipe
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from dimefm.runtime.os_errors import FULL
from dimefm.runtime.versions import libraries
from dimefm.storage.files import to_json, write_text
from dimefm.train import checkpoint, resuming, tasks
from dimefm.train.checkpoint_folders import how_to_resume
from dimefm.train.early_stopping import EarlyStopping
from dimefm.train.ema import Ema
from dimefm.train.inputs.sources import Sources
from dimefm.train.metrics_log import Log, forget_after, run_summary
from dimefm.train.pruning import FACT, Pruning
from dimefm.train.student import Student


@contextlib.contextmanager
def explained(out: Path, errors: Container[int] | None = None) -> Iterator[None]:
    """Turn an error of the disk under ``out`` into one line that says what is left of the run.

    ``errors`` are the numbers of the errors to turn, None for all. Raises DimefmError.
    """
    try:
        yield
    except OSError as error:
        if errors is not None and error.errno not in errors:
            raise
        raise DimefmError(
            f"{out}: cannot be written ({error.strerror or error}); {how_to_resume(out)}, after"
            " making room or the folder writable"
        ) from error


@dataclass
class RunWriter:
    """Writes the files of one run into its folder ``out``; only the main process has a writer.

    ``steps`` is the number of steps that the run is planned for, ``machine`` what rounds its sums,
    ``start`` the weights that the student began with, see :mod:`dimefm.train.start`.
    """

    out: Path
    recipe: Recipe
    sources: Sources
    task: tasks.Task
    steps: int
    objective: Objective
    student: Student
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    early_stopping: EarlyStopping | None
    machine: dict[str, int | str]
    raw_digests: list[str] | None = None
    start: dict | None = None
    pruning: Pruning | None = None
    log: Log | None = None

    def use(self, task: tasks.Task, optimizer: torch.optim.Optimizer, ema: Ema | None) -> None:
        """Write a cut student from now on, and what trains it."""
        self.task = task
        self.optimizer = optimizer
        self.ema = ema

    @contextlib.contextmanager
    def open_log(self, done: int) -> Iterator[None]:
        """Write the recipe and keep the log open; what is of later steps than ``done`` is dropped,
        and what a killed process left half-written.
        """
        with explained(self.out):
            checkpoint.remove_parts(self.out)
            checkpoint.set_aside(self.out, done)
            write_text(self.out / "recipe.toml", self.recipe.to_toml())
            forget_after(self.out, done)
        with Log(self.out, self.recipe, done) as self.log:
            yield

    def log_step(self, step: int, values: dict, is_due: bool) -> None:
        """Log the ``values`` of a step, or only count them when no line is due."""
        with explained(self.out):
            if is_due:
                self.log.write(step, values)
            else:
                self.log.count(step, values)

    def flush_log(self) -> None:
        """Log the last step if it has no line yet."""
        with explained(self.out):
            self.log.flush()

    def evaluate(self, step: int) -> bool:
        """Evaluate the weights after ``step`` steps; return whether they are the best so far."""
        early_stopping = self.early_stopping

        def measure() -> dict[str, float]:
            model, _ = self._finished_model()
            return early_stopping.measure(step, model)

        with explained(self.out, FULL):
            self.log.evaluated(step, measure)
        return early_stopping.improved(step)

    def save_checkpoint(self, step: int) -> None:
        """Save all that a run needs to resume after ``step`` steps."""
        facts: dict[str, object] = {
            "contents": resuming.content_fingerprints(self.sources),
            "machine": self.machine,
        }
        if self.start:
            facts["start"] = self.start
        if self.pruning is not None and self.pruning.fact():
            facts[FACT] = self.pruning.fact()
        if self.raw_digests is not None:
            facts["raw"] = self.raw_digests
        with explained(self.out):
            checkpoint.save(
                self.out,
                step,
                self.student,
                self.optimizer,
                self.recipe.keep,
                resuming.source_fingerprints(self.sources),
                self.ema,
                self.early_stopping,
                facts,
            )

    def save_best(self, step: int) -> None:
        """Save the weights after ``step`` steps as the best so far."""
        with explained(self.out):
            checkpoint.save_best(self.out, lambda folder: self.write_weights(folder, step))

    def finish(self, step: int) -> str:
        """Write the weights after the last step; return a summary of the run."""
        with explained(self.out):
            self.write_weights(self.out, step)
        return self.summary()

    def write_weights(self, folder: Path, step: int) -> None:
        """Write the weights after ``step`` steps into ``folder``, and last ``run.json``."""
        kind = self.task.kind
        model, config = self._finished_model()
        if kind == "clip":
            settings = {"model_cfg": config, "preprocess_cfg": self.task.preprocess}
            write_text(folder / open_clip.CONFIG, to_json(settings))
        runs.save_tensors(model.state_dict(), folder / runs.KINDS[kind])
        token_maps = filip.keep(self._final_student.loss_modules, self.objective, folder)
        record = self._record(folder, step, model, config, token_maps)
        write_text(folder / runs.FILE, record.to_json())

    def summary(self) -> str:
        """Return a human-readable summary of the run, in a few lines."""
        weights = self.out / runs.KINDS[self.task.kind]
        return run_summary(self.log, weights, self.early_stopping, self.steps)

    @property
    def _final_student(self) -> Student:
        """The student whose weights are evaluated and kept: the averaged one where there is one."""
        return self.student if self.ema is None else self.ema.module

    def _finished_model(self) -> tuple[nn.Module, dict]:
        """Return the model that is evaluated and kept, and its open_clip config."""
        return self._final_student.finished(self.task.spec.config)

    def _record(
        self, folder: Path, step: int, model: nn.Module, config: dict, token_maps: dict | None
    ) -> RunRecord:
        """Return the record of the weights after ``step`` steps in ``folder``."""
        teachers = [card.fields() for card in self.sources.teachers]
        first_teacher = None
        teacher_at = None
        if teachers:
            first_teacher = teachers[0]
            teacher_at = _relative_path(first_teacher["name"], folder)
        best = None
        without_improvement = None
        early_stopping = self.early_stopping
        if early_stopping is not None and early_stopping.record():
            best = {"at": "checkpoints/best", **early_stopping.record()}
            if early_stopping.exhausted and step < self.steps:
                without_improvement = early_stopping.without
        return RunRecord(
            kind=self.task.kind,
            model_cfg=config,
            preprocess_cfg=self.task.preprocess,
            teacher=first_teacher,
            teacher_at=teacher_at,
            teachers=teachers,
            steps=step,
            rows=len(self.sources),
            **tasks.sizes(model),
            fingerprints=resuming.source_fingerprints(self.sources),
            libraries=libraries(),
            machine=self.machine,
            start=self.start or None,
            token_maps=token_maps,
            pruned=None if self.pruning is None else self.pruning.record(config),
            ema=self.recipe.ema,
            best=best,
            without_improvement=without_improvement,
            imported=None,
        )


def _relative_path(teacher: str, folder: Path) -> str | None:
    """Return the path of a teacher relative to a run folder, None when it is no file or folder.

    With it a run finds its teacher after both were moved together.
    """
    if not Path(teacher).exists():
        return None
    return os.path.relpath(teacher, folder)

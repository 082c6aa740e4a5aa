"""Train a student from cached features, without a running teacher.

:class:`Trainer` is one explicit loop. Everything in step k is a function of (seed, k), so a run
resumed at step k continues as if it had never stopped. Under torchrun every process runs the loop
on its part of each batch; only the main process writes files and prints.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dimefm.errors import DataError
from dimefm.losses import Features, LossConfig, Objective
from dimefm.models.inference.precision import PRECISIONS
from dimefm.recipe import Recipe, note_on_ignored, refuse_idle, refuse_unneeded
from dimefm.runtime.devices import pick_device
from dimefm.runtime.progress import Progress
from dimefm.runtime.seeding import seed_of
from dimefm.storage.files import remove_new_dirs_on_error
from dimefm.train import loggers, resuming, run_folder, start, tasks
from dimefm.train.distributed import DistributedContext, GlobalBatch, init_distributed
from dimefm.train.early_stopping import EarlyStopping, Scorer
from dimefm.train.ema import Ema
from dimefm.train.grad_cache import Gradients, MicroBatch, Outputs
from dimefm.train.inputs.batch import Batch
from dimefm.train.inputs.image_batches import prefetch
from dimefm.train.inputs.sources import open_sources, refuse_too_few_rows
from dimefm.train.metrics_log import diagnostics
from dimefm.train.optim import adamw, learning_rate, set_rate
from dimefm.train.pruning import Pruning
from dimefm.train.run_writer import RunWriter
from dimefm.train.saved import Saved
from dimefm.train.signals import Stopping
from dimefm.train.student import Student
from dimefm.train.teacher_features import teacher_features

LARGEST_LOGIT_SCALE = 4.6052  # ln 100, CLIP section 2.5


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    echo: Callable[[str], None] = print,
    scorer: Scorer | None = None,
    ready: Callable[[], None] = lambda: None,
    fits_batch: bool = False,
    verify: bool = False,
) -> Path:
    """Train what ``recipe`` describes into the run folder ``out`` and return ``out``.

    Writes ``recipe.toml``, ``log.jsonl`` (one object per logged step), ``bad_rows.jsonl`` (rows
    that cannot be read, if any), ``checkpoints/`` and, at the end, the weights and ``run.json``.
    The processes that torchrun starts train together.

    ``scorer`` (``dimefm.train.online_eval.scorer``) makes the function that measures the student on
    the recipe's ``eval_root``. ``fits_batch`` lowers the batch size to the number of rows where
    there are fewer; else such a run is refused. ``verify`` reads all caches and samples in full
    before the first step. ``ready`` is called when all checks are passed.
    Ctrl-C, SIGTERM and SIGHUP leave a checkpoint. Raises a DimefmError before the first step when
    the recipe, its data and its caches do not fit together, or another process trains into ``out``;
    ``out`` is then as it was before, except for features that DIME-FM's form has copied into it.
    """
    with init_distributed(pick_device(recipe.device)) as context:
        say = echo if context.is_main else _say_nothing
        if resume:
            reason = run_folder.why_finished(recipe, out)
            if reason:
                say(reason)
                return out
        with contextlib.ExitStack() as claims:
            with remove_new_dirs_on_error(out), _closed_on_error(claims):
                if context.is_main:
                    claims.enter_context(run_folder.hold(out))
                trainer = Trainer(recipe, out, resume, say, context, scorer, fits_batch, verify)
            ready()
            trainer.loop()
            return trainer.finish()


@contextlib.contextmanager
def _closed_on_error(claims: contextlib.ExitStack) -> Iterator[None]:
    """On an error, release the claims in time for their folders to be removed."""
    try:
        yield
    except BaseException:
        claims.close()
        raise


def _say_nothing(line: str) -> None:
    """Print nothing: only the main process prints."""


class Trainer:
    """One training run: set up, loop, finish."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        resume: bool,
        echo: Callable[[str], None],
        context: DistributedContext | None = None,
        scorer: Scorer | None = None,
        fits_batch: bool = False,
        verify: bool = False,
    ):
        loggers.check(recipe)
        refuse_idle(recipe)
        self.stated = recipe  # what is saved; the batch may be smaller
        self.recipe = recipe
        self.out = out
        self.echo = echo
        self.context = context or DistributedContext(device=pick_device(recipe.device))
        with self.context.main_process_first():
            run_folder.claim(recipe, out, resume)
        self._note(note_on_ignored(recipe))
        losses = []
        for name, settings in recipe.losses.items():
            losses.append(LossConfig.from_settings(name, settings))
        self.objective = Objective(losses, given=tasks.given(recipe))
        refuse_unneeded(recipe, self.objective.needs)
        with self.context.main_process_first():
            self.sources = open_sources(recipe, out)
        if fits_batch:
            self._fit_batch()
        refuse_too_few_rows(self.sources, self.recipe.batch_size, self.context.size)
        self._build_student(resume)
        self._plan_steps()
        self.pruning = Pruning.from_recipe(
            recipe, self.task, self.student, self.objective, self.steps
        )
        self._open_optimizer()
        self.early_stopping = self._open_early_stopping(scorer)
        self.raw_digests = self._verify() if verify else None
        self.done = self._restore() if resume else 0
        resuming.refuse_different_files(self.context, out, len(self.sources), self.done)
        self.gradients = Gradients(self.student, self.context, PRECISIONS[recipe.precision])
        self.writer = self._open_writer() if self.context.is_main else None

    def _note(self, line: str) -> None:
        """Print a line, unless it is empty."""
        if line:
            self.echo(line)

    def _fit_batch(self) -> None:
        """Lower the batch size to the number of rows; the saved recipe keeps the size it has.

        It depends on the rows alone, so a resumed run has the same batches.
        """
        rows = len(self.sources)
        if not 0 < rows < self.recipe.batch_size:
            return
        self.echo(
            f"note: the sources hold {rows:,} rows, so a batch has {rows:,} of them, not"
            f" {self.recipe.batch_size:,} (--batch-size sets another number)"
        )
        self.recipe = self.recipe.replace(batch_size=rows)

    def _build_student(self, resume: bool) -> None:
        """Build the student with its batches and its first weights, and print the notes on it."""
        places = self.context.places(self.recipe.batch_size)
        task = tasks.build_task(self.recipe, self.sources, places)
        for note in tasks.notes(task, len(self.sources), self.recipe.init):
            self._note(note)
        begun = start.recorded(self.out) if resume else None
        if begun is None:
            with self.context.main_process_first():
                begun = start.begin(self.recipe, task, self.sources.teachers, self.echo)
        self.task = begun.applied(task)
        student = self.task.student(self.sources, self.objective, self.recipe.seed)
        self.student = student.to(self.context.device)
        self.begun = begun.completed(
            self.recipe, self.student, self.task.batches, len(self.sources), self.context, self.echo
        )

    def _plan_steps(self) -> None:
        """Set the number of steps and of warm-up steps.

        When the recipe's warm-up is longer than the run, the warm-up is a tenth of the steps. That
        of a student with gates lasts until the cut.
        """
        recipe = self.recipe
        steps_per_epoch = len(self.sources) / (recipe.batch_size * recipe.accum_freq)
        self.steps = max(1, round(recipe.epochs * steps_per_epoch))
        if recipe.steps is not None:
            self.steps = recipe.steps
        if recipe.prune is not None:
            self.warmup_steps = recipe.prune_steps
            return
        self.warmup_steps = round(recipe.warmup * steps_per_epoch)
        if self.warmup_steps < self.steps or not self.steps:
            return
        shortened = self.steps // 10
        self.echo(
            f"note: warm-up of {self.warmup_steps} steps is longer than the run of {self.steps};"
            f" shortened to {shortened}"
        )
        self.warmup_steps = shortened

    def _open_optimizer(self) -> None:
        """Set a new optimizer of the student, and new averaged weights."""
        self.optimizer = adamw(self.student, self.recipe, self.begun.is_taken)
        self.ema = None if self.recipe.ema is None else Ema(self.student, self.recipe.ema)

    def _cut(self) -> None:
        """Cut the student, which a new optimizer trains from now on."""
        self.gradients = None
        self._note(self.pruning.cut())
        self.task = self.pruning.task
        self._open_optimizer()
        self.gradients = Gradients(self.student, self.context, PRECISIONS[self.recipe.precision])
        if self.writer is not None:
            self.writer.use(self.task, self.optimizer, self.ema)

    def _fit(self, saved: Saved) -> tuple[Student, torch.optim.Optimizer, Ema | None]:
        """Return what a checkpoint restores, in the sizes that it has there."""
        if self.pruning is not None and self.pruning.fit(saved):
            self.task = self.pruning.task
            self._open_optimizer()
        return self.student, self.optimizer, self.ema

    def _open_early_stopping(self, scorer: Scorer | None) -> EarlyStopping | None:
        """Return what evaluates the student during training; None in all but the main process."""
        teachers = self.sources.teachers
        first_teacher = teachers[0] if teachers else None
        with self.context.main_process_first():
            if self.context.is_main:
                return EarlyStopping.from_recipe(self.recipe, scorer, first_teacher)
        return None

    def _verify(self) -> list[str] | None:
        """Read all sources in full in the main process; return the digests of the raw shards."""
        with self.context.main_process_first():
            if self.context.is_main:
                self.echo("verifying: reading all caches and samples in full")
                return resuming.verify_sources(self.sources)
        return None

    def _restore(self) -> int:
        """Restore the newest whole checkpoint and return its step, 0 when there is none."""
        expected = resuming.Expected(
            fingerprints=resuming.source_fingerprints(self.sources),
            contents=resuming.content_fingerprints(self.sources),
            machine=resuming.machine_of(self.context),
            steps=self.steps,
            raw=self.raw_digests,
        )
        restored = resuming.restore(
            self.out,
            expected,
            self._fit,
            self.recipe.ema is not None,
            self.early_stopping,
            self.echo,
        )
        self.raw_digests = self.raw_digests or restored.raw
        if self.pruning is not None:
            self.pruning.forget()
        return restored.step

    def _open_writer(self) -> RunWriter:
        return RunWriter(
            out=self.out,
            recipe=self.stated,
            sources=self.sources,
            task=self.task,
            steps=self.steps,
            objective=self.objective,
            student=self.student,
            optimizer=self.optimizer,
            ema=self.ema,
            early_stopping=self.early_stopping,
            machine=resuming.machine_of(self.context),
            raw_digests=self.raw_digests,
            start=self.begun.record,
            pruning=self.pruning,
        )

    def loop(self) -> None:
        """Run the steps that are left, until evaluations stop improving or the user interrupts.

        Raises KeyboardInterrupt, after a checkpoint, on Ctrl-C, SIGTERM or SIGHUP.
        """
        with contextlib.ExitStack() as stack:
            batches = stack.enter_context(contextlib.closing(self._load_batches()))
            quiet = not self.context.is_main
            bar = Progress(self.steps, "train", "step", self.done, quiet=quiet)
            stack.enter_context(bar)
            stopping = stack.enter_context(Stopping())
            if self.writer is not None:
                stack.enter_context(self.writer.open_log(self.done))
            if not self.steps:
                self._evaluate()
            while self.done < self.steps and not self._is_exhausted():
                if self.pruning is not None and self.pruning.is_due(self.done):
                    self._cut()
                values = self.step(self.done, batches)
                self.done += 1
                if self.writer is not None:
                    self.writer.log_step(self.done, values, self._is_due(self.recipe.log_every))
                bar.update(note=f"loss {values['total']:.4f}")
                improved = self._evaluate()
                interrupted = self.context.any(stopping.asked)
                is_last = interrupted or self._is_exhausted()
                if is_last and self.writer is not None:
                    self.writer.flush_log()
                if self._is_due(self.recipe.save_every) or improved or is_last:
                    self._save_checkpoint()
                if interrupted:
                    raise KeyboardInterrupt

    def _load_batches(self) -> Generator[Batch]:
        """Return the micro-batches of the steps that are left, loaded ahead by threads."""
        accum_freq = self.recipe.accum_freq
        numbers = range(self.done * accum_freq, self.steps * accum_freq)
        return prefetch(self.task.batches, iter(numbers), self.recipe.workers)

    def _is_due(self, every: int) -> bool:
        """Return whether an action of every ``every`` steps, and of the last step, is due now."""
        return self.done % every == 0 or self.done == self.steps

    def _save_checkpoint(self) -> None:
        """Save a checkpoint in the main process; the other processes wait."""
        if self.writer is not None:
            self.writer.save_checkpoint(self.done)
        self.context.barrier()

    def _evaluate(self) -> bool:
        """Evaluate the student when that is due; return whether it is the best so far.

        The weights of the best student so far are saved.
        """
        if self.recipe.eval_root is None or not self._is_due(self.recipe.eval_every):
            return False
        improved = False
        if self.writer is not None:
            improved = self.writer.evaluate(self.done)
            self.echo(f"step {self.done:,}: {self.early_stopping.describe()}")
            if improved:
                self.writer.save_best(self.done)
        return self.context.any(improved)

    def _is_exhausted(self) -> bool:
        """Return whether the evaluations without improvement have used up the patience."""
        if self.recipe.patience is None:
            return False
        is_exhausted = self.early_stopping is not None and self.early_stopping.exhausted
        return self.context.any(is_exhausted)

    def step(self, step: int, loading: Iterator[Batch]) -> dict:
        """Take optimizer step ``step``; return its values for the log.

        The values are the loss terms, learning rate (``lr``), gradient norm, number of ``rows``,
        seconds ``waited`` for data and ``bad`` rows. Raises DataError when no row of the step can
        be read, and DimefmError when its loss or gradient is not finite.
        """
        self.student.train()
        rate = learning_rate(step, self.warmup_steps, self.steps, self.recipe)
        set_rate(self.optimizer, rate)
        started = time.perf_counter()
        batches = [next(loading) for _ in range(self.recipe.accum_freq)]
        waited = time.perf_counter() - started
        self.optimizer.zero_grad(set_to_none=True)
        if self.pruning is not None:
            self.pruning.draw(step)
        losses, rows = self.backward(step, batches)
        bad_rows = self._bad_rows(batches, rows)
        values: dict = {"lr": rate, "rows": rows, "waited": waited, "bad": bad_rows}
        for name, loss in losses.items():
            values[name] = float(loss.detach())
        if self.pruning is not None:
            values |= self.pruning.penalize(step)
        values["grad_norm"] = float(self._clip_gradients())
        run_folder.refuse_not_finite(self.out, step, values["total"], values["grad_norm"])
        self.optimizer.step()
        if self.pruning is not None:
            self.pruning.clamp()
        if self.task.kind == "clip":
            with torch.no_grad():
                self.student.model.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
        if self.ema is not None:
            self.ema.update(self.student)
        return values

    def backward(self, step: int, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], int]:
        """Add the gradients of a step's micro-batches to the parameters.

        Returns (loss terms, number of rows of all processes).
        """
        global_batch = self._global_batch(batches)
        rows = len(global_batch)
        if not rows:
            wanted = self.recipe.batch_size * len(batches)
            first = self._bad_rows(batches, 0)[0]
            raise DataError(
                f"step {step + 1}: none of its {wanted:,} rows can be read; the first: {first}."
                " Fix: correct the source, or extract it again"
            )
        micro_batches = self._micro_batches(step, batches)
        teachers = self._teacher_features(batches, global_batch.places)
        try:
            losses = self.gradients(
                micro_batches, global_batch, lambda outputs: self.losses(step, outputs, teachers)
            )
        except ValueError as error:  # batch normalization has no variance of one value
            if min(map(len, micro_batches)) != 1:
                raise
            raise DataError(
                f"step {step + 1}: one row alone is left to a process, and the student or a loss"
                f" normalizes over several ({error}). Fix: set a larger --batch-size, or use"
                " sources without unreadable rows"
            ) from error
        return losses, rows

    def _global_batch(self, batches: Sequence[Batch]) -> GlobalBatch:
        """Return where the rows of a step's micro-batches are in the batch of all processes."""
        batch_size = self.recipe.batch_size
        places = []
        for number, batch in enumerate(batches):
            places.append(batch.places + number * batch_size)
        most_per_process = math.ceil(batch_size / self.context.size) * self.recipe.accum_freq
        return GlobalBatch(self.context, np.concatenate(places), most_per_process)

    def _micro_batches(self, step: int, batches: Sequence[Batch]) -> list[MicroBatch]:
        """Return the micro-batches of a step, each with the seed of its own random numbers."""
        first = step * self.recipe.accum_freq
        micro_batches = []
        for number, batch in enumerate(batches, first):
            seed = seed_of(self.recipe.seed, "step", number, self.context.rank) % 2**32
            micro_batches.append(MicroBatch(batch.pixels, batch.tokens, seed, batch.hidden))
        return micro_batches

    def _teacher_features(self, batches: Sequence[Batch], places: Tensor) -> list[Features]:
        """Return the features of each teacher at the ``places`` of a step."""
        weights = next(self.student.parameters())
        logit_scale = self.recipe.logit_scale
        return teacher_features(batches, places, self.sources.teachers, weights, logit_scale)

    def losses(
        self, step: int, outputs: Outputs, teachers: Sequence[Features]
    ) -> dict[str, Tensor]:
        """Return the loss terms and diagnostics of a step, each the mean over teachers.

        Similarities are float32.
        """
        progress = step / max(1, self.steps - 1)
        students = Student.features(outputs, teachers)
        modules = self.student.loss_modules or [None] * len(students)
        per_teacher = []
        for student, teacher, parts in zip(students, teachers or [None], modules, strict=True):
            per_teacher.append(self.objective(student, teacher, parts, progress))
        means = {}
        for name in per_teacher[0]:
            means[name] = torch.stack([terms[name] for terms in per_teacher]).mean()
        return means | diagnostics(students, teachers, self.student.loss_modules)

    def _bad_rows(self, batches: Sequence[Batch], rows: int) -> list[dict]:
        """Return the rows that could not be read, of all processes; ``rows`` could be read."""
        if rows == self.recipe.batch_size * self.recipe.accum_freq:
            return []
        bad_rows = []
        for batch in batches:
            bad_rows.extend(batch.bad)
        return self.context.gather_objects(bad_rows)

    def _clip_gradients(self) -> Tensor:
        """Clip the gradients where the recipe says so; return their norm before."""
        limit = self.recipe.grad_clip_norm or float("inf")
        return torch.nn.utils.clip_grad_norm_(self.student.parameters(), limit)

    def finish(self) -> Path:
        """Write the weights and ``run.json``, print a summary and return the run folder."""
        with self.context.main_process_first():
            if self.writer is not None:
                self.echo(self.writer.finish(self.done))
        return self.out

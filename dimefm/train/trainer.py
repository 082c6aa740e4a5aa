"""The verb ``train``: a student learns from cached features; no teacher runs.

One explicit loop. Everything of step k is a function of (seed, k), so a run resumed at step k goes
on as if it had never stopped. Under torchrun every process has the loop and its part of each batch;
the first one writes and speaks.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.errors import CacheError, DataError, DimefmError, RecipeError
from dimefm.losses import Features, LossConfig, Objective, TextTokenStates
from dimefm.models import filip, open_clip
from dimefm.models.encoder import PRECISIONS
from dimefm.recipe import Recipe, refuse_idle, refuse_unneeded
from dimefm.runs import folder as runs
from dimefm.runtime.devices import pick_device
from dimefm.runtime.progress import Progress
from dimefm.runtime.seeding import seed_of
from dimefm.runtime.versions import libraries
from dimefm.storage.files import remove_new_dirs_on_error, to_json, write_text
from dimefm.train import checkpoint, loggers, run_folder, tasks
from dimefm.train.distributed import DistributedContext, GlobalBatch, init_distributed
from dimefm.train.early_stopping import EarlyStopping, Scorer
from dimefm.train.ema import Ema
from dimefm.train.grad_cache import Gradients, MicroBatch, Outputs
from dimefm.train.inputs.image_batches import Batch, prefetch
from dimefm.train.inputs.sources import open_sources
from dimefm.train.metrics_log import Log, diagnostics, forget_after, run_summary
from dimefm.train.optim import adamw, learning_rate
from dimefm.train.signals import Stopping
from dimefm.train.student import Student


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    echo: Callable[[str], None] = print,
    scorer: Scorer | None = None,
    ready: Callable[[], None] = lambda: None,
) -> Path:
    """Train what ``recipe`` describes into the run folder ``out`` and return it; processes of
    torchrun do so together.

    Writes ``recipe.toml``, ``log.jsonl`` (one object per logged step), ``bad_rows.jsonl`` (rows
    left out, if any), ``checkpoints/`` and, at the end, the weights and ``run.json``. ``scorer``
    (``dimefm.train.online_eval.scorer``) makes what measures the student on the recipe's
    ``eval_root``; ``ready`` is called when all checks are passed. Ctrl-C and SIGTERM leave a
    checkpoint behind. Raises a DimefmError before the first step when the recipe, its data and its
    caches do not fit together; ``out`` is then as it was before, but for the features that
    DIME-FM's form has brought there by then.
    """
    with init_distributed(pick_device(recipe.device)) as world:
        say = echo if world.is_main else lambda line: None
        if resume and (over := run_folder.over(recipe, out)):
            say(over)
            return out
        with remove_new_dirs_on_error(out):
            run = Run(recipe, out, resume, say, world, scorer)
        ready()
        run.loop()
        return run.finish()


class Run:
    """One training run: set up, loop, finish."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        resume: bool,
        echo: Callable[[str], None],
        world: DistributedContext | None = None,
        scorer: Scorer | None = None,
    ):
        loggers.check(recipe)
        refuse_idle(recipe)
        self.recipe, self.out, self.echo = recipe, out, echo
        self.world = world or DistributedContext(device=pick_device(recipe.device))
        with self.world.main_process_first():
            run_folder.claim(recipe, out, resume)
        losses = [
            LossConfig.from_settings(name, settings) for name, settings in recipe.losses.items()
        ]
        self.objective = Objective(losses, given=tasks.given(recipe))
        refuse_unneeded(recipe, self.objective.needs)
        with self.world.main_process_first():
            self.sources = open_sources(recipe, out)
        self._refuse_too_few()
        self.task = tasks.task(recipe, self.sources, self.world.places(recipe.batch_size))
        if unseen := tasks.unseen(self.task):
            self.echo(unseen)
        self.student = self.task.student(self.sources, self.objective, recipe.seed).to(
            self.world.device
        )
        self.steps_per_epoch = len(self.sources) / (recipe.batch_size * recipe.accum_freq)
        self.steps = recipe.steps or max(1, round(recipe.epochs * self.steps_per_epoch))
        self.warmup_steps = self._warmup()
        self.optimizer = adamw(self.student, recipe)
        self.ema = None if recipe.ema is None else Ema(self.student, recipe.ema)
        with self.world.main_process_first():
            self.watch = (
                EarlyStopping.of(recipe, scorer, next(iter(self.sources.teachers), None))
                if self.world.is_main
                else None
            )
        self.done = self._restore() if resume else 0
        self._refuse_apart()
        self.gradients = Gradients(self.student, self.world, PRECISIONS[recipe.precision])

    def _refuse_too_few(self) -> None:
        """Raise when a batch has fewer places than processes, or the sources fewer rows than a
        batch.
        """
        rows, batch, names = (
            len(self.sources),
            self.recipe.batch_size,
            ", ".join(s.name for s in self.sources.raw.shards),
        )
        if not rows:
            raise DataError(f"the sources hold no rows ({names}); check them")
        if rows < batch:
            raise DataError(
                f"the sources hold {rows:,} rows, fewer than a batch of {batch:,} ({names}); lower"
                f" --batch-size to {rows:,} or less"
            )
        if batch < self.world.size:
            raise RecipeError(
                f"--batch-size {batch}: {self.world.size} processes share a batch; give each a row"
                " at least"
            )

    def _refuse_apart(self) -> None:
        """Raise when the processes, as on machines without a common disk, found other rows or
        checkpoints.
        """
        found = self.world.gather(
            torch.tensor([len(self.sources), self.done], device=self.world.device)
        ).tolist()
        other = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
        if other is not None:
            (rows, done), (other_rows, other_done) = found[0], found[other]
            raise DimefmError(
                f"{self.out}: process 0 found {rows:,} rows and the run after step {done}, process"
                f" {other} {other_rows:,} rows and step {other_done}; all need the same files and"
                " one --out, on a disk that they share"
            )

    def _restore(self) -> int:
        found = checkpoint.checkpoints(self.out)
        if not found:
            return 0
        step, caches = checkpoint.load(
            found[-1], self.student, self.optimizer, self.ema, self.watch
        )
        if caches != self._caches():
            raise CacheError(
                f"{found[-1]}: the run learnt from {_short(caches)}, now there are"
                f" {_short(self._caches())}; give it what it began with, or start a new run"
            )
        self.echo(f"resumed after step {step} from {found[-1]}")
        return step

    def _caches(self) -> dict[str, list[str]]:
        """Return the fingerprints of the caches and graphs that the run learns from, teacher by
        teacher; of pairs without caches the digests of their files."""
        caches = {"image_cache": self.sources.image_caches, "text_cache": self.sources.text_caches}
        found = {
            name: [cache.manifest.fingerprint for cache in each] for name, each in caches.items()
        }
        found |= {name: each for name, each in self.sources.further_fingerprints().items() if each}
        return (
            found
            if self.sources.teachers
            else {**found, "pairs": [shard.digest() for shard in self.sources.raw.shards]}
        )

    def _warmup(self) -> int:
        """Return the optimizer steps of warm-up; a run that is too short for the recipe's takes a
        tenth of its steps.
        """
        asked = round(self.recipe.warmup * self.steps_per_epoch)
        if asked < self.steps:
            return asked
        self.echo(
            f"note: warm-up of {asked} steps is longer than the run of {self.steps}; shortened to"
            f" {self.steps // 10}"
        )
        return self.steps // 10

    def loop(self) -> None:
        """Run all steps that are not done yet, unless the evaluations say that further ones are of
        no use.
        """
        accum, writes = self.recipe.accum_freq, self.world.is_main
        loading = prefetch(
            self.task.batches,
            iter(range(self.done * accum, self.steps * accum)),
            self.recipe.workers,
        )
        bar = Progress(self.steps, "train", "step", self.done, quiet=not writes)
        with (
            contextlib.closing(loading),
            bar,
            Stopping() as stopping,
            contextlib.ExitStack() as stack,
        ):
            self.log = stack.enter_context(self._log()) if writes else None
            while self.done < self.steps and not self._exhausted():
                values = self.step(self.done, loading)
                self.done += 1
                if self.log is not None:
                    (self.log.write if self._every(self.recipe.log_every) else self.log.count)(
                        self.done, values
                    )
                bar.update(note=f"loss {values['total']:.4f}")
                better, stopped = self._evaluate(), self.world.any(stopping.asked)
                last = stopped or self._exhausted()
                if last and self.log is not None:
                    self.log.flush()
                if self._every(self.recipe.save_every) or better or last:
                    self._save()
                if stopped:
                    raise KeyboardInterrupt

    def _every(self, steps: int) -> bool:
        """Tell whether what comes every so many steps, and after the last, comes now."""
        return self.done % steps == 0 or self.done == self.steps

    def _log(self) -> Log:
        write_text(self.out / "recipe.toml", self.recipe.to_toml())
        forget_after(self.out, self.done)
        return Log(self.out, self.recipe, self.done)

    def _save(self) -> None:
        if self.world.is_main:
            caches, keep = self._caches(), self.recipe.keep
            checkpoint.save(
                self.out,
                self.done,
                self.student,
                self.optimizer,
                keep,
                caches,
                self.ema,
                self.watch,
            )
        self.world.barrier()

    def _evaluate(self) -> bool:
        """Measure the student where that is due and keep its weights if it is the best yet; tell
        whether it is.
        """
        if self.recipe.eval_root is None or not self._every(self.recipe.eval_every):
            return False
        better = False
        if self.watch is not None and self.log is not None:
            watch = self.watch
            self.log.evaluated(self.done, lambda: watch.measure(self.done, self._finished()[0]))
            better = watch.improved(self.done)
            self.echo(f"step {self.done:,}: {watch.describe()}")
            if better:
                checkpoint.save_best(self.out, self._write)
        return self.world.any(better)

    def _exhausted(self) -> bool:
        """Tell whether as many evaluations as the recipe has patience for brought nothing
        better.
        """
        if self.recipe.patience is None:
            return False
        return self.world.any(self.watch is not None and self.watch.exhausted)

    def step(self, step: int, loading: Iterator[Batch]) -> dict:
        """Do optimizer step ``step``; return its loss terms, learning rate, gradient norm, rows and
        seconds waited.

        Raises DataError when none of its rows can be read, and DimefmError when its loss is not
        finite.
        """
        self.student.train()
        rate = learning_rate(step, self.warmup_steps, self.steps, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        asked = time.perf_counter()
        batches = [next(loading) for _ in range(self.recipe.accum_freq)]
        waited = time.perf_counter() - asked
        self.optimizer.zero_grad(set_to_none=True)
        losses, rows = self.backward(step, batches)
        record: dict = {"lr": rate, "rows": rows, "waited": waited, "bad": self._bad(batches, rows)}
        record |= {name: float(value.detach()) for name, value in losses.items()}
        record["grad_norm"] = float(self._clip())
        self._refuse_nan(step, record["total"], record["grad_norm"])
        self.optimizer.step()
        if self.task.kind == "clip":
            with torch.no_grad():
                self.student.model.logit_scale.clamp_(0, 4.6052)  # ln 100, CLIP section 2.5
        if self.ema is not None:
            self.ema.update(self.student)
        return record

    def backward(self, step: int, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], int]:
        """Add the gradient of a step's batches to the parameters; return (the loss terms, rows of
        all processes).
        """
        size, accum = self.recipe.batch_size, self.recipe.accum_freq
        places = np.concatenate(
            [batch.places + number * size for number, batch in enumerate(batches)]
        )
        meeting = GlobalBatch(self.world, places, accum * -(-size // self.world.size))
        if not len(meeting):
            bad = self._bad(batches, 0)
            raise DataError(
                f"step {step + 1}: none of its {size * accum:,} rows can be read; the first:"
                f" {bad[0]}"
            )
        seeds = [
            seed_of(self.recipe.seed, "step", step * accum + i, self.world.rank) % 2**32
            for i in range(accum)
        ]
        micro_batches = [
            MicroBatch(b.pixels, b.tokens, seed, b.hidden)
            for b, seed in zip(batches, seeds, strict=True)
        ]
        teachers = self._teachers(batches, meeting.places)
        try:
            return self.gradients(
                micro_batches, meeting, lambda outputs: self.losses(step, outputs, teachers)
            ), len(meeting)
        except ValueError as error:  # batch normalisation has no variance of one value
            if min(map(len, micro_batches)) != 1:
                raise
            raise DataError(
                f"step {step + 1}: one row alone is left to a process, and the student or a loss"
                f" normalises over several ({error}); give a larger --batch-size, or sources"
                " without unreadable rows"
            ) from error

    def losses(
        self, step: int, outputs: Outputs, teachers: Sequence[Features]
    ) -> dict[str, Tensor]:
        """Return the loss terms and gauges of a step, each the mean over teachers; similarities are
        float32.
        """
        found, progress = Student.features(outputs, teachers), step / max(1, self.steps - 1)
        sets = zip(
            found, teachers or [None], self.student.loss_modules or [None] * len(found), strict=True
        )
        values = [self.objective(ours, theirs, parts, progress) for ours, theirs, parts in sets]
        means = {name: torch.stack([value[name] for value in values]).mean() for name in values[0]}
        return means | diagnostics(found, teachers, self.student.loss_modules)

    def _teachers(self, batches: Sequence[Batch], places: Tensor) -> list[Features]:
        """Return each teacher's features of a step, at its own logit scale unless the recipe has
        one.
        """
        found, weights = [], next(self.student.parameters())
        for number, card in enumerate(self.sources.teachers):
            own = torch.cat([batch.own[number] for batch in batches]).to(
                weights, non_blocking=True
            )[places]
            other = [batch.other[number] for batch in batches if batch.other is not None]
            rows = torch.cat(other).to(weights, non_blocking=True) if other else own
            rows = rows[places] if batches[0].paired else rows
            more = self._teacher_extras(batches, number, places)
            found.append(
                Features.from_rows(own, rows, self.recipe.logit_scale or card.logit_scale, **more)
            )
        return found

    def _teacher_extras(self, batches: Sequence[Batch], number: int, places: Tensor) -> dict:
        """Return what some terms ask of teacher ``number`` beside its rows."""
        weights = next(self.student.parameters())
        names = batches[0].teacher_extras
        found: dict = {
            name: torch.cat([b.teacher_extras[name][number] for b in batches]).to(weights)[places]
            for name in names
        }
        if "neighbor_text" in found:
            found["neighbor_text"] = F.normalize(found["neighbor_text"], dim=-1)
        if "words" in found:
            states = found["words"]
            found["words"] = TextTokenStates(
                states, torch.full((len(states),), states.shape[1], device=states.device)
            )
        return found

    def _bad(self, batches: Sequence[Batch], rows: int) -> list[dict]:
        """Return the rows that all processes left out of a step that has ``rows``."""
        ours = [row for batch in batches for row in batch.bad]
        return (
            self.world.gather_objects(ours)
            if rows < self.recipe.batch_size * self.recipe.accum_freq
            else []
        )

    def _clip(self) -> Tensor:
        limit = self.recipe.grad_clip_norm or float("inf")
        return torch.nn.utils.clip_grad_norm_(self.student.parameters(), limit)

    def _refuse_nan(self, step: int, total: float, norm: float) -> None:
        """Stop before the optimizer spreads a number that is not finite."""
        wrong = (
            f"the loss is {total}" if not math.isfinite(total) else f"the gradient's norm is {norm}"
        )
        if not (math.isfinite(total) and math.isfinite(norm)):
            found = checkpoint.checkpoints(self.out)
            last = (
                f"the last good checkpoint is {found[-1]}"
                if found
                else "no checkpoint was written yet"
            )
            raise DimefmError(
                f"step {step + 1}: {wrong}; {last}; lower --lr or set --grad-clip-norm"
            )

    def finish(self) -> Path:
        """Write the weights and, last, ``run.json``; say in a few lines what was done."""
        with self.world.main_process_first():
            if self.world.is_main:
                self._write(self.out)
                self.echo(
                    run_summary(
                        self.log, self.out / runs.KINDS[self.task.kind], self.watch, self.steps
                    )
                )
        return self.out

    @property
    def _counting(self) -> Student:
        """The student that counts, of averaged weights where there are any."""
        return self.student if self.ema is None else self.ema.module

    def _finished(self) -> tuple[nn.Module, dict]:
        """Return the model that counts and its config."""
        return self._counting.finished(self.task.spec.config)

    def _write(self, folder: Path) -> None:
        """Make ``folder`` a run folder of the weights that count now."""
        task, (model, config) = self.task, self._finished()
        if task.kind == "clip":
            write_text(
                folder / open_clip.CONFIG,
                to_json({"model_cfg": config, "preprocess_cfg": task.preprocess}),
            )
        runs.save_tensors(model.state_dict(), folder / runs.KINDS[task.kind])
        maps = filip.keep(self._counting.loss_modules, self.objective, folder)
        teachers = [card.fields() for card in self.sources.teachers]
        record = {
            "kind": task.kind,
            "model_cfg": config,
            "preprocess_cfg": task.preprocess,
            "teacher": teachers[0] if teachers else None,
            "teacher_at": _relative(teachers[0]["name"], folder) if teachers else None,
            "teachers": teachers,
            "steps": self.done,
            "rows": len(self.sources),
            **tasks.sizes(model),
            **self._caches(),
            "libraries": libraries(),
        }
        if maps is not None:
            record["token_maps"] = maps
        if self.ema is not None:
            record["ema"] = self.recipe.ema
        if self.watch is not None and self.watch.record():
            record["best"] = {"at": "checkpoints/best", **self.watch.record()}
            if self.watch.exhausted and self.done < self.steps:
                record["without_improvement"] = self.watch.without
        write_text(folder / runs.FILE, to_json(record))


def _short(caches: dict[str, list[str]]) -> str:
    return (
        ", ".join(
            f"{name} {' '.join(f[:12] for f in found)}" for name, found in caches.items() if found
        )
        or "none"
    )


def _relative(teacher: str, out: Path) -> str | None:
    """Return where a teacher that is a file or folder lies, seen from the run folder, so that both
    may move together.
    """
    return os.path.relpath(teacher, out) if Path(teacher).exists() else None

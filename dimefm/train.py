"""The verb ``train``: a student learns from cached features; no teacher runs.

One explicit loop. Everything of step k is a function of (seed, k), so a run resumed at step k goes on as if it had never
stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dimefm.cache.files import to_json, write_text
from dimefm.data.order import seed_of
from dimefm.errors import CacheError, DataError, DimefmError, ModelError, RecipeError
from dimefm.losses import Features, Objective, Weighted
from dimefm.models import open_clip, runs, student
from dimefm.models.encoder import PRECISIONS, pick_device
from dimefm.progress import Progress
from dimefm.provenance import libraries
from dimefm.recipe import Recipe, changed, read
from dimefm.training import checkpoint, tasks
from dimefm.training.batches import Batch, prefetch
from dimefm.training.log import Log, forget_after
from dimefm.training.optim import adamw, learning_rate
from dimefm.training.sources import open_sources
from dimefm.training.stopping import Stopping


def train(recipe: Recipe, out: Path, resume: bool = False, echo: Callable[[str], None] = print) -> Path:
    """Train what ``recipe`` describes into the run folder ``out`` and return it.

    Writes ``recipe.toml``, ``log.jsonl`` (one object per logged step), ``bad_rows.jsonl`` (rows left out, if any),
    ``checkpoints/`` and, at the end, the weights and ``run.json``. Ctrl-C and SIGTERM leave a checkpoint behind. Raises a
    DimefmError before the first step when the recipe, its data and its caches do not fit together.
    """
    if resume and (out / runs.FILE).exists() and not changed(recipe, read(out / "recipe.toml")):
        echo(f"{out}: finished already; nothing to do")
        return out
    run = Run(recipe, out, resume, echo)
    run.loop()
    return run.finish()


class Run:
    """One training run: set up, loop, finish."""

    def __init__(self, recipe: Recipe, out: Path, resume: bool, echo: Callable[[str], None]):
        self.recipe, self.out, self.echo = recipe, out, echo
        _claim(recipe, out, resume)
        self.device = pick_device(recipe.device)
        self.objective = Objective(
            [Weighted(n, s["weight"], {k: v for k, v in s.items() if k != "weight"}) for n, s in recipe.losses.items()],
            given=tasks.given(recipe),
        )
        self.sources = open_sources(recipe, out)
        if not len(self.sources):
            raise DataError(f"the sources hold no rows ({', '.join(s.name for s in self.sources.raw.shards)}); check them")
        self.task = tasks.task(recipe, self.sources)
        heads = student.heads([teacher.dim for teacher in self.sources.teachers], recipe.seed)
        self.student = student.Student(self.task.model, self.task.preprocess, heads).to(self.device)
        self.steps_per_epoch = len(self.sources) / (recipe.batch_size * recipe.accum_freq)
        self.steps = recipe.steps or max(1, round(recipe.epochs * self.steps_per_epoch))
        self.warmup_steps = self._warmup()
        self.optimizer = adamw(self.student, recipe)
        self.start = self._restore() if resume else 0

    def _restore(self) -> int:
        found = checkpoint.checkpoints(self.out)
        if not found:
            return 0
        step, caches = checkpoint.load(found[-1], self.student, self.optimizer)
        if caches != self._caches():
            raise CacheError(
                f"{found[-1]}: the run learnt from caches {_short(caches)}, now there are {_short(self._caches())}; "
                "give it the caches that it began with, or start a new run"
            )
        self.echo(f"resumed after step {step} from {found[-1]}")
        return step

    def _caches(self) -> dict[str, list[str]]:
        """Return the fingerprints of the caches that the run learns from, teacher by teacher."""
        caches = {"image_cache": self.sources.image_caches, "text_cache": self.sources.text_caches}
        return {name: [cache.manifest.fingerprint for cache in found] for name, found in caches.items()}

    def _warmup(self) -> int:
        """Return the optimizer steps of warm-up; a run that is too short for the recipe's takes a tenth of its steps."""
        asked = round(self.recipe.warmup * self.steps_per_epoch)
        if asked < self.steps:
            return asked
        self.echo(f"note: warm-up of {asked} steps is longer than the run of {self.steps}; shortened to {self.steps // 10}")
        return self.steps // 10

    def loop(self) -> None:
        """Run all steps that are not done yet."""
        recipe, accum = self.recipe, self.recipe.accum_freq
        write_text(self.out / "recipe.toml", recipe.to_toml())
        forget_after(self.out, self.start)
        numbers = iter(range(self.start * accum, self.steps * accum))
        loading = prefetch(self.task.batches, numbers, recipe.workers)
        bar, log = Progress(self.steps, "train", "step", self.start), Log(self.out, recipe, self.start)
        with contextlib.closing(loading), bar, log, Stopping() as stopping:
            for step in range(self.start, self.steps):
                values = self.step(step, loading)
                if (step + 1) % recipe.log_every == 0 or step + 1 == self.steps:
                    values = log.write(step + 1, values)
                else:
                    log.count(step + 1, values)
                bar.update(note=f"loss {values['total']:.4f}")
                if (step + 1) % recipe.save_every == 0 or step + 1 == self.steps or stopping.asked:
                    checkpoint.save(self.out, step + 1, self.student, self.optimizer, recipe.keep, self._caches())
                if stopping.asked:
                    raise KeyboardInterrupt

    def step(self, step: int, loading: Iterator[Batch]) -> dict:
        """Do optimizer step ``step``; return its loss terms, learning rate, gradient norm, rows and seconds waited."""
        recipe = self.recipe
        torch.manual_seed(seed_of(recipe.seed, "step", step) % 2**32)
        self.student.train()
        rate = learning_rate(step, self.warmup_steps, self.steps, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        record: dict = {"lr": rate, "rows": 0, "waited": 0.0, "bad": []}
        for _ in range(recipe.accum_freq):
            asked = time.perf_counter()
            batch = next(loading)
            record["waited"] += time.perf_counter() - asked
            losses = self.losses(batch)
            (losses["total"] / recipe.accum_freq).backward()
            for name, value in losses.items():
                record[name] = record.get(name, 0.0) + float(value.detach()) / recipe.accum_freq
            record["rows"] += len(batch)
            record["bad"] += batch.bad
        record["grad_norm"] = float(self._clip())
        self._refuse_nan(step, record["total"], record["grad_norm"])
        self.optimizer.step()
        if self.task.kind == "clip":
            with torch.no_grad():
                self.student.model.logit_scale.clamp_(0, 4.6052)  # ln 100, CLIP section 2.5
        return record

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of one micro-batch, each the mean over teachers; the towers may run in bf16, similarities
        are float32."""
        teachers = self._teachers(batch)
        pixels, tokens = (
            None if inputs is None else inputs.to(self.device, non_blocking=True) for inputs in (batch.pixels, batch.tokens)
        )
        dtype = PRECISIONS[self.recipe.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            found = self.student.features(pixels, tokens, teachers)
        values = [self.objective(ours, theirs) for ours, theirs in zip(found, teachers or [None], strict=True)]
        return {name: torch.stack([value[name] for value in values]).mean() for name in values[0]}

    def _teachers(self, batch: Batch) -> list[Features]:
        """Return each teacher's features of a micro-batch, at its own logit scale unless the recipe has one."""
        rows = zip(batch.own, batch.other, self.sources.teachers, strict=True)
        return [
            Features.of(
                image.to(self.device, non_blocking=True),
                text.to(self.device, non_blocking=True),
                self.recipe.logit_scale or card.logit_scale,
            )
            for image, text, card in rows
        ]

    def _clip(self) -> Tensor:
        limit = self.recipe.grad_clip_norm or float("inf")
        return torch.nn.utils.clip_grad_norm_(self.student.parameters(), limit)

    def _refuse_nan(self, step: int, total: float, norm: float) -> None:
        """Stop before the optimizer spreads a number that is not finite."""
        wrong = f"the loss is {total}" if not math.isfinite(total) else f"the gradient's norm is {norm}"
        if not (math.isfinite(total) and math.isfinite(norm)):
            found = checkpoint.checkpoints(self.out)
            last = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was written yet"
            raise DimefmError(f"step {step + 1}: {wrong}; {last}; lower --lr or set --grad-clip-norm")

    def finish(self) -> Path:
        """Write the weights and, last, ``run.json``."""
        task = self.task
        if task.kind == "clip":
            config = {"model_cfg": task.spec.config, "preprocess_cfg": task.preprocess}
            write_text(self.out / open_clip.CONFIG, to_json(config))
        runs.save_tensors(task.model.state_dict(), self.out / runs.KINDS[task.kind])
        teachers = [dataclasses.asdict(card) for card in self.sources.teachers]
        record = {
            "kind": task.kind,
            "model_cfg": task.spec.config,
            "preprocess_cfg": task.preprocess,
            "teacher": teachers[0] if teachers else None,
            "teacher_at": _relative(teachers[0]["name"], self.out) if teachers else None,
            "teachers": teachers,
            "steps": self.steps,
            "rows": len(self.sources),
            **task.sizes(),
            **self._caches(),
            "libraries": libraries(),
        }
        write_text(self.out / runs.FILE, to_json(record))
        return self.out


def _claim(recipe: Recipe, out: Path, resume: bool) -> None:
    """Make ``out`` this run's folder; raise when it holds a finished, unfinished or different run."""
    if (out / runs.FILE).exists():
        raise ModelError(f"{out}: holds a finished run already; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    if not checkpoint.checkpoints(out):
        return
    if not resume:
        raise ModelError(f"{out}: holds an unfinished run; go on with --resume, or choose another --out")
    different = changed(recipe, read(out / "recipe.toml"))
    if different:
        raise RecipeError(f"{out}: the run to resume has another recipe ({'; '.join(different)}: this call against the run)")


def _short(caches: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} {' '.join(f[:12] for f in found)}" for name, found in caches.items() if found) or "none"


def _relative(teacher: str, out: Path) -> str | None:
    """Return where a teacher that is a file or folder lies, seen from the run folder, so that both may move together."""
    return os.path.relpath(teacher, out) if Path(teacher).exists() else None

"""The verb ``train``: a student learns from cached features; no teacher runs.

One explicit loop. Everything of step k is a function of (seed, k), so a run resumed at step k goes on as if it had never
stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dimefm.cache.files import to_json, write_text
from dimefm.data.order import seed_of
from dimefm.errors import DimefmError, ModelError, RecipeError
from dimefm.losses import Features, Objective, Weighted
from dimefm.models import open_clip, runs, student
from dimefm.models.encoder import PRECISIONS, pick_device
from dimefm.progress import Progress
from dimefm.provenance import libraries
from dimefm.recipe import Recipe, changed, read
from dimefm.training import checkpoint
from dimefm.training.batches import Batch, Batches, prefetch
from dimefm.training.optim import adamw, learning_rate
from dimefm.training.sources import open_sources

LOG, BAD_ROWS = "log.jsonl", "bad_rows.jsonl"


def train(recipe: Recipe, out: Path, resume: bool = False, echo: Callable[[str], None] = print) -> Path:
    """Train what ``recipe`` describes into the run folder ``out`` and return it.

    Writes ``recipe.toml``, ``log.jsonl`` (one object per logged step), ``bad_rows.jsonl`` (rows left out, if any),
    ``checkpoints/`` and, at the end, the weights and ``run.json``. Raises a DimefmError before the first step when the
    recipe, its data and its caches do not fit together.
    """
    run = Run(recipe, out, resume, echo)
    run.loop()
    return run.finish()


class Run:
    """One training run: set up, loop, finish."""

    def __init__(self, recipe: Recipe, out: Path, resume: bool, echo: Callable[[str], None]):
        self.recipe, self.out, self.echo = recipe, out, echo
        _claim(recipe, out, resume)
        self.device = pick_device(recipe.device)
        both = recipe.text == "student"
        self.objective = Objective(
            [Weighted(n, s["weight"], {k: v for k, v in s.items() if k != "weight"}) for n, s in recipe.losses.items()],
            given=frozenset({"pairs"} if both else {"teacher"}),
        )
        self.sources = open_sources(recipe, out)
        teacher = self.sources.teacher
        self.spec = student.resolve(recipe.student, recipe.image_size, None if both else teacher.dim)
        model, self.preprocess = student.build(self.spec, both, recipe.seed)
        self.student = student.Student(model, self.preprocess).to(self.device)
        self.scale = recipe.logit_scale or (None if both else teacher.logit_scale)
        self.steps_per_epoch = len(self.sources) / (recipe.batch_size * recipe.accum_freq)
        self.steps = recipe.steps or max(1, round(recipe.epochs * self.steps_per_epoch))
        self.optimizer = adamw(self.student, recipe)
        tokenizer = open_clip.tokenizer_for(self.spec.config) if both else None
        self.batches = Batches(self.sources, recipe, self.spec.image_size, tokenizer)
        self.start = self._restore() if resume else 0

    def _restore(self) -> int:
        found = checkpoint.checkpoints(self.out)
        if not found:
            return 0
        step = checkpoint.load(found[-1], self.student, self.optimizer)
        self.echo(f"resumed after step {step} from {found[-1]}")
        return step

    def loop(self) -> None:
        """Run all steps that are not done yet."""
        recipe, accum = self.recipe, self.recipe.accum_freq
        write_text(self.out / "recipe.toml", recipe.to_toml())
        for name in (LOG, BAD_ROWS):
            _forget_after(self.out / name, self.start)
        numbers = iter(range(self.start * accum, self.steps * accum))
        loading = prefetch(self.batches, numbers, recipe.workers)
        with Progress(self.steps, "train", "step", self.start) as bar, _Log(self.out, recipe) as log:
            for step in range(self.start, self.steps):
                values = self.step(step, loading)
                if (step + 1) % recipe.log_every == 0 or step + 1 == self.steps:
                    values = log.write(step + 1, values)
                else:
                    log.count(step + 1, values)
                bar.update(note=f"loss {values['total']:.4f}")
                if (step + 1) % recipe.save_every == 0 or step + 1 == self.steps:
                    checkpoint.save(self.out, step + 1, self.student, self.optimizer, recipe.keep)
        loading.close()

    def step(self, step: int, loading: Iterator[Batch]) -> dict:
        """Do optimizer step ``step``; return its loss terms, learning rate, gradient norm, rows and seconds waited."""
        recipe = self.recipe
        torch.manual_seed(seed_of(recipe.seed, "step", step) % 2**32)
        self.student.train()
        rate = learning_rate(step, round(recipe.warmup * self.steps_per_epoch), self.steps, recipe)
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
            record["rows"] += len(batch.pixels)
            record["bad"] += batch.bad
        record["grad_norm"] = float(self._clip())
        self._refuse_nan(step, record["total"], record["grad_norm"])
        self.optimizer.step()
        if recipe.text == "student":
            with torch.no_grad():
                self.student.model.logit_scale.clamp_(0, 4.6052)  # ln 100, CLIP section 2.5
        return record

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of one micro-batch; the towers may run in bf16, similarities are float32."""
        teacher = None
        if batch.tokens is None:
            image, text = (r.to(self.device, non_blocking=True) for r in (batch.teacher_image, batch.teacher_text))
            teacher = Features.of(image, text, self.scale)
        tokens = None if batch.tokens is None else batch.tokens.to(self.device)
        dtype = PRECISIONS[self.recipe.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            found = self.student.features(batch.pixels.to(self.device, non_blocking=True), tokens, teacher)
        return self.objective(found, teacher)

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
        model, both = self.student.model, self.recipe.text == "student"
        if both:
            config = {"model_cfg": self.spec.config, "preprocess_cfg": self.preprocess}
            write_text(self.out / open_clip.CONFIG, to_json(config))
        runs.save_tensors(model.state_dict(), self.out / (open_clip.WEIGHTS if both else runs.IMAGE_TOWER))
        teacher = self.sources.teacher
        record = {
            "kind": "clip" if both else "image-tower",
            "model_cfg": self.spec.config,
            "preprocess_cfg": self.preprocess,
            "teacher": None if teacher is None else dataclasses.asdict(teacher),
            "steps": self.steps,
            "image_rows": len(self.sources),
            "image_parameters": sum(p.numel() for p in model.visual.parameters()),
            "parameters": sum(p.numel() for p in model.parameters()),
            "image_cache": self.sources.image_cache and self.sources.image_cache.manifest.fingerprint,
            "text_cache": self.sources.text_cache and self.sources.text_cache.manifest.fingerprint,
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


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines that an interrupted run wrote after the step it is resumed from."""
    if path.exists():
        write_text(path, "".join(f"{line}\n" for line in _lines(path) if json.loads(line)["step"] <= step))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []


class _Log:
    """Appends one JSON line per logged step, and TensorBoard scalars when asked."""

    def __init__(self, out: Path, recipe: Recipe):
        self.out, self.recipe = out, recipe
        self.since, self.rows, self.waited = time.perf_counter(), 0, 0.0
        self.bad = len(_lines(out / BAD_ROWS))
        self.board = None

    def __enter__(self) -> _Log:
        self.stack = contextlib.ExitStack()
        self.file = self.stack.enter_context((self.out / LOG).open("a", encoding="utf-8"))
        if self.recipe.report_to == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise RecipeError(
                    "--report-to tensorboard: tensorboard is not installed; pip install 'dimefm[log]'"
                ) from error
            self.board = self.stack.enter_context(SummaryWriter(str(self.out / "tensorboard")))
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
        self.file.write(json.dumps({k: round(v, 8) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in line.items():
                self.board.add_scalar(name, value, step)
        self.since, self.rows, self.waited = time.perf_counter(), 0, 0.0
        return line

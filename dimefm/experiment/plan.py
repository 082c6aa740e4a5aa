"""What a run of an experiment would do, with an estimate; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from dimefm.errors import DimefmError
from dimefm.experiment.file import Experiment
from dimefm.experiment.record import read_records
from dimefm.experiment.run import is_done
from dimefm.experiment.stages import (
    EvalStage,
    ExportStage,
    ExtractStage,
    Stage,
    TrainStage,
    stages_of,
)
from dimefm.extract.estimate import duration, estimate
from dimefm.models import student
from dimefm.recipe import Recipe
from dimefm.runtime.devices import pick_device

PROBE = 8  # images of the training probe
REPEATS = 2  # timed passes of it, after one that warms up


def describe_plan(experiment: Experiment, out: Path) -> Iterator[str]:
    """Yield the plan in lines: each stage, whether it is done, and what it would take.

    Estimates load the teacher and the student and time a few batches. Raises a DimefmError when
    sources cannot be opened or models cannot be loaded.
    """
    stages = stages_of(experiment, out)
    records = read_records(out)
    for number, stage in enumerate(stages, start=1):
        title = f"{number}/{len(stages)} {stage.name}: {stage.place}"
        if stage.name in records and is_done(stage, stage.inputs(), records):
            yield f"{title}, done already"
            continue
        yield title
        for line in _estimate(stage, stages):
            yield f"  {line}"


def _estimate(stage: Stage, stages: list[Stage]) -> Iterator[str]:
    if isinstance(stage, ExtractStage):
        yield from _extraction(stage)
    elif isinstance(stage, TrainStage):
        yield from _training(stage.recipe, stages)
    elif isinstance(stage, EvalStage):
        suites = ", ".join(stage.request.suites)
        yield f"{suites} on {', '.join(stage.request.datasets) or 'all datasets'} in {stage.root}"
    elif isinstance(stage, ExportStage):
        yield f"for {', '.join(stage.request.to)}"


def _extraction(stage: ExtractStage) -> Iterator[str]:
    extraction = stage.extraction
    encoders = extraction.load()
    for kind, rows in extraction.open():
        for encoder, place in zip(encoders, extraction.places(kind), strict=True):
            estimated = estimate(encoder, rows, kind, place, extraction.settings)
            yield from estimated.describe().splitlines()


def _training(recipe: Recipe, stages: list[Stage]) -> Iterator[str]:
    samples = _samples(stages)
    if recipe.steps is not None:
        steps = recipe.steps
    elif samples:
        steps = max(1, round(recipe.epochs * samples / (recipe.batch_size * recipe.accum_freq)))
    else:
        yield f"{recipe.epochs:g} epochs of batches of {recipe.batch_size:,}"
        return
    batch = recipe.batch_size * recipe.accum_freq
    yield f"{recipe.text_student or recipe.student}, {steps:,} steps of {batch:,} samples"
    if recipe.text_student:
        return
    seconds = _seconds_a_sample(recipe) * batch * recipe.views_per_step
    yield (
        f"about {duration(steps * seconds)} for the image tower alone, at {seconds:.2g} s a step"
        f" (probe of {PROBE} images)"
    )


def _samples(stages: list[Stage]) -> int:
    """Return how many samples an epoch has, 0 when no source tells."""
    for stage in stages:
        if isinstance(stage, ExtractStage):
            for kind, rows in stage.extraction.open():
                if kind == "image":
                    return len(rows)
    return 0


def _seconds_a_sample(recipe: Recipe) -> float:
    """Return the seconds that the image tower takes for one image, forward and backward."""
    device = pick_device(recipe.device)
    spec = student.resolve(recipe.student, recipe.image_size)
    model, _preprocess = student.build(spec, both_towers=False, seed=0)
    model = model.to(device)
    size = spec.image_size
    if size is None:
        raise DimefmError(f"{spec.name}: the size of its images is not known. Fix: set image_size")
    pixels = torch.zeros(PROBE, 3, size, size, device=device)
    started = 0.0
    for repeat in range(REPEATS + 1):
        if repeat == 1:
            started = time.perf_counter()
        model.encode_image(pixels).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / (REPEATS * PROBE)

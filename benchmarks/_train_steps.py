"""What a step costs: on cached features, with a plain CLIP loss and no teacher, with the teacher in
the step, in portions.

    python -m benchmarks._train_steps FOLDER STUDENT BATCH ACCUM

prints one line of JSON: the MiB that one step of ACCUM batches takes beyond weights, optimizer and
inputs. Steps on cached features are those of ``dimefm train``; batches are loaded before, so that
nothing waits for data. Weights are random.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._timing import Line, Work, interleaved
from benchmarks._train_loader import recipe_of, tsvs
from benchmarks._train_losses import PAGES, resident
from dimefm.models import open_clip
from dimefm.train.inputs.batch import Batch
from dimefm.train.trainer import Trainer

PLAIN, LIVE = (
    (
        "<=",
        1.02,
    ),
    0.9,
)  # a cached step / a plain one; share of the arithmetic bound that is to be reached
PORTIONS = 4
SCALE = 1 / 0.07  # CLIP's first factor on cosines
UPDATES = 3  # passes' worth of arithmetic in forward and backward


@dataclass(frozen=True)
class Cached:
    """Steps of ``dimefm train`` on cached features, always with the same ``batches``, one for each
    portion.
    """

    run: Trainer
    batches: list[Batch]

    @staticmethod
    def of(folder: Path, student: str, dim: int, batch: int, micro_batches: int = 1) -> Cached:
        """Set a run up in ``folder``, on made images and features."""
        files = tsvs(folder / "data", batch * micro_batches, dim)
        recipe = recipe_of(
            files, student=student, batch_size=batch, accum_freq=micro_batches, steps=1000
        )
        run = Trainer(recipe, folder / "run", False, lambda line: None)
        return Cached(run, [run.task.batches(number) for number in range(micro_batches)])

    def __call__(self, _: int = 0) -> None:
        """Do a step."""
        self.run.step(0, iter(self.batches))

    def forward(self, _: int = 0) -> None:
        """Encode the first batch as a step does, with all that the way back needs."""
        self.run.student.train()
        self.run.student(self.batches[0].pixels, None)


@dataclass(frozen=True)
class Plain:
    """Steps with InfoNCE between images and ready rows of text: what training without any teacher
    costs at least.
    """

    cached: Cached

    def __call__(self, _: int = 0) -> None:
        """Do a step."""
        run, (batch,) = self.cached.run, self.cached.batches
        run.student.train()
        rows = F.normalize(run.student.images(batch.pixels)["image"], dim=-1)
        logits = SCALE * rows @ F.normalize(batch.same_modality[0], dim=-1).T
        pairs = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()


@dataclass(frozen=True)
class Live:
    """The steps of ``cached`` with features that a teacher makes in each, of the student's pixels
    and as many sentences.

    So does open_clip's ``--distill``, see open_clip_train/train.py: both towers of the teacher,
    without gradients.
    """

    cached: Cached
    teacher: nn.Module
    tokens: Tensor

    @staticmethod
    def of(cached: Cached, teacher: str) -> Live:
        """Make a teacher with random weights and sentences of its full length."""
        model, size = open_clip.random(teacher, 0), len(cached.batches[0])
        return Live(cached, model, torch.randint(1, 400, (size, model.context_length)))

    def __call__(self, _: int = 0) -> None:
        """Do a step."""
        self.cached.run.step(0, self.taught())

    def taught(self) -> Iterator[Batch]:
        """Yield the batch with features made now."""
        image, text = self.encode()
        yield dataclasses.replace(
            self.cached.batches[0], same_modality=(image,), other_modality=(text,)
        )

    def encode(self, _: int = 0) -> tuple[Tensor, Tensor]:
        """Return the teacher's rows of images and sentences [B, D]."""
        with torch.no_grad():
            return self.teacher.encode_image(self.pixels()), self.teacher.encode_text(self.tokens)

    def pixels(self) -> Tensor:
        """Return the student's pixels as towers take them."""
        student, batch = self.cached.run.student, self.cached.batches[0]
        return (batch.pixels.permute(0, 3, 1, 2).div(255) - student.mean) / student.std

    def bound(self) -> float:
        """Return (teacher + 3 student) / (3 student) in FLOP of an image and a sentence."""
        pixels, batch = self.pixels()[:2], self.cached.batches[0].pixels[:2]
        image, text = (
            lambda: self.teacher.encode_image(pixels),
            lambda: self.teacher.encode_text(self.tokens[:2]),
        )
        student = flops(lambda: self.cached.run.student(batch, None))
        return 1 + (flops(image) + flops(text)) / (UPDATES * student)


@dataclass(frozen=True)
class Clocked:
    """A call whose CPU seconds are kept: other jobs on the machine change them less than its
    time.
    """

    call: Callable[[int], object]
    seconds: list[float]

    def __call__(self, repeat: int) -> None:
        """Do it and keep its seconds."""
        started = time.process_time()
        self.call(repeat)
        self.seconds.append(time.process_time() - started)

    def median(self) -> float:
        """Return the CPU seconds of a call; the first, which warms up, is not counted."""
        return statistics.median(self.seconds[1:])


def flops(call: Callable[[], object]) -> int:
    """Return the FLOP of a call, with gradients: without, attention is one operation that the
    counter does not know.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():
        call()
    return counter.get_total_flops()


def steps(
    folder: Path, student: str, teachers: Sequence[str], sizes: tuple[int, int], repeats: int
) -> list[Line]:
    """Return a student's lines; ``sizes`` are the batches beside a plain loss and beside a live
    teacher.
    """
    batch, small = sizes
    dims = {teacher: open_clip.config_of(teacher)["embed_dim"] for teacher in teachers}
    dim = next(iter(dims.values()), 512)
    cached = Clocked(Cached.of(folder / "cached", student, dim, batch), [])
    plain = Clocked(Plain(Cached.of(folder / "plain", student, dim, batch)), [])
    seen = interleaved({"cached": Work(cached, batch), "plain": Work(plain, batch)}, repeats)
    item = f"step {student} cached / plain"
    what = f"{student}, {batch} images: a step on cached features / with InfoNCE alone"
    lines = [
        Line(item, what, batch / seen["cached"], "s", batch / seen["plain"], PLAIN),
        Line(f"{item} CPU", f"{what}, CPU time", cached.median(), "s", plain.median(), PLAIN),
    ]
    for teacher, size in dims.items():
        live = Live.of(Cached.of(folder / teacher, student, size, small), teacher)
        lines += _live(
            live, f"step {student} live {teacher}", f"{student}, {small} images, {teacher}", repeats
        )
    return lines


def _live(live: Live, item: str, what: str, repeats: int) -> list[Line]:
    """Return how many times a live teacher makes a step longer, and how many times it has to."""
    rows = len(live.tokens)
    calls = {
        "cached": live.cached,
        "live": live,
        "teacher": live.encode,
        "student": live.cached.forward,
    }
    parts = {name: Clocked(call, []) for name, call in calls.items()}
    seen = interleaved({name: Work(part, rows) for name, part in parts.items()}, repeats)
    used = {name: part.median() for name, part in parts.items()}
    bound, timed = live.bound(), 1 + used["teacher"] / (UPDATES * used["student"])
    ratio, aim = f"{what}: cached / teacher in the step", (">=", LIVE * bound)
    return [
        Line(item, ratio, seen["cached"], "images/s", seen["live"], aim),
        Line(
            f"{item} CPU",
            f"{ratio}, CPU time",
            rows / used["cached"],
            "images/s",
            rows / used["live"],
            aim,
        ),
        Line(f"{item} bound", f"{what}: (teacher + 3 student) / (3 student) by FLOP", bound, "x"),
        Line(
            f"{item} bound timed", f"{what}: the same by the CPU time of forward passes", timed, "x"
        ),
    ]


def accumulation(folder: Path, student: str, batch: int, repeats: int) -> list[Line]:
    """Return time and memory of a step in PORTIONS beside those of one large batch."""
    dim, counts = 512, {PORTIONS: "portions", 1: "whole"}
    micro_batches = {
        count: Cached.of(folder / name, student, dim, batch // count, count)
        for count, name in counts.items()
    }
    seen = interleaved(
        {str(count): Work(step, batch) for count, step in micro_batches.items()}, repeats
    )
    held = {
        count: memory(folder / f"memory {count}", student, batch // count, count)
        for count in micro_batches
    }
    what = f"{student}, {batch} images in {PORTIONS} portions / at once"
    return [
        Line(
            f"accumulation {student}",
            f"{what}: seconds of a step",
            batch / seen[str(PORTIONS)],
            "s",
            batch / seen["1"],
        ),
        Line(
            f"accumulation {student} memory",
            f"{what}: extra memory",
            held[PORTIONS],
            "MiB",
            held[1],
        ),
    ]


def memory(folder: Path, student: str, batch: int, micro_batches: int) -> float:
    """Return the MiB of one step, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        __spec__.name,
        str(folder),
        student,
        str(batch),
        str(micro_batches),
    ]
    where = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=where, env=os.environ | PAGES, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return json.loads(done.stdout)["MiB"]


def measured(folder: Path, student: str, batch: int, micro_batches: int) -> dict[str, float]:
    """Return the MiB of the second step, when weights and optimizer are there."""
    step = Cached.of(folder, student, 512, batch, micro_batches)
    step()
    step.run.optimizer.zero_grad(set_to_none=True)
    Path("/proc/self/clear_refs").write_text("5")  # the highest figure starts anew
    before = resident("VmRSS")
    step()
    return {"MiB": resident("VmHWM") - before}


if __name__ == "__main__":
    _folder, _student, _batch, _portions = sys.argv[1:]
    print(json.dumps(measured(Path(_folder), _student, int(_batch), int(_portions))))

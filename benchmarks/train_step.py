"""What a training step costs with cached features, without any teacher, and with the teacher running in the step.

    python -m benchmarks.train_step [--student NAME] [--teacher NAME] [--batch 32] [--repeats 7] [--out FILE]

The three steps are interleaved; medians are compared. Random weights and pixels: the arithmetic does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from dimefm.losses import Features, Objective, Weighted
from dimefm.models import open_clip, student
from dimefm.provenance import libraries


def steps(name: str, teacher_name: str, batch: int, texts: int) -> dict[str, Callable[[], None]]:
    """Return the three steps by name; each does forward, loss, backward and an AdamW update."""
    teacher = open_clip.random(teacher_name, 0)
    dim = open_clip.config_of(teacher_name)["embed_dim"]
    spec = student.resolve(name, None, dim)
    model, preprocess = student.build(spec, both_towers=False, seed=0)
    trained = student.Student(model, preprocess).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    objective = Objective([Weighted("dime.vl", 0.7), Weighted("dime.pvl", 0.3)])
    size = spec.image_size
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    teacher_size = (
        teacher.visual.image_size[0] if isinstance(teacher.visual.image_size, tuple) else teacher.visual.image_size
    )
    teacher_pixels = torch.randn(batch, 3, teacher_size, teacher_size)
    tokens = torch.randint(1, 400, (texts, open_clip.config_of(teacher_name)["text_cfg"]["context_length"]))
    cached = Features.of(torch.randn(batch, dim), torch.randn(texts, dim), 100.0)
    target = F.normalize(torch.randn(batch, dim), dim=-1)

    def update(loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def with_cache() -> None:
        update(objective(*trained.features(pixels, None, [cached]), cached)["total"])

    def without_teacher() -> None:
        update(-(F.normalize(trained.images(pixels), dim=-1) * target).sum(-1).mean())

    def with_live_teacher() -> None:
        with torch.inference_mode():
            image, text = teacher.encode_image(teacher_pixels), teacher.encode_text(tokens)
        live = Features.of(image.clone(), text.clone(), 100.0)
        update(objective(*trained.features(pixels, None, [live]), live)["total"])

    return {"cached features": with_cache, "no teacher at all": without_teacher, "live teacher": with_live_teacher}


def main() -> None:
    """Run the benchmark and print seconds per step and ratios to the step without a teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="ResNet-mini-64")
    parser.add_argument("--teacher", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    timed = steps(options.student, options.teacher, options.batch, options.texts)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for step in timed.values():
        step()
    for _ in range(options.repeats):
        for name, step in timed.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    limit = medians["no teacher at all"]
    print(f"student {options.student}, teacher {options.teacher}, batch {options.batch}, {options.texts} sentences")
    for name, value in medians.items():
        print(f"  {name:18}  {1000 * value:9.1f} ms   {value / limit:6.2f} x the step without a teacher")
    if options.out:
        line = {"what": "train_step", **vars(options), "seconds": medians, "cpus": os.cpu_count()}
        line |= {"out": None, "machine": platform.processor() or platform.machine(), "libraries": libraries()}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

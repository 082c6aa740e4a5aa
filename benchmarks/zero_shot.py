"""Zero-shot classification of one set, beside clip-benchmark's evaluation, as ratios with goals.

    python -m benchmarks.zero_shot [--images 10000] [--repeats 3] [--quick]
        --clip-benchmark FOLDER

Both score the same model on the same images from memory or tars: clip-benchmark by its own
functions (``--clip-benchmark`` is a folder that ``pip install --no-deps --target FOLDER
clip-benchmark`` filled) with open_clip's PIL transform, a DataLoader with two workers and autocast
off; dimefm with its defaults, from reading the tars to the metrics. A second metric is computed
from the kept embeddings. Rates are images/s of the wall clock, and per second of CPU, in which
other jobs on the machine matter less.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from benchmarks._timing import Line, Work, interleaved, machine, record, table
from dimefm.evaluate.suites.classification import score_labeled
from dimefm.evaluate.suites.folders import SuiteSet
from dimefm.evaluate.zero_shot import settings_of
from dimefm.models.loading import load_encoder
from dimefm.runtime.versions import libraries

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/classification/cifar10"
MODEL = ROOT / "tests/data/teacher"
TEMPLATES = ("a photo of a {c}.", "a blurry photo of a {c}.", "a photo of the {c}.")
TARS = 4
THEIR_BATCH = 64
THEIR_WORKERS = 2


class InMemory(torch.utils.data.Dataset):
    """Encoded images with labels, prepared by open_clip's transform."""

    def __init__(self, images: list[bytes], labels: list[int], classes: list[str], transform):
        self.images = images
        self.labels = labels
        self.classes = classes
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        picture = Image.open(io.BytesIO(self.images[index]))
        return self.transform(picture), self.labels[index]


def pictures(count: int) -> tuple[list[bytes], list[int], list[str]]:
    """Return images, labels and class names: of CIFAR-10, or made where it is absent."""
    if (DATA / "test.parquet").is_file():
        rows = pq.read_table(DATA / "test.parquet").slice(0, count)
        names = (DATA / "classnames.txt").read_text().split("\n")
        classes = [name for name in names if name]
        return rows["image"].to_pylist(), rows["label"].to_pylist(), classes
    draw = np.random.default_rng(0)
    images = []
    for _ in range(count):
        file = io.BytesIO()
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
        images.append(file.getvalue())
    return images, draw.integers(0, 10, count).tolist(), [f"thing {number}" for number in range(10)]


def write_set(folder: Path, images: list[bytes], labels: list[int], classes: list[str]) -> SuiteSet:
    """Write the images as a folder in clip-benchmark's layout."""
    (folder / "test").mkdir(parents=True)
    for number in range(TARS):
        with tarfile.open(folder / f"test/{number}.tar", "w") as file:
            for row in range(number, len(images), TARS):
                for ending, data in (("jpg", images[row]), ("cls", str(labels[row]).encode())):
                    member = tarfile.TarInfo(f"s{row:07d}.{ending}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    (folder / "test/nshards.txt").write_text(str(TARS))
    (folder / "classnames.txt").write_text("\n".join(classes))
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    return SuiteSet(folder.name.removeprefix("wds_"), folder)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compared(folder: Path, count: int, repeats: int) -> tuple[list[Line], dict[str, float]]:
    """Return the lines of the table, and the top-1 accuracy of both sides."""
    from clip_benchmark.metrics import zeroshot_classification as clip_benchmark

    images, labels, classes = pictures(count)
    suite_set = write_set(folder / "wds_cifar10", images, labels, classes)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{MODEL}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{MODEL}")
    loader = torch.utils.data.DataLoader(
        InMemory(images, labels, classes, transform),
        batch_size=THEIR_BATCH,
        num_workers=THEIR_WORKERS,
    )
    encoder = load_encoder(str(MODEL), "cpu")
    settings = settings_of(256, 2, "turbo")
    accuracy: dict[str, float] = {}
    cpu: dict[str, list[float]] = {}

    def theirs(_: int) -> None:
        # its functions one by one: a line of its ``accuracy`` needs an older numpy
        prompts = list(TEMPLATES)
        weights = clip_benchmark.zero_shot_classifier(
            model, tokenizer, classes, prompts, "cpu", amp=False
        )
        logits, target = clip_benchmark.run_classification(model, weights, loader, "cpu", amp=False)
        top = logits.topk(5, dim=1).indices == target[:, None]
        accuracy["clip-benchmark"] = top[:, 0].float().mean().item()
        balanced_accuracy_score(target, logits.argmax(dim=1))

    def ours(repeat: int) -> None:
        result = score_labeled(encoder, suite_set, folder / f"store-{repeat}", settings)
        accuracy["dimefm"] = result.metrics["acc1"]

    def again(_: int) -> None:
        score_labeled(encoder, suite_set, folder / "kept", settings)

    def timed(name: str, run: Callable[[int], None]) -> Work:
        def with_cpu(repeat: int) -> None:
            started = cpu_seconds()
            run(repeat)
            cpu.setdefault(name, []).append(cpu_seconds() - started)

        return Work(with_cpu, len(images))

    again(0)  # fills the store
    works = {"theirs": timed("theirs", theirs), "ours": timed("ours", ours)}
    works["again"] = timed("again", again)
    wall = interleaved(works, repeats)
    lines = []
    for name, what, goal in (
        ("ours", "zero-shot", 1.5),
        ("again", "second metric", 50.0),
    ):
        against = len(images) / statistics.median(cpu["theirs"][1:])
        rate = len(images) / max(statistics.median(cpu[name][1:]), 0.005)
        shown = f"{what} / clip-benchmark"
        lines.append(Line(shown, shown, wall[name], "images/s", wall["theirs"], (">=", goal)))
        item = f"{shown}, CPU"
        lines.append(Line(item, item, rate, "images/s", against, (">=", goal)))
    return lines, accuracy


def main() -> None:
    """Run the benchmark, print the table and append its lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clip-benchmark", type=Path, help="folder that holds clip_benchmark/")
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are appended to")
    parser.add_argument("--quick", action="store_true", help="500 images, one repeat")
    options = parser.parse_args()
    if options.quick:
        options.images, options.repeats = 500, 1
    if options.clip_benchmark is not None:
        sys.path.insert(0, str(options.clip_benchmark.resolve()))
    with tempfile.TemporaryDirectory(prefix="dimefm-bench-", dir=options.folder) as name:
        place = machine(Path(name)) | {key: str(value) for key, value in libraries().items()}
        place["threads"] = str(torch.get_num_threads())
        lines, accuracy = compared(Path(name), options.images, options.repeats)
    sections = [(f"Zero-shot on {options.images:,} images", lines)]
    print("  ".join(f"{key} {value}" for key, value in place.items()))
    print(table(sections))
    print("top-1: " + ", ".join(f"{key} {100 * value:.2f}" for key, value in accuracy.items()))
    if options.out:
        settings = {"images": options.images, "repeats": options.repeats}
        record(options.out, "zero_shot", settings, sections, place)


if __name__ == "__main__":
    main()

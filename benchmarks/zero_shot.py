"""Zero-shot classification, beside clip-benchmark's evaluation, as ratios with goals.

    python -m benchmarks.zero_shot [--sets caltech101,cifar10] [--images 10000] [--repeats 3]
                                   [--quick] --clip-benchmark FOLDER

Both score the same model on the same images in tars: clip-benchmark by its own functions
(``--clip-benchmark`` is a folder that ``pip install --no-deps --target FOLDER clip-benchmark
webdataset braceexpand`` filled) with open_clip's PIL transform, a DataLoader with two workers and
autocast off; dimefm with its defaults. A second metric is computed from
the kept embeddings, in the same program, or after the tars were opened again. Rates
are images/s of the wall clock, and per second of CPU, in which other jobs on the machine matter
less.
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
from dimefm.evaluate.datasets.layouts import find
from dimefm.evaluate.preparing import settings_of
from dimefm.evaluate.suites.classification import score_labeled
from dimefm.evaluate.suites.folders import SuiteSet
from dimefm.evaluate.zero_shot import zero_shot
from dimefm.models.loading import load_encoder
from dimefm.runtime.versions import libraries

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/classification"
SETS = {
    "caltech101": "photos of about 300 x 200 pixels",
    "cifar10": "pictures of 32 x 32 pixels",
}
MODEL = ROOT / "tests/data/teacher"
TEMPLATES = ("a photo of a {c}.", "a blurry photo of a {c}.", "a photo of the {c}.")
TARS = 4
THEIR_BATCH = 64
THEIR_WORKERS = 2


def pictures(name: str, count: int) -> tuple[list[bytes], list[int], list[str]]:
    """Return images, labels and class names of a set, repeated until there are enough; images of
    noise where the set is absent.
    """
    if (DATA / name / "test.parquet").is_file():
        rows = pq.read_table(DATA / name / "test.parquet")
        lines = (DATA / name / "classnames.txt").read_text().split("\n")
        classes = [line for line in lines if line]
        images = rows["image"].to_pylist()
        labels = rows["label"].to_pylist()
        times = -(-count // len(images))
        return (images * times)[:count], (labels * times)[:count], classes
    draw = np.random.default_rng(0)
    shape = (32, 32, 3) if name == "cifar10" else (200, 300, 3)
    images = []
    for _ in range(count):
        file = io.BytesIO()
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
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


def compared(
    folder: Path, name: str, count: int, repeats: int
) -> tuple[list[Line], dict[str, float]]:
    """Return the lines of the table, and the top-1 accuracy of both sides."""
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification as clip_benchmark

    images, labels, classes = pictures(name, count)
    suite_set = write_set(folder / f"wds_{name}", images, labels, classes)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{MODEL}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{MODEL}")
    encoder = load_encoder(str(MODEL), "cpu")
    settings = settings_of(256, 2, "turbo")
    accuracy: dict[str, float] = {}
    cpu: dict[str, list[float]] = {}

    def theirs(_: int) -> None:
        # its functions one by one: a line of its ``accuracy`` needs an older numpy
        dataset = build_dataset(
            dataset_name=f"wds/{name}",
            root=str(suite_set.folder),
            transform=transform,
            split="test",
            download=False,
        )
        loader = torch.utils.data.DataLoader(
            dataset.batched(THEIR_BATCH), batch_size=None, num_workers=THEIR_WORKERS
        )
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

    [opened], _ = find(folder, [f"wds_{name}"], layout="webdataset")

    def metric(_: int) -> None:
        zero_shot(encoder, opened, folder / "kept", settings)

    def timed(work: str, run: Callable[[int], None]) -> Work:
        def with_cpu(repeat: int) -> None:
            started = cpu_seconds()
            run(repeat)
            cpu.setdefault(work, []).append(cpu_seconds() - started)

        return Work(with_cpu, len(images))

    again(0)  # fills the store
    metric(0)
    works = {"theirs": timed("theirs", theirs), "ours": timed("ours", ours)}
    works["again"] = timed("again", again)
    works["metric"] = timed("metric", metric)
    wall = interleaved(works, repeats)
    lines = []
    for work, what, goal in (
        ("ours", "zero-shot", 1.5),
        ("metric", "second metric, set open", 50.0),
        ("again", "second metric, set opened again", None),
    ):
        at_least = None if goal is None else (">=", goal)
        against = len(images) / statistics.median(cpu["theirs"][1:])
        rate = len(images) / max(statistics.median(cpu[work][1:]), 0.005)
        shown = f"{what} on {name} / clip-benchmark"
        lines.append(Line(shown, shown, wall[work], "images/s", wall["theirs"], at_least))
        item = f"{shown}, CPU"
        lines.append(Line(item, item, rate, "images/s", against, at_least))
    return lines, accuracy


def main() -> None:
    """Run the benchmark, print the table and append its lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--sets", default=",".join(SETS), help="sets of images, with commas")
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
        sections = []
        accuracy = {}
        for chosen in options.sets.split(","):
            place_of_set = Path(name) / chosen
            lines, reached = compared(place_of_set, chosen, options.images, options.repeats)
            sections.append((f"Zero-shot on {options.images:,} {SETS[chosen]}", lines))
            accuracy |= {f"{key} on {chosen}": value for key, value in reached.items()}
    print("  ".join(f"{key} {value}" for key, value in place.items()))
    print(table(sections))
    print("top-1: " + ", ".join(f"{key} {100 * value:.2f}" for key, value in accuracy.items()))
    if options.out:
        settings = {"images": options.images, "repeats": options.repeats}
        record(options.out, "zero_shot", settings, sections, place)


if __name__ == "__main__":
    main()

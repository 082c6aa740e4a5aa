"""What training does, beside a plain step, a teacher in the loop, DIME-FM's loader and whole
matrices, with its goals.

    python -m benchmarks.train [--repeats 3] [--parts steps,loader,...] [--data FOLDER] [--out
    results.jsonl] [--quick]

Towers have random weights. All that is compared is interleaved in one process; medians; the first
round of each is not counted. Up to 1 GB lies in ``--folder`` for a while. ``--batch 256`` repeats
the steps at another size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import _extract_data
from benchmarks._timing import Line, machine, record, table
from benchmarks._train_data import data
from benchmarks._train_loader import loader
from benchmarks._train_losses import losses
from benchmarks._train_order import dealt, read
from benchmarks._train_steps import accumulation, steps
from dimefm.runtime.versions import libraries

DATA = Path(__file__).parents[2] / "shared/data"
PARTS = ("steps", "accumulation", "loader", "losses", "order", "data")
FULL = {
    "batch": 64,
    "live": 16,
    "rows": 20_000,
    "pairs": 8192,
    "blocks": 20_000,
    "images": 400,
    "steps": 6,
    "repeats": 3,
}
QUICK = {
    "batch": 16,
    "live": 4,
    "rows": 20_000,
    "pairs": 1024,
    "blocks": 5000,
    "images": 128,
    "steps": 2,
    "repeats": 1,
}
WHAT = {
    "batch": "images of a step",
    "live": "images of a step with a teacher in it",
    "rows": "rows of DIME-FM's files; a tenth of them is the other size",
    "pairs": "B = N of the losses; half of it is the other size",
    "blocks": "images in a Parquet file",
    "images": "photos",
    "steps": "steps of which the share of waiting is taken",
    "repeats": "rounds",
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured, see WHAT, under ``folder``; ``source`` is the folder of real sets or
    None.
    """

    batch: int
    live: int
    rows: int
    pairs: int
    blocks: int
    images: int
    steps: int
    repeats: int
    folder: Path
    source: Path | None


def sections(
    sizes: Sizes, parts: Sequence[str], students: Sequence[str], teachers: Sequence[str]
) -> list[tuple[str, list[Line]]]:
    """Return (title, lines) of the parts asked for."""
    found: list[tuple[str, list[Line]]] = []
    batches, repeats, folder = (sizes.batch, sizes.live), sizes.repeats, sizes.folder
    if "steps" in parts:
        for name in students:
            found.append(
                (f"Steps of {name}", steps(folder / name, name, teachers, batches, repeats))
            )
    if "accumulation" in parts:
        lines = accumulation(folder / "accumulation", students[0], sizes.batch, repeats)
        found.append(("Steps in portions", lines))
    if "loader" in parts:
        lines = loader(folder / "loader", (max(1, sizes.rows // 10), sizes.rows), repeats)
        found.append(("Loading from DIME-FM's own files, one thread", lines))
    if "losses" in parts:
        found.append(
            (
                "The loss, in chunks / whole matrices",
                losses((sizes.pairs // 2, sizes.pairs), repeats=repeats),
            )
        )
    if "order" in parts:
        found.append(("Dealing rows", [*dealt(repeats), *read(folder, repeats, sizes.blocks)]))
    if "data" in parts:
        photos = _extract_data.Sizes(
            sizes.images, 1, 1, 0, 0, 0, repeats, folder / "photos", sizes.source
        )
        photos.folder.mkdir()
        found.append((f"Views for training, {sizes.images:,} photos", data(photos, sizes.steps)))
    return found


def main() -> None:
    """Run the benchmark, print the table and append its lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in FULL.items():
        parser.add_argument(
            f"--{name}", type=int, help=f"{WHAT[name]} ({value}; {QUICK[name]} with --quick)"
        )
    parser.add_argument("--students", default="ViT-T-16,ResNet-18", help="comma-separated")
    parser.add_argument(
        "--teachers",
        default="ViT-B-32,ViT-L-14",
        help="comma-separated, of the students' image size; may be none",
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="real sets; made ones where there is no such folder"
    )
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are appended to")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="comma-separated; all of them unless given"
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    lists = (options.parts, options.students, options.teachers)
    parts, students, teachers = ([name for name in text.split(",") if name] for text in lists)
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--parts {', '.join(sorted(wrong))}: expected some of {','.join(PARTS)}")
    numbers = QUICK if options.quick else FULL
    numbers = {name: getattr(options, name) or value for name, value in numbers.items()}
    with tempfile.TemporaryDirectory(prefix="dimefm-bench-", dir=options.folder) as folder:
        sizes = Sizes(**numbers, folder=Path(folder), source=_extract_data.real(options.data))
        place = machine(sizes.folder) | {name: str(value) for name, value in libraries().items()}
        place |= {
            "threads": str(torch.get_num_threads()),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "-"),
        }
        found = sections(sizes, parts, students, teachers)
    print("  ".join(f"{name} {value}" for name, value in place.items()))
    print(table(found))
    if options.out:
        settings = {
            **numbers,
            "quick": options.quick,
            "parts": parts,
            "students": students,
            "teachers": teachers,
        }
        record(options.out, "train", settings, found, place)


if __name__ == "__main__":
    main()

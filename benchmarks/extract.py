"""What extraction does, beside the bare forward loop and beside the ways of others, as ratios with
their goals.

    python -m benchmarks.extract [--repeats 3] [--parts images,light,...] [--data FOLDER] [--out
    results.jsonl] [--quick]

Towers have random weights. Photos are real pictures (Caltech-101, 15 Scenes) brought to 500 x 375
pixels, sentences real descriptions of photos; where ``--data`` is absent, both are made. All that
is compared is interleaved in one process; medians; the first round of each is short and not
counted. Up to 1 GB lies in ``--folder`` for a while.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks._extract_data import Sizes, photos, real
from benchmarks._extract_images import decoding, heavy, light
from benchmarks._extract_memory import memory
from benchmarks._extract_resume import resume
from benchmarks._extract_sentences import sentences, tokenizing
from benchmarks._timing import Line, machine, record, table
from dimefm.runtime.versions import libraries

DATA = Path(__file__).parents[2] / "shared/data"
PARTS = ("images", "light", "decode", "sentences", "tokenizer", "resume", "memory")
FULL = {
    "images": 2000,
    "heavy": 512,
    "batch": 64,
    "sentences": 20_000,
    "slow": 1024,
    "shards": 1000,
    "repeats": 3,
}
QUICK = {
    "images": 256,
    "heavy": 64,
    "batch": 32,
    "sentences": 2000,
    "slow": 128,
    "shards": 200,
    "repeats": 1,
}


def sections(
    sizes: Sizes, parts: Sequence[str], towers: Sequence[str], text_tower: str, compiling: bool
) -> tuple[list[tuple[str, list[Line]]], list[str]]:
    """Return (title, lines) of the parts asked for, and what was left out."""
    found: list[tuple[str, list[Line]]] = []
    left = (
        []
        if sizes.data
        else ["no real pictures and sentences (--data FOLDER): made ones take their place"]
    )
    made = photos(sizes) if {"images", "light", "decode", "memory"} & set(parts) else None
    if "images" in parts:
        for arch in towers:
            title = f"Images, {sizes.heavy:,} JPEGs: {made.note}; {sizes.batch} at a time"
            found.append((title, heavy(sizes, made, arch, compiling)))
    if "light" in parts:
        title = (
            "Images through a mobile-size tower (mobilenetv3_small_050) at 224 pixels,"
            f" {sizes.images:,} JPEGs"
        )
        found.append((title, light(sizes, made)))
    if "decode" in parts:
        found.append(("Decoding alone", decoding(sizes, made)))
    if "sentences" in parts:
        found.append(("Sentences", sentences(sizes, text_tower)))
    if "tokenizer" in parts:
        found.append(("Tokenizers", tokenizing(sizes, text_tower)))
    if "resume" in parts:
        found.append(("Starting a finished extraction again", resume(sizes)))
    if "memory" in parts:
        found.append(("Memory of one extraction", memory(sizes, made)))
    return found, left


def main() -> None:
    """Run the benchmark, print the table and append its lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in FULL.items():
        parser.add_argument(f"--{name}", type=int, help=f"({value}; {QUICK[name]} with --quick)")
    parser.add_argument(
        "--towers", default="ViT-B-32,RN50", help="heavy image towers, comma-separated"
    )
    parser.add_argument("--text-tower", default="ViT-B-32")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled towers out")
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
    parts, towers = options.parts.split(","), options.towers.split(",")
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--parts {', '.join(sorted(wrong))}: expected some of {','.join(PARTS)}")
    numbers = QUICK if options.quick else FULL
    numbers = {name: getattr(options, name) or value for name, value in numbers.items()}
    numbers["heavy"] = min(numbers["heavy"], numbers["images"])
    numbers["batch"] = min(numbers["batch"], numbers["heavy"])
    with tempfile.TemporaryDirectory(prefix="dimefm-bench-", dir=options.folder) as folder:
        sizes = Sizes(**numbers, folder=Path(folder), data=real(options.data))
        place = machine(sizes.folder) | {name: str(value) for name, value in libraries().items()}
        place |= {
            "threads": str(torch.get_num_threads()),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "-"),
        }
        found, left = sections(sizes, parts, towers, options.text_tower, not options.no_compile)
    print("  ".join(f"{name} {value}" for name, value in place.items()))
    print(table(found))
    for line in left:
        print(f"\nnote: {line}")
    if options.out:
        record(
            options.out,
            "extract",
            {**numbers, "quick": options.quick, "parts": parts, "left_out": left},
            found,
            place,
        )


if __name__ == "__main__":
    main()

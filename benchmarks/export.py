"""How quick the graphs of an export are, beside torch.

    python -m benchmarks.export [--models ResNet-mini-64,ViT-T-16] [--batches 1,16] [--repeats 9]
                                [--out results.jsonl]

Towers have random weights. torch and the three sets of graphs (float32, 8-bit, 16-bit weights) run
in turn in one process with the same number of threads; medians; the first round is not counted. The
figures are those of an encoder, from pixels or tokens to embeddings of length 1.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from pathlib import Path

import torch

import dimefm
from benchmarks._timing import Line, Work, interleaved, machine, record, table
from dimefm.models.encoder import Encoder
from dimefm.models.loading import load_encoder
from dimefm.models.onnx_folder import IMAGE, graph_file
from dimefm.runtime.versions import libraries

SETS = ("fp32", "uint8", "fp16")
SENTENCE = "a photo of a small dog on a lawn in front of a red house."
TORCH = "torch"


def encoders_of(model: str, folder: Path) -> dict[str, Encoder]:
    """Return a model in torch, and each set of its exported graphs."""
    dimefm.export(f"{model}/random:0", "onnx", folder)
    encoders = {TORCH: load_encoder(f"{model}/random:0", "cpu")}
    for name in SETS:
        encoders[name] = load_encoder(str(folder / graph_file(IMAGE, name)), "cpu")
    return encoders


def image_works(encoders: dict[str, Encoder], batch: int, times: int) -> dict[str, Work]:
    """Return the encoding of a batch of images by each encoder."""
    pixels = torch.randn(batch, 3, *encoders[TORCH].image_size)

    def run(encoder: Encoder, repeat: int) -> None:
        for _ in range(times):
            encoder.encode_image(pixels)

    return {
        name: Work(functools.partial(run, encoder), times * batch)
        for name, encoder in encoders.items()
    }


def text_works(encoders: dict[str, Encoder], batch: int, times: int) -> dict[str, Work]:
    """Return the encoding of a batch of sentences by each encoder."""
    tokens, _ = encoders[TORCH].tokenize([SENTENCE] * batch)

    def run(encoder: Encoder, repeat: int) -> None:
        for _ in range(times):
            encoder.encode_text(tokens)

    return {
        name: Work(functools.partial(run, encoder), times * batch)
        for name, encoder in encoders.items()
    }


def lines_of(model: str, kind: str, batch: int, works: dict[str, Work], repeats: int) -> list[Line]:
    """Return the speed of each set of graphs beside torch."""
    rates = interleaved(works, repeats)
    lines = []
    for name in SETS:
        item = f"{kind} {model} {batch} {name} / torch"
        what = f"{kind} in batches of {batch}: {name} / torch"
        lines.append(Line(item, what, rates[name], "rows/s", rates[TORCH]))
    return lines


def main() -> None:
    """Run the benchmark, print the table and append its lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="ResNet-mini-64,ViT-T-16", help="comma-separated")
    parser.add_argument("--batches", default="1,16", help="comma-separated")
    parser.add_argument("--times", type=int, default=4, help="batches of a round")
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are appended to")
    options = parser.parse_args()
    batches = [int(number) for number in options.batches.split(",")]
    models = options.models.split(",")
    found = []
    with tempfile.TemporaryDirectory(prefix="dimefm-bench-") as made:
        folder = Path(made)
        place = machine(folder) | {name: str(value) for name, value in libraries().items()}
        place["threads"] = str(torch.get_num_threads())
        place["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "-")
        for model in models:
            encoders = encoders_of(model, folder / model)
            lines: list[Line] = []
            for batch in batches:
                works = image_works(encoders, batch, options.times)
                lines += lines_of(model, "images", batch, works, options.repeats)
                works = text_works(encoders, batch, options.times)
                lines += lines_of(model, "sentences", batch, works, options.repeats)
            found.append((model, lines))
    print("  ".join(f"{name} {value}" for name, value in place.items()))
    print(table(found))
    if options.out:
        settings = {"models": models, "batches": batches, "repeats": options.repeats}
        record(options.out, "export", settings, found, place)


if __name__ == "__main__":
    main()

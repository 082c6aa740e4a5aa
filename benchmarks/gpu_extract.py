"""Extraction on a CUDA device: images and sentences a second, beside the bare forward loop and the
chip's own rate.

    python -m benchmarks.gpu_extract [--arch ViT-L-14] [--images 8192] [--sentences 65536]
    [--precision bf16] [--out FILE]

Weights are random. The bare loop runs the same towers in the same precision over batches that lie
on the device already (sentences: sorted by length and cut behind their last token), so the rest is
what extraction costs: reading, decoding, copying and writing. The chip's rate is that of a large
matrix product in the same precision; the operations of a tower are counted by torch. ``--device
cpu`` runs the same code anywhere, e.g. ``--device cpu --arch ViT-B-32 --images 64 --sentences 256
--batch 16 --precision fp32``. Without CUDA and without ``--device cpu`` one line says so and the
exit status is 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._extract_data import Photos, Sizes, captions, photos, real, written
from benchmarks._extract_images import UNIT, Ours
from benchmarks._timing import Line, Work, interleaved, machine, record, table
from benchmarks.extract import DATA
from dimefm.extract.extract import Settings
from dimefm.models.encoder import Encoder
from dimefm.models.inference.precision import PRECISIONS, computing
from dimefm.models.loading import load_encoder
from dimefm.runtime.versions import libraries

GOAL = (">=", 0.9)
READY = 4  # batches that the bare loop goes round


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations a second of a large square matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(11):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        synchronize(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def operations(run: Callable[[], object]) -> float:
    """Return the floating-point operations of a forward pass; torch counts those of attention only
    when it is unfused.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return float(counter.get_total_flops())


def loop(
    encode: Callable[[Tensor], Tensor], batches: list[Tensor], count: int, device: torch.device
) -> Callable[[int], None]:
    """Return a pass over ``count`` ready batches, the same ones again and again; the round not
    counted takes each once.
    """

    def run(repeat: int) -> None:
        for number in range(count if repeat else len(batches)):
            encode(batches[number % len(batches)])
        synchronize(device)

    return run


def images(
    encoder: Encoder, sizes: Sizes, made: Photos, rate: float, settings: Settings
) -> list[Line]:
    """Time images through extraction and through the bare loop."""
    files = made.files(made.every)
    ready = [encoder.preprocess(Image.open(file)) for file in files[: READY * sizes.batch]]
    batches = list(torch.stack(ready).to(encoder.device).split(sizes.batch))
    ours = Ours(encoder, made.every, sizes, "images", made.warm)
    ours.settings = settings
    count = -(-len(files) // sizes.batch)

    @torch.inference_mode()
    def forward(pixels: Tensor) -> Tensor:
        with computing(encoder.precision, encoder.device):
            return encoder.image_model.encode_image(pixels)

    bare = Work(loop(forward, batches, count, encoder.device), count * sizes.batch)
    seen = interleaved({"ours": Work(ours, len(files)), "bare": bare}, sizes.repeats)
    each = operations(
        lambda: encoder.image_model.encode_image(batches[0][:1].to(weight_dtype(encoder)))
    )
    return [
        Line(
            "gpu images / bare",
            "images, against the bare forward loop",
            seen["ours"],
            UNIT,
            seen["bare"],
            GOAL,
        ),
        Line(
            "gpu images rate",
            "images: part of the rate of a matrix product",
            seen["ours"] * each / rate,
            "of 1",
        ),
        Line(
            "gpu images bare rate",
            "images, bare loop: part of the rate of a matrix product",
            seen["bare"] * each / rate,
            "of 1",
        ),
        Line(
            "gpu images busy",
            "images: part of the time in which the encoder works",
            ours.busy,
            "of 1",
        ),
    ]


def weight_dtype(encoder: Encoder) -> torch.dtype:
    """Return the type of the image tower's weights."""
    return next(encoder.image_model.parameters()).dtype


def sentences(encoder: Encoder, sizes: Sizes, settings: Settings) -> list[Line]:
    """Time sentences through extraction and through the bare loop over batches of similar
    length.
    """
    found = captions(sizes.data, 0, sizes.sentences)
    found = (found * -(-sizes.sentences // len(found)))[: sizes.sentences]
    tokens, lengths = encoder.tokenize(found)
    order = torch.tensor(lengths).argsort(descending=True)
    batches = []
    for part in order.split(sizes.batch):
        longest = int(encoder.lengths_read(tokens[part]).max())
        batches.append(tokens[part, :longest].to(encoder.device))
    warm = written(found[: sizes.batch], sizes.folder / "warm.txt")
    ours = Ours(
        encoder, written(found, sizes.folder / "sentences.txt"), sizes, "sentences", warm, "text"
    )
    ours.settings = settings
    bare = Work(loop(encoder.encode_text, batches, len(batches), encoder.device), len(found))
    seen = interleaved({"ours": Work(ours, len(found)), "bare": bare}, sizes.repeats)
    unit = "sentences/s"
    return [
        Line(
            "gpu sentences / bare",
            "sentences, against the bare loop, sorted",
            seen["ours"],
            unit,
            seen["bare"],
            GOAL,
        ),
        Line(
            "gpu sentences busy",
            "sentences: part of the time in which the encoder works",
            ours.busy,
            "of 1",
        ),
    ]


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="ViT-L-14")
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--sentences", type=int, default=65_536)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="threads that read and decode (all cores)",
    )
    parser.add_argument("--precision", default="bf16", choices=PRECISIONS)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--data", type=Path, default=DATA, help="real sets; made ones where there is no such folder"
    )
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are appended to")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark, print the table and append its lines to a file; return the exit status."""
    options = parsed()
    if options.device != "cpu" and not torch.cuda.is_available():
        print(
            f"no CUDA device that torch {torch.__version__} can use; try --device cpu",
            file=sys.stderr,
        )
        return 2
    encoder = load_encoder(f"{options.arch}/random:0", options.device, options.precision)
    settings = Settings(batch_size=options.batch, workers=options.workers, progress=False)
    with tempfile.TemporaryDirectory(prefix="dimefm-bench-", dir=options.folder) as folder:
        batch = min(options.batch, options.images)
        sizes = Sizes(
            options.images,
            batch,
            batch,
            options.sentences,
            0,
            0,
            options.repeats,
            Path(folder),
            real(options.data),
        )
        place = machine(sizes.folder) | {name: str(value) for name, value in libraries().items()}
        device = encoder.device
        place["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        with computing(options.precision, device):
            rate = matrix_rate(device, PRECISIONS[options.precision] or torch.float32)
        made = photos(sizes)
        what = (
            f"{options.arch}, {options.precision}, {options.batch} at a time, {options.workers}"
            " threads"
        )
        found = [
            (f"Images, {what}; {made.note}", images(encoder, sizes, made, rate, settings)),
            (f"Sentences, {what}", sentences(encoder, sizes, settings)),
            ("Device", [Line("gpu matrix rate", "a large matrix product", rate / 1e12, "TFLOP/s")]),
        ]
    print("  ".join(f"{name} {value}" for name, value in place.items()))
    print(table(found))
    if options.out:
        record(
            options.out,
            "gpu_extract",
            {**vars(options), "folder": None, "out": None, "data": str(options.data)},
            found,
            place,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

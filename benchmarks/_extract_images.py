"""Images through extraction: against the bare forward loop, a plain open_clip script and
clip-retrieval's reader.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import _extract_models as models
from benchmarks import _extract_peers as peers
from benchmarks._extract_data import Photos, Sizes
from benchmarks._timing import Line, Work, interleaved
from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.data.images.decode import photo_of
from dimefm.extract.extract import Report, Settings, extract
from dimefm.models.encoder import Encoder
from dimefm.models.preprocess import decoder

GOALS = {
    "ViT-B-32": {
        "eager bare": 0.95,
        "compiled bare": 1.05,
        "eager script": 1.18,
        "compiled script": 1.3,
    },
    "RN50": {"compiled bare": 1.3},
}
COSINE = (">=", 0.9999)
UNIT = "images/s"


class Ours:
    """``extract`` of a folder into a cache of each round; the round that is not counted sees a few
    images only.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: Path,
        sizes: Sizes,
        name: str,
        warm: Path | None = None,
        kind: str = "image",
    ):
        self.encoder, self.source, self.warm, self.kind = encoder, source, warm or source, kind
        self.settings = Settings(batch_size=sizes.batch, progress=False)
        self.out = sizes.folder / "ours" / name.replace("/", "_")
        self.report: Report | None = None

    def __call__(self, repeat: int) -> None:
        source = self.source if repeat else self.warm
        sources = sorted(source.glob("*.tar")) if source.is_dir() else []
        rows = open_rows(sources or [source], self.kind)
        self.report = extract(self.encoder, rows, self.kind, self.out / str(repeat), self.settings)

    @property
    def cache(self) -> FeatureCache:
        """The cache of the last round."""
        return FeatureCache(max(self.out.iterdir(), key=lambda path: int(path.name)))

    @property
    def busy(self) -> float:
        """The part of the last round in which the encoder worked."""
        return self.report.busy


def bare(encoder: Encoder, photos: Photos, sizes: Sizes, count: int) -> Callable[[int], None]:
    """Return a loop over ready float32 batches through open_clip's own eager forward, in torch's
    default threads.
    """
    files = photos.files(photos.every)[: min(count, 4 * sizes.batch)]
    pixels = torch.stack([encoder.preprocess(Image.open(file)) for file in files])
    batches = [pixels[start : start + sizes.batch] for start in range(0, len(pixels), sizes.batch)]

    def run(repeat: int) -> None:
        with torch.inference_mode():
            for number in range(-(-(count if repeat else sizes.batch) // sizes.batch)):
                encoder.image_model.encode_image(batches[number % len(batches)])

    return run


def heavy(sizes: Sizes, photos: Photos, arch: str, compiling: bool) -> list[Line]:
    """Time a tower that costs more than decoding, in fp32 and in what ``--precision auto`` takes
    here.
    """
    encoder, n = models.eager(arch), sizes.heavy
    ours = Ours(encoder, photos.heavy, sizes, arch, photos.warm)
    saved = sizes.folder / f"{arch.replace('/', '_')}.npy"

    def script(repeat: int) -> None:
        source = photos.heavy if repeat else photos.warm
        peers.script(encoder.image_model, encoder.preprocess, source, sizes.batch, saved)

    quick = models.automatic(encoder)
    mine = {"eager": ours, "auto": Ours(quick, photos.heavy, sizes, f"{arch} auto", photos.warm)}
    if compiling:
        mine["compiled"] = Ours(
            models.compiled(encoder, sizes.batch),
            photos.heavy,
            sizes,
            f"{arch} compiled",
            photos.warm,
        )
    works = {"bare": Work(bare(encoder, photos, sizes, n), n), "script": Work(script, n)}
    works |= {name: Work(run, n) for name, run in mine.items()}
    seen = interleaved(works, sizes.repeats)
    others = {"bare": "the bare forward loop", "script": "a plain open_clip script"}
    lines = []
    for name, other in ((name, other) for other in others for name in mine):
        goal = GOALS.get(arch, {}).get(f"{name.replace('auto', 'eager')} {other}")
        what = (
            f"{arch} {name.replace('auto', f'auto ({quick.precision})')}, against {others[other]}"
            " in fp32"
        )
        item = f"images {arch} {name} / {other}"
        lines.append(
            Line(item, what, seen[name], UNIT, seen[other], None if goal is None else (">=", goal))
        )
    for name, run in mine.items():
        what = f"{arch} {name}: least cosine to the script's rows"
        item = f"images {arch} {name} cosine".replace(" eager", "")
        lines.append(Line(item, what, _least(run.cache, np.load(saved)), "cosine", goal=COSINE))
    what = f"{arch} eager: part of the time in which the encoder works"
    lines.append(Line(f"images {arch} busy", what, ours.busy, "of 1"))
    return lines


def _least(cache: FeatureCache, rows: np.ndarray) -> float:
    """Return the least cosine of two sets of rows in the same order."""
    mine = np.asarray(cache[:], np.float64)
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(rows, axis=1)
    return float(((mine * rows).sum(1) / lengths).min())


def light(sizes: Sizes, photos: Photos) -> list[Line]:
    """Time a mobile-size tower and a tower that does nothing: reading and decoding decide."""
    encoder, n = models.light(sizes.folder / "light"), sizes.images
    nothing, saved = models.null(encoder), sizes.folder / "peer.npy"
    kept = sizes.folder / "kept.npy"

    def peer(run: Callable, model, source: Path, out: Path = saved) -> Work:
        def once(repeat: int) -> None:
            run(model, encoder.preprocess, source if repeat else photos.warm, sizes.batch, out)

        return Work(once, n)

    ours = Ours(encoder, photos.every, sizes, "light", photos.warm)
    empty = Ours(nothing, photos.every, sizes, "null", photos.warm)
    works = {
        "bare": Work(bare(encoder, photos, sizes, n), n),
        "light": Work(ours, n),
        "tars": Work(Ours(encoder, photos.tars, sizes, "tars", photos.warm), n),
        "script": peer(peers.script, encoder.image_model, photos.every, kept),
        "clip-retrieval": peer(peers.clip_retrieval, encoder.image_model, photos.every),
        "clip-retrieval tars": peer(peers.clip_retrieval, encoder.image_model, photos.tars),
        "null": Work(empty, n),
        "null script": peer(peers.script, nothing.image_model, photos.every),
        "null clip-retrieval": peer(peers.clip_retrieval, nothing.image_model, photos.every),
    }
    seen = interleaved(works, sizes.repeats)
    shown = [
        ("light / script", "light", "script", "light tower, against a plain open_clip script", 2),
        (
            "light / clip-retrieval",
            "light",
            "clip-retrieval",
            "light tower, against clip-retrieval's reader, files",
            2,
        ),
        ("light / clip-retrieval tars", "tars", "clip-retrieval tars", "the same, tars", 2),
        ("light / bare", "light", "bare", "light tower, against the bare forward loop", None),
        (
            "null / script",
            "null",
            "null script",
            "null tower, against a plain open_clip script",
            2.5,
        ),
        (
            "null / clip-retrieval",
            "null",
            "null clip-retrieval",
            "null tower, against clip-retrieval's reader, files",
            None,
        ),
    ]
    lines = [
        Line(i, what, seen[a], UNIT, seen[b], None if goal is None else (">=", goal))
        for i, a, b, what, goal in shown
    ]
    what = "light tower: least cosine to the script's rows"
    lines.append(
        Line("light cosine", what, _least(ours.cache, np.load(kept)), "cosine", goal=COSINE)
    )
    lines.append(
        Line(
            "light busy",
            "light tower: part of the time in which the encoder works",
            ours.busy,
            "of 1",
        )
    )
    return lines


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def decoding(sizes: Sizes, photos: Photos) -> list[Line]:
    """Time the decoders alone, from the bytes of a file to what a tower at 224 pixels takes; in one
    thread and in all.
    """
    preprocess = models.LIGHT_PREPROCESS
    files = [file.read_bytes() for file in photos.files(photos.every)[: 4 * sizes.batch]]
    turbo, pil = decoder("turbo", preprocess), decoder("pil", preprocess)

    def one(decode: Callable) -> Work:
        def run(_: int) -> None:
            with _one_torch_thread():
                for file in files:
                    decode(file)

        return Work(run, len(files))

    def every(decode: Callable) -> Work:
        def run(_: int) -> None:
            with _one_torch_thread(), ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(decode, files))

        return Work(run, len(files))

    kinds = {"turbo": turbo, "pil": pil, "pixels": lambda data: photo_of(data).pixels}
    works = {f"{name} one": one(kind) for name, kind in kinds.items()}
    works |= {f"{name} all": every(kind) for name, kind in kinds.items()}
    seen = interleaved(works, sizes.repeats)
    lines = []
    for many, threads in (("one", "one thread"), ("all", f"{os.cpu_count()} threads")):
        what = f"turbo, against open_clip's PIL transform, {threads}"
        lines.append(
            Line(
                f"decode turbo / pil, {many}",
                what,
                seen[f"turbo {many}"],
                UNIT,
                seen[f"pil {many}"],
            )
        )
        what = f"JPEG to pixels without a resize, {threads}"
        lines.append(Line(f"decode pixels, {many}", what, seen[f"pixels {many}"], UNIT))
    return lines

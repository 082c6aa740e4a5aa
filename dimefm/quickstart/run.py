"""The quickstart: the ordinary verbs, one after the other, on small real data. Interrupted, it goes
on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from dimefm.data import open_rows
from dimefm.errors import DataError, RecipeError
from dimefm.evaluate.zero_shot import evaluate
from dimefm.extract.extract import Settings, extract
from dimefm.models import student
from dimefm.models.encoder import Encoder, weights_sha256
from dimefm.models.loading import load_encoder
from dimefm.models.towers import ImageTower
from dimefm.quickstart import data
from dimefm.quickstart.report import draw, markdown, table
from dimefm.recipe import Recipe
from dimefm.runs import folder
from dimefm.runs.scores import Result
from dimefm.storage.files import to_json, write_text
from dimefm.train.trainer import train

DATASETS = ("digits", "shapes")
RECORD, SUMMARY = "quickstart.json", "summary.json"
COMMON: dict = {
    "crop_ratio": (0.75, 4 / 3),
    "flip": 0.0,
    "resize": 0,
    "warmup": 0.3,
    "save_every": 200,
}


def quickstart(
    out: Path, seed: int = 0, echo: Callable[[str], None] = print, scale: float = 1.0
) -> dict:
    """Make data, train a teacher, extract its features, distil a student and score both; return the
    summary.

    ``scale`` is the share of the rows and steps: below 1 it shows the way, not the accuracy; 0.02
    is the least, since a batch must have its rows. Writes ``out/quickstart.json`` (seed, scale,
    counts of the raw data), ``out/summary.json`` (accuracies as fractions, parameters of the image
    towers, seconds), ``out/report.md`` and ``out/report.png``. Everything runs on the CPU and needs
    no network.
    """
    started = time.perf_counter()
    whole = _claim(out, seed, scale)
    if (out / SUMMARY).exists():
        echo(f"{out / SUMMARY}: finished already; give another --out to run it again\n")
        summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        echo(table(summary))
        return summary
    raw = out / "data"
    if not whole:
        echo("1/5 data: real handwritten digits, and scenes drawn here")
        _record(out, seed, scale, data.write(raw, seed, scale))
    echo("2/5 teacher: a small CLIP learns from pairs (you would load ViT-L-14 instead)")
    teacher = _train(_teacher(raw, seed, scale), out / "teacher", echo)
    echo("3/5 extract-features: the teacher runs once over unpaired images and sentences")
    encoder = load_encoder(str(teacher), "cpu")
    for kind, source in (("image", raw / "images.tar"), ("text", raw / "sentences.txt")):
        echo(
            extract(
                encoder, open_rows([source], kind), kind, out / "cache" / f"{kind}s", Settings()
            ).describe()
        )
    echo("4/5 train: a student learns from the cached features; the teacher does not run")
    distilled = _train(_student(raw, out / "cache", seed, scale), out / "student", echo)
    echo("5/5 eval: zero-shot on images that none of them has seen")
    small = load_encoder(str(distilled), "cpu")
    towers = {"teacher": encoder, "student": small, "untrained": untrained(small, distilled, seed)}
    summary = _summarise(towers, raw / "eval", out)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    draw(summary, distilled, out / "report.png")
    write_text(out / "report.md", markdown(summary))
    write_text(out / SUMMARY, to_json(summary))
    echo("\n" + table(summary))
    echo(f"\nwritten: {out / SUMMARY}, {out / 'report.md'}, {out / 'report.png'}")
    return summary


def _claim(out: Path, seed: int, scale: float) -> bool:
    """Make ``out`` the folder of a quickstart from ``seed`` at ``scale`` and return whether its
    data are whole.

    Raises RecipeError when the folder holds one from another seed or scale, or something whose seed
    nobody knows.
    """
    path = out / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        theirs, whole = (record["seed"], record["scale"]), record["data"] is not None
    except FileNotFoundError:
        strange = next(
            (
                name
                for name in ("data", "teacher", "cache", "student", SUMMARY)
                if (out / name).exists()
            ),
            None,
        )
        if strange is not None:
            raise RecipeError(
                f"{out}: holds {strange} but no {RECORD}, so its seed is unknown; give another"
                " --out"
            ) from None
        out.mkdir(parents=True, exist_ok=True)
        _record(out, seed, scale, None)
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: cannot be read ({error!r}); give another --out, or remove that folder"
        ) from error
    for option, begun, asked in zip(("seed", "scale"), theirs, (seed, scale), strict=True):
        if begun != asked:
            raise RecipeError(
                f"{out}: was begun with --{option} {begun}, not {asked}; give that {option}, or"
                " another --out"
            )
    return whole


def _record(out: Path, seed: int, scale: float, sizes: data.Sizes | None) -> None:
    """Write seed and scale, and the counts of the raw data once they are all there."""
    counts = None if sizes is None else dataclasses.asdict(sizes)
    write_text(out / RECORD, to_json({"seed": seed, "scale": scale, "data": counts}))


def _teacher(raw: Path, seed: int, scale: float) -> Recipe:
    """A CLIP from pairs: ResNet-10-T at 32 pixels and a two-layer text tower."""
    return Recipe(
        images=(str(raw / "pairs.tar"),),
        student="ResNet10t-32",
        text="student",
        losses={"clip.contrastive": {"weight": 1.0}},
        batch_size=64,
        steps=round(800 * scale),
        lr=2e-3,
        min_lr=2e-5,
        warmup_lr=2e-5,
        beta2=0.98,
        grad_clip_norm=1.0,
        crop_scale=(0.7, 1.0),
        device="cpu",
        seed=seed,
        **COMMON,
    )


def _student(raw: Path, cache: Path, seed: int, scale: float) -> Recipe:
    """DIME-FM's recipe (0.7 VL + 0.3 P-VL) on a ResNet of 0.4 M parameters."""
    return Recipe(
        images=(str(raw / "images.tar"),),
        image_cache=(str(cache / "images"),),
        text_cache=(str(cache / "texts"),),
        student="ResNet-mini-32",
        losses={"dime.vl": {"weight": 0.7}, "dime.pvl": {"weight": 0.3}},
        batch_size=128,
        texts_per_step=256,
        steps=round(900 * scale),
        lr=3e-3,
        min_lr=3e-5,
        warmup_lr=3e-5,
        beta2=0.98,
        grad_clip_norm=1.0,
        crops="free",
        crop_scale=(0.8, 1.0),
        device="cpu",
        seed=seed,
        **COMMON,
    )


def _train(recipe: Recipe, out: Path, echo: Callable[[str], None]) -> Path:
    return out if (out / folder.FILE).exists() else train(recipe, out, resume=True, echo=echo)


def untrained(encoder: Encoder, run: Path, seed: int) -> Encoder:
    """Return the encoder of a distilled run with its image tower as it was before the first
    step.
    """
    config = folder.read(run).model_cfg
    spec = student.StudentSpec(config, config["vision_cfg"]["image_size"])
    tower: ImageTower = (
        student.build(spec, both_towers=False, seed=seed)[0].eval().requires_grad_(False)
    )
    card = dataclasses.replace(
        encoder.card, name="untrained student", weights_sha256=weights_sha256(tower)
    )
    return dataclasses.replace(encoder, card=card, image_model=tower)


def rows_per_second(encoder: Encoder, rows: int = 512) -> float:
    """Return how many images a second the image tower encodes: the median of five passes over ready
    pixels.
    """
    size = encoder.card.preprocess["size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    pixels = torch.zeros(rows, 3, height, width)
    encoder.encode_image(pixels)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        encoder.encode_image(pixels)
        seconds.append(time.perf_counter() - started)
    return rows / float(np.median(seconds))


def _summarise(encoders: dict[str, Encoder], root: Path, out: Path) -> dict:
    """Score the encoders on the test sets in ``root``; return the summary without the seconds."""

    def fail(name: str, error: Exception) -> NoReturn:
        raise DataError(f"{root}: {name} could not be scored: {error}") from error

    results: dict[str, list[Result]] = {}
    for name, encoder in encoders.items():
        folder = out / "eval" / name
        results[name] = evaluate(encoder, root, names=DATASETS, out=folder, on_failure=fail)

    summary: dict = {}
    for name in encoders:
        summary[f"{name}_accuracy"] = float(np.mean([result.value for result in results[name]]))
    summary["chance"] = float(np.mean([result.chance for result in results["teacher"]]))
    for name in ("teacher", "student"):
        summary[f"{name}_params"] = encoders[name].image_parameters
    summary["text_params"] = encoders["teacher"].text_parameters
    for name in ("teacher", "student"):
        summary[f"{name}_rows_per_s"] = round(rows_per_second(encoders[name]))
    datasets: dict[str, dict] = {}
    for result in results["teacher"]:
        datasets[result.dataset] = {"chance": result.chance, "images": result.samples}
    for name in encoders:
        for result in results[name]:
            datasets[result.dataset][name] = result.value
    summary["datasets"] = datasets
    return summary

"""The quickstart: data, teacher, extraction, student and evaluation, one after the other.

An interrupted quickstart resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, cast

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
from dimefm.storage.files import to_json, write_report, write_text
from dimefm.storage.out_folder import refuse_foreign
from dimefm.storage.small_files import read_json
from dimefm.train.trainer import train

DATASETS = ("digits", "shapes")
RECORD = "quickstart.json"
SUMMARY = "summary.json"
RESULTS = ("data", "teacher", "cache", "student", SUMMARY)
"""What a quickstart makes in its folder."""

COMMON: dict = {
    "crop_ratio": (0.75, 4 / 3),
    "flip": 0.0,
    "resize": 0,
    "warmup": 0.3,
    "save_every": 200,
}
"""Keys that both recipes share."""


def quickstart(
    out: Path, seed: int = 0, echo: Callable[[str], None] = print, scale: float = 1.0
) -> dict:
    """Make data, train a teacher, extract its features, distil a student and score both.

    ``scale`` is the share of the samples and steps: a value below 1 shows the steps, not the
    accuracy; 0.02 is the least, since a batch must be full. Everything runs on the CPU and needs no
    network.

    Writes ``out/quickstart.json`` (seed, scale, counts of the raw data), ``out/summary.json``
    (accuracies as fractions, parameters of the image towers, seconds), ``out/report.md`` and
    ``out/report.png``. Returns the summary.
    """
    started = time.perf_counter()
    data_is_whole = _claim(out, seed, scale)
    if (out / SUMMARY).exists():
        echo(f"{out / SUMMARY}: finished already; give another --out to run it again\n")
        summary = read_json(out / SUMMARY)
        echo(table(summary))
        return summary
    raw = out / "data"
    cache = out / "cache"
    if not data_is_whole:
        echo("1/5 data: real handwritten digits, and scenes drawn here")
        sizes = data.write(raw, seed, scale)
        _write_record(out, seed, scale, sizes)

    echo("2/5 teacher: a small CLIP learns from pairs (you would load ViT-L-14 instead)")
    teacher_run = _train(_teacher(raw, seed, scale), out / "teacher", echo)

    echo("3/5 extract-features: the teacher runs once over unpaired images and sentences")
    teacher = load_encoder(str(teacher_run), "cpu")
    _extract(teacher, "image", raw / "images.tar", cache / "images", echo)
    _extract(teacher, "text", raw / "sentences.txt", cache / "texts", echo)

    echo("4/5 train: a student learns from the cached features; the teacher does not run")
    student_run = _train(_student(raw, cache, seed, scale), out / "student", echo)

    echo("5/5 eval: zero-shot on images that none of them has seen")
    distilled = load_encoder(str(student_run), "cpu")
    encoders = {
        "teacher": teacher,
        "student": distilled,
        "untrained": untrained(distilled, student_run, seed),
    }
    summary = _summarize(encoders, raw / "eval", out)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    draw(summary, student_run, out / "report.png")
    write_report(out / "report.md", markdown(summary))
    write_text(out / SUMMARY, to_json(summary))
    echo("\n" + table(summary))
    echo(f"\nwritten: {out / SUMMARY}, {out / 'report.md'}, {out / 'report.png'}")
    return summary


def _claim(out: Path, seed: int, scale: float) -> bool:
    """Make ``out`` the folder of this seed and scale; return whether its data are whole.

    Raises RecipeError when the folder holds a quickstart of another seed or scale, or files of an
    unknown seed.
    """
    path = out / RECORD
    try:
        record = read_json(path)
        recorded = {"seed": record["seed"], "scale": record["scale"]}
        data_is_whole = record["data"] is not None
    except FileNotFoundError:
        _refuse_unknown_files(out)
        refuse_foreign(out, "quickstart", [RECORD])
        out.mkdir(parents=True, exist_ok=True)
        _write_record(out, seed, scale, None)
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: cannot be read ({error!r}). Fix: give another --out, or remove that folder"
        ) from error
    for option, value in (("seed", seed), ("scale", scale)):
        if recorded[option] != value:
            raise RecipeError(
                f"{out}: was begun with --{option} {recorded[option]}, not {value}. Fix: give that"
                f" {option}, or another --out"
            )
    return data_is_whole


def _refuse_unknown_files(out: Path) -> None:
    """Raise RecipeError when ``out`` holds results whose seed is not recorded."""
    for name in RESULTS:
        if (out / name).exists():
            raise RecipeError(
                f"{out}: holds {name} but no {RECORD}, so its seed is unknown. Fix: give another"
                " --out"
            ) from None


def _write_record(out: Path, seed: int, scale: float, sizes: data.Sizes | None) -> None:
    """Write seed and scale, and the counts of the raw data once they are whole."""
    counts = None if sizes is None else dataclasses.asdict(sizes)
    write_text(out / RECORD, to_json({"seed": seed, "scale": scale, "data": counts}))


def _extract(
    teacher: Encoder, kind: str, source: Path, cache: Path, echo: Callable[[str], None]
) -> None:
    """Extract the teacher's features of one source into a cache."""
    rows = open_rows([source], kind)
    outcome = extract(teacher, rows, kind, cache, Settings())
    echo(outcome.describe())


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
    """Return the run folder, after training unless the run is finished already."""
    if (out / folder.FILE).exists():
        return out
    return train(recipe, out, resume=True, echo=echo)


def untrained(encoder: Encoder, run: Path, seed: int) -> Encoder:
    """Return the encoder of a distilled run with its image tower before the first step."""
    config = folder.read(run).model_cfg
    spec = student.StudentSpec(config, config["vision_cfg"]["image_size"])
    model, _ = student.build(spec, both_towers=False, seed=seed)
    tower = cast(ImageTower, model.eval().requires_grad_(False))
    card = dataclasses.replace(
        encoder.card,
        name="untrained student",
        weights_sha256=weights_sha256(tower),
    )
    return dataclasses.replace(encoder, card=card, image_model=tower)


def rows_per_second(encoder: Encoder, rows: int = 512) -> float:
    """Return how many images a second the image tower encodes, without reading and decoding.

    This is the median of five passes.
    """
    size = encoder.card.preprocess["size"]
    if isinstance(size, list | tuple):
        height, width = size
    else:
        height = width = size
    pixels = torch.zeros(rows, 3, height, width)
    encoder.encode_image(pixels)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        encoder.encode_image(pixels)
        seconds.append(time.perf_counter() - started)
    return rows / float(np.median(seconds))


def _summarize(encoders: dict[str, Encoder], root: Path, out: Path) -> dict:
    """Score the encoders on the test sets in ``root``; return the summary without the seconds."""

    def fail(name: str, error: Exception) -> NoReturn:
        raise DataError(f"{root}: {name} could not be scored: {error}") from error

    results: dict[str, list[Result]] = {}
    for name, encoder in encoders.items():
        place = out / "eval" / name
        results[name] = evaluate(encoder, root, names=DATASETS, out=place, on_failure=fail)

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

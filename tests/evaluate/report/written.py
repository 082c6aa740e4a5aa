"""Scores, runs, datasets and examples in folders, as evaluations leave them."""

import io
import json

import numpy as np
from PIL import Image

from dimefm.runs.record import RunRecord
from dimefm.runs.scores import Result, Scores, ZeroShotScores, write_scores


def result(dataset, value, chance=0.1, samples=100, note=""):
    """Return a result of zero-shot classification."""
    return Result(
        task="zero-shot",
        dataset=dataset,
        metrics={"accuracy": value},
        main_metric="accuracy",
        samples=samples,
        chance=chance,
        note=note,
        details={"classes": 10, "templates": 1},
    )


def zero_shot(folder, model, weights, results, image_parameters=1_000_000):
    """Write the scores of a zero-shot evaluation; return their folder."""
    scores = ZeroShotScores(
        model=model,
        weights_sha256=weights,
        image_parameters=image_parameters,
        text_parameters=2_000_000,
        by_tokens=False,
        protocol="a protocol",
        results=results,
        mean=0.5,
        not_in_mean=[],
        is_elevater_average=False,
        missing=[],
        failed=[],
        pending=[],
        seconds=1.0,
    )
    folder.mkdir(parents=True)
    write_scores(folder, scores, "# Zero-shot scores\n")
    return folder


def pair(root):
    """Write a run folder with a student's scores, and its teacher's scores; return both folders."""
    run = root / "runs/small"
    student = [result("digits", 0.4), result("shapes", 0.6)]
    zero_shot(run / "scores", "runs/small", "5" * 64, student, image_parameters=250_000)
    card = {"name": "large", "weights_sha256": "7" * 64}
    record = RunRecord("image-tower", teacher=card, fingerprints={"image_cache": ["c" * 64]})
    (run / "run.json").write_text(record.to_json())
    (run / "recipe.toml").write_text('student = "ResNet-mini-32"\n[losses]\n"dime.vl" = 0.7\n')
    teacher = [result("digits", 0.8), result("shapes", 0.8, note="50 of 100 images")]
    large = zero_shot(root / "large", "ARCH/large", "7" * 64, teacher)
    return run, large


def dataset(root, name, classes, images=3):
    """Write a dataset of class folders with images of noise; return the keys of its images."""
    keys = []
    for label in classes:
        folder = root / name / "test" / label
        folder.mkdir(parents=True)
        for number in range(images):
            (folder / f"{number}.png").write_bytes(png(len(keys)))
            keys.append(f"{label}/{number}.png")
    return keys


def png(seed, size=(40, 30)):
    """Return the bytes of an image of noise."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def mistakes(folder, entries):
    """Write ``wrong.jsonl``: a line for each (dataset, source, row, key, label, predicted)."""
    names = ("dataset", "source", "row", "key", "label", "predicted")
    lines = []
    for number, entry in enumerate(entries):
        probability = round(0.9 - number / 100, 6)
        line = {**dict(zip(names, entry, strict=True)), "probability": probability}
        lines.append(json.dumps(line) + "\n")
    (folder / "wrong.jsonl").write_text("".join(lines))


def probes(folder, model, weights, tables):
    """Write scores of probes; ``tables`` are (task, dataset, scores of the seeds)."""
    results = []
    for task, name, values in tables:
        seeds = [{"seed": seed, "value": value} for seed, value in enumerate(values)]
        mean = sum(values) / len(values)
        details = {"seeds": seeds}
        results.append(Result(task, name, {"accuracy": mean}, "accuracy", 50, details=details))
    folder.mkdir(parents=True)
    write_scores(folder, Scores(model, weights, "a protocol", results), "# Scores\n")
    return folder

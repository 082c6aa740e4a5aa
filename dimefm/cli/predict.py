"""``dimefm predict``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from dimefm.cli._options import ManyValues
from dimefm.cli._output import exit_with, result
from dimefm.errors import DataError
from dimefm.models.spec_paths import refuse_unknown_models
from dimefm.runtime import console
from dimefm.runtime.printable import one_line

WIDTH = 80  # columns
EMBEDDED = (".json", ".safetensors")


@click.command(
    "predict",
    cls=ManyValues,
    sections={"--labels": "Classes", "--text-model": "Model"},
    short_help="Classify images by labels that you name.",
)
@click.argument("model", metavar="MODEL")
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path)
)
@click.option(
    "--labels",
    required=True,
    metavar="A,B,C|FILE",
    help="Labels with commas between them, a file with one a line, or the labels.json of an"
    " export.",
)
@click.option(
    "--templates",
    multiple=True,
    metavar="TEXT|FILE...",
    help="Sentences with {label} where the label goes, or a file with one a line; their embeddings"
    " are averaged.  [default: 'a photo of a {label}.']",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    metavar="K",
    help="Labels to print for each image.",
)
@click.option(
    "--text-model",
    metavar="SPEC",
    help="Text tower of a distilled run: its teacher, or a text tower's run.  [default: the one"
    " that the run names]",
)
@click.option(
    "--preprocess",
    metavar="TAG|FILE",
    help="How the weights of ARCH/FILE see images.  [default: as all tags of ARCH]",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Device to compute on: cpu, cuda, mps, cuda:1.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="N",
    help="Images to encode at once.",
)
def command(model, images, labels, templates, top, text_model, preprocess, device, batch_size):
    """Classify images zero-shot: which of the labels fits each image best.

    MODEL is a run folder, ARCH/TAG of open_clip, or any other --teacher SPEC. IMAGE is an image
    file, or a folder of them.

    The sentence "a photo of a {label}." stands for a label. Scores are a softmax over the labels of
    the model's logit scale times the cosines, so they sum to 100 %; those of a SigLIP are a sigmoid
    of each label alone. An image that cannot be read is named, the others are answered, and the
    exit code is 1.

    \b
    Example:
      dimefm predict runs/first photos/ --labels cat,dog,"traffic light"
      dimefm predict ViT-B-32/openai 1.jpg --labels names.txt --top 1 --json
    """
    refuse_unknown_models(model, text_model)
    names = _labels(labels)
    texts = _templates(templates)

    from dimefm.evaluate.predict import files_of, predict
    from dimefm.models.model import load

    files = files_of(images)
    loaded = load(model, device, "fp32", text_model, preprocess)
    for note in loaded.encoder.notes:
        if note.startswith("note:"):
            console.note(note)
        else:
            console.detail(note)
    classifier = _classifier(loaded, names, texts)
    predictions = []
    for prediction in predict(loaded, classifier, files, top, batch_size):
        predictions.append(prediction)
        if prediction.error is not None:
            click.echo(f"Error: {one_line(prediction.error)}", err=True)
            exit_with(1)
        else:
            result(describe(prediction, top))
    return {
        "model": loaded.name,
        "scores": classifier.rule,
        "predictions": [prediction.to_json() for prediction in predictions],
    }


def describe(prediction, top: int) -> str:
    """Return the labels of an image in lines of at most 80 columns; in one line for one label."""
    name = _fitting(one_line(prediction.image), WIDTH)
    lines = []
    for label, score in prediction.labels.items():
        text = one_line(label)
        if top == 1:
            text = f"{text}  {name}"
        lines.append(_fitting(f"{100 * score:7.1f} %  {text}", WIDTH))
    if top == 1:
        return lines[0]
    return "\n".join([name, *lines])


def _fitting(text: str, width: int) -> str:
    """Return a text of at most ``width`` characters; what is left out of its middle is '...'."""
    if len(text) <= width:
        return text
    left = (width - 3) // 2
    return f"{text[:left]}...{text[left + 3 - width :]}"


def _labels(value: str) -> list[str] | Path:
    """Return the labels that an option names, or the file of an export."""
    path = Path(value)
    if os.path.isfile(value):
        return path if path.suffix in EMBEDDED else _lines(path)
    if "," in value:
        return [name for name in value.split(",") if name.strip()]
    if path.suffix in (*EMBEDDED, ".txt"):
        raise DataError(f"--labels {value}: no such file. Fix: check the path")
    return [value]


def _templates(values: tuple[str, ...]) -> list[str]:
    """Return the templates that an option names, the lines of a file in place of its name."""
    texts = []
    for value in values:
        texts += _lines(Path(value)) if os.path.isfile(value) else [value]
    return texts


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank."""
    from dimefm.storage.small_files import Unreadable, read_text

    try:
        text = read_text(path)
    except (OSError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}. Fix: check the file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _classifier(model, names: list[str] | Path, templates: list[str]):
    """Return the classifier of labels, or of embeddings that an export has."""
    from dimefm.models.classify import Classifier

    if not isinstance(names, Path):
        return model.classifier(names, templates) if templates else model.classifier(names)
    if templates:
        raise click.UsageError(f"{names} has templates of its own. Fix: remove --templates")

    from dimefm.export.labels import read

    labels = read(names, model)
    card = model.encoder.card
    return Classifier(labels.names, labels.embeddings, card.logit_scale, card.logit_bias)

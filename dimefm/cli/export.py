"""``dimefm export``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import ManyValues
from dimefm.cli._output import result
from dimefm.models.spec_paths import refuse_unknown_models

FORMATS = ("open_clip", "hf", "onnx", "web")
SETTINGS = ("opset", "weights", "ort_web")
"""Options of one or two formats alone."""


@click.command(
    "export",
    cls=ManyValues,
    sections={
        "--to": "Export",
        "--opset": "ONNX and web",
        "--check-images": "Checks",
        "--text-model": "Model",
    },
    short_help="Write a model for another program: open_clip, transformers, ONNX, a browser.",
)
@click.argument("model", metavar="MODEL")
@click.option(
    "--to",
    required=True,
    type=click.Choice(FORMATS),
    help="Format of the export.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; an earlier export in it is replaced.",
)
@click.option(
    "--labels",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Class names, a line each or as JSON, or class embeddings, to export as embeddings.",
)
@click.option(
    "--opset",
    type=int,
    metavar="N",
    help="Operator set of the ONNX graphs, 18 to 23; 20 suits most programs.",
)
@click.option(
    "--weights",
    type=click.Choice(("fp32", "fp16", "uint8")),
    help="Weights of the graphs in a web folder; fp16 unless you choose.",
)
@click.option(
    "--ort-web",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Runtime for a web folder: the npm package onnxruntime-web, as its tarball or folder.",
)
@click.option(
    "--check-images",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Images on which model and export are compared.  [default: images of the run, else drawn"
    " pictures]",
)
@click.option(
    "--eval-root",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder with one folder per dataset, to score model and export on.",
)
@click.option(
    "--datasets",
    multiple=True,
    metavar="NAME...",
    help="Benchmarks or folders in --eval-root.  [default: all with a card that are found]",
)
@click.option(
    "--least-cosine",
    type=click.FloatRange(-1, 1),
    metavar="COSINE",
    help="Limit below which no embedding may agree with the model's.  [default: the format's own]",
)
@click.option(
    "--most-loss",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Limit of what a score in 0..1 may lose.",
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
    help="Preprocessing of a model that is ARCH/FILE: a tag of ARCH, or an open_clip_config.json.",
)
def command(model, to, out, **flags):
    """Write MODEL to a new folder for another program, check it, and add a model card.

    MODEL is a run folder, ARCH/TAG of open_clip, or any other --teacher SPEC. The export is always
    a whole CLIP: a distilled tower and the tower that it borrowed from its teacher, in one folder
    that needs nothing else.

    What was written is loaded again and compared with MODEL. When it differs by more than the
    limits allow, the command fails and leaves nothing behind.

    \b
    Example:
      dimefm export runs/first --to open_clip --out exported
      dimefm export runs/first --to onnx --labels classes.txt --eval-root datasets --out small
    """
    refuse_unknown_models(model, flags["text_model"])

    from dimefm.export.job import Request, run

    settings = {name: flags.pop(name) for name in SETTINGS}
    settings = {name: value for name, value in settings.items() if value is not None}
    exported = run(Request(model, to, out, **flags, settings=settings))
    result(exported.describe())
    return exported

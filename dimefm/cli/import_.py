"""``dimefm import``."""

from __future__ import annotations

from pathlib import Path

import click

from dimefm.cli._options import CONTEXT
from dimefm.cli._output import result
from dimefm.models.spec_paths import refuse_unknown_models

FAMILIES = ("auto", "openai", "open_clip", "dime-fm", "clip-kd", "tinyclip", "declip")


@click.command(
    "import",
    context_settings=CONTEXT,
    short_help="Make a run folder of a published checkpoint.",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    default="auto",
    show_default=True,
    help="Layout of the file. auto: as the names in the file tell.",
)
@click.option(
    "--student",
    metavar="NAME",
    help="Architecture, as in train --student.  [default: as the shapes in the file tell]",
)
@click.option(
    "--teacher",
    "--text-model",
    metavar="SPEC",
    help="Encoder whose text tower goes with an image tower alone: the teacher of DIME-FM's"
    " students is ViT-L-14/openai.",
)
@click.option(
    "--preprocess",
    metavar="TAG|FILE",
    help="How weights of open_clip see images: the tag that the file holds, or its"
    " open_clip_config.json.  [default: as all tags of the architecture]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder to write.",
)
def command(file, family, student, teacher, preprocess, out):
    """Make a run folder of a published checkpoint, for eval, predict, export and train.

    FILE is a .pt, .pth, .pth.tar or .safetensors file as OpenAI, open_clip, DIME-FM, CLIP-KD,
    TinyCLIP or DeCLIP published it. Nothing in it is executed. Every tensor must have its place in
    the model, and every weight of the model must be in the file; else all that does not fit is
    listed, and nothing is written.

    \b
    Example:
      dimefm import ViT_B_16_cc12m.pt --family clip-kd --out runs/clip-kd
      dimefm import checkpoint.pth.tar --teacher ViT-L-14/openai --out runs/dime
    """
    refuse_unknown_models(teacher)

    from dimefm.models.weights.importing import import_checkpoint

    imported = import_checkpoint(file, out, family, student, teacher, preprocess)
    result(describe(imported))
    return imported


def describe(imported) -> str:
    """Return what was imported, for people."""
    towers = f"image tower of {imported.image_parameters:,} weights"
    if imported.text_parameters is None:
        towers += ", text tower of its teacher"
    else:
        towers += f", text tower of {imported.text_parameters:,}"
    return (
        f"{imported.out}: {imported.student} ({imported.family})\n"
        f"  {imported.tensors:,} tensors: all fit\n"
        f"  {towers}\n"
        f"  {imported.image_size} pixels to {imported.dim} numbers,"
        f" logit scale {imported.logit_scale:.4g}"
    )

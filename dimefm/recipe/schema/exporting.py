"""Keys of an export: the table ``[export]`` of a pipeline file."""

from __future__ import annotations

from typing import ClassVar

from dimefm.recipe.keys import OneOrMore, key
from dimefm.recipe.section import Section


class Export(Section):
    """How the student leaves."""

    title: ClassVar[str] = "Export"

    to: OneOrMore = key(
        ("open_clip",),
        "Formats to export to: open_clip, hf, onnx, web.",
        metavar="NAME...",
        flag=False,
    )
    labels: str | None = key(
        None,
        "File of class names or class embeddings, which are exported as embeddings.",
        metavar="FILE",
    )
    check_images: str | None = key(
        None,
        "Images on which model and export are compared.",
        metavar="DIR",
        unset="images of the run",
    )
    least_cosine: float | None = key(
        None,
        "Limit below which no embedding may agree with the model's.",
        metavar="COSINE",
        unset="the format's own",
    )
    most_loss: float = key(
        0.01,
        "Limit of what a score in 0..1 may lose, where [eval] names datasets.",
        metavar="SHARE",
        ge=0,
    )

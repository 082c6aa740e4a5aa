"""The formats of exports by name, and what a format's module has.

=============  ==================================================================================
``check``      ``(whole, options) -> None``: raise ModelError, before anything is written, for a
               model that the format cannot express. The message has the way that works.
``write``      ``(whole, folder, options) -> dict``: write the files into an empty folder; return
               facts for ``export.json`` and the card
``variants``   ``(whole, folder, options) -> list[Variant]``: load again what was written, for the
               gate
``USAGE``      name of a file in ``usage/``: how to load the folder, as Markdown, with the word
               FOLDER for its path
``TAGS``       dict: ``library_name`` and ``pipeline_tag`` of the model card
``SETTINGS``   names of the options that the format alone has; may be left out
=============  ==================================================================================
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from dimefm.errors import RecipeError, did_you_mean
from dimefm.export.labels import Labels
from dimefm.models.encoder import Encoder

FORMATS = {
    "open_clip": "dimefm.export.open_clip",
    "hf": "dimefm.export.hf",
    "onnx": "dimefm.export.onnx",
    "web": "dimefm.export.web",
}
"""Name of each format -> its module."""


@dataclass(frozen=True)
class Options:
    """What a format is told besides the model.

    ``labels`` are class embeddings that were asked for; a format may leave out the text tower then.
    ``has_labels`` says so before they are computed, when the model is checked. ``settings`` are
    options of one format alone.
    """

    labels: Labels | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    has_labels: bool = False


@dataclass(frozen=True)
class Variant:
    """One set of towers that an export holds, as an encoder that runs them.

    ``least_cosine`` is the limit of the gate: no embedding may be further from its original.
    ``has_text`` is False where the text tower was left out. ``plain_texts`` says that the tokenizer
    does not clean texts as open_clip does, so only plain prompts are compared.
    """

    name: str
    encoder: Encoder
    least_cosine: float
    has_text: bool = True
    plain_texts: bool = False


def format_of(name: str) -> ModuleType:
    """Return the module of a format; raise RecipeError with the nearest name."""
    if name not in FORMATS:
        raise RecipeError(f"unknown export format '{name}': {did_you_mean(name, FORMATS)}")
    try:
        return importlib.import_module(FORMATS[name])
    except ModuleNotFoundError as error:
        package = error.name or ""
        if package.startswith("dimefm"):
            raise RecipeError(
                f"--to {name}: this build has no such format. Fix: use another format"
            ) from error
        raise RecipeError(
            f"--to {name}: the package {package} is not installed. Fix: pip install"
            " 'dimefm[export]'"
        ) from error

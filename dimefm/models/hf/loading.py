"""Load a folder of transformers, or a name on the hub, as a model with the face of open_clip's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from dimefm.errors import ModelError
from dimefm.models.hf.config import read_config, refuse_too_large
from dimefm.models.hf.families import CONFIG
from dimefm.models.hf.model import HfClip
from dimefm.models.hf.processor import preprocess_of
from dimefm.models.hf.tokenizer import FolderTokenizer, tokenizer_of
from dimefm.models.hf.weights import load as load_weights
from dimefm.models.open_clip import reason_of


def load_folder(
    spec: str, folder: Path, preprocess: dict | None = None
) -> tuple[HfClip, Callable[[], FolderTokenizer]]:
    """Return the model of a folder, and what returns its tokenizer.

    ``preprocess`` replaces what the folder says of images. Raises ModelError for anything that is
    missing, not allowed, or not to be expressed.
    """
    require_transformers(spec)
    config = read_config(folder)
    if preprocess is None:
        preprocess = preprocess_of(folder)
    parameters = refuse_too_large(config, folder / CONFIG)
    tokenizer = tokenizer_of(config, folder)
    model = HfClip(load_weights(config, folder, parameters), config, preprocess)
    model.pad = tokenizer.pad
    model.context_length = tokenizer.context_length
    _refuse_other_dims(model, folder)
    return model, lambda: tokenizer


@torch.inference_mode()
def _refuse_other_dims(model: HfClip, folder: Path) -> None:
    """Raise ModelError unless an image and a text become rows of one length."""
    size = model.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    shapes = []
    try:
        for rows in (
            model.encode_image(torch.zeros(1, 3, height, width)),
            model.encode_text(torch.full((1, model.context_length), model.pad)),
        ):
            shapes.append(list(rows.shape))
    except Exception as error:  # an odd config may build a model that does not run
        kind = "a text" if shapes else f"an image of {height} x {width} pixels"
        raise ModelError(
            f"{folder}: cannot encode {kind}: {reason_of(error)}. Fix: restore its config"
        ) from error
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ModelError(
            f"{folder}: an image becomes {shapes[0]} numbers and a text {shapes[1]}, expected rows"
            " of one length. Fix: restore its config"
        )


def require_transformers(spec: str) -> None:
    """Raise ModelError when the package transformers is not installed."""
    if "transformers" in sys.modules:
        installed = sys.modules["transformers"] is not None
    else:
        installed = importlib.util.find_spec("transformers") is not None
    if not installed:
        raise ModelError(
            f"{spec}: needs the package transformers, which is not installed. Fix: pip install"
            " 'dimefm[hf]'"
        )

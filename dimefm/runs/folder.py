"""Run folders: what training leaves behind and evaluation takes up.

``run.json`` says what the folder holds. A CLIP trained here (``"kind": "clip"``) is also a whole
open_clip folder (``open_clip_config.json``, ``open_clip_model.safetensors``). A distilled image
tower (``"kind": "image-tower"``) keeps its weights in ``image_tower.safetensors`` under open_clip's
names and the identity of the teacher whose text tower it uses; a distilled text tower (``"kind":
"text-tower"``) likewise, in ``text_tower.safetensors``. A CLIP that learnt to compare patches with
words keeps the maps of both in ``token_maps.safetensors``, and ``"token_maps"`` in the record says
so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.storage.files import commit

FILE = "run.json"
LOG = "log.jsonl"  # one object per logged step
IMAGE_TOWER, TEXT_TOWER = "image_tower.safetensors", "text_tower.safetensors"
TOKEN_MAPS = "token_maps.safetensors"
KINDS = {
    "clip": "open_clip_model.safetensors",
    "image-tower": IMAGE_TOWER,
    "text-tower": TEXT_TOWER,
}  # kind -> weights


def read(folder: Path) -> dict:
    """Return the record of a run folder; raise ModelError when it is damaged."""
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        known = record["kind"] in KINDS
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / FILE}: cannot be read ({error}); train again or restore it"
        ) from error
    if not known:
        raise ModelError(
            f"{folder / FILE}: kind '{record['kind']}', expected one of {', '.join(KINDS)}; use a"
            " newer dimefm"
        )
    return record


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, atomically."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(
        save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    )
    commit(part, path)


def load_weights(
    module: nn.Module, path: Path, renamed: Callable[[dict], dict] | None = None
) -> None:
    """Load a safetensors file into ``module``, strictly; raise ModelError when it does not fit.

    ``renamed`` turns the names in the file into those of ``module``.
    """
    try:
        tensors = load_file(path)
        if renamed is not None:
            tensors = renamed(tensors)
        module.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: the weights do not load ({reason}); train again or restore the file"
        ) from error

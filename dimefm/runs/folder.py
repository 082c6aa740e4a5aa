"""Read and write run folders: the results of training, which evaluation and export use.

Reading a record imports no torch.

``run.json`` describes the folder, see :class:`~dimefm.runs.record.RunRecord`. The weights depend on
its kind:

* ``"clip"``: a whole CLIP. The folder is also an open_clip folder (``open_clip_config.json``,
  ``open_clip_model.safetensors``).
* ``"image-tower"``: a distilled image tower, under open_clip's names in
  ``image_tower.safetensors``. The record names the teacher whose text tower it uses.
* ``"text-tower"``: a distilled text tower, likewise in ``text_tower.safetensors``.

A CLIP trained to compare patches with words also keeps the projections of both in
``token_maps.safetensors``; the record then has ``"token_maps"``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from dimefm.errors import ModelError
from dimefm.runs.record import FILE, LOG, RunRecord
from dimefm.storage.files import commit
from dimefm.storage.small_files import read_text

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FILE",
    "IMAGE_TOWER",
    "KINDS",
    "LOG",
    "TEXT_TOWER",
    "TOKEN_MAPS",
    "load_weights",
    "read",
    "save_tensors",
]

IMAGE_TOWER = "image_tower.safetensors"
TEXT_TOWER = "text_tower.safetensors"
TOKEN_MAPS = "token_maps.safetensors"
KINDS = {
    "clip": "open_clip_model.safetensors",
    "image-tower": IMAGE_TOWER,
    "text-tower": TEXT_TOWER,
}  # kind -> weights


def read(folder: Path) -> RunRecord:
    """Return the record of a run folder; raise ModelError when it is damaged."""
    path = folder / FILE
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read ({error}). Fix: train again or restore the file"
        ) from error
    record = RunRecord.from_json(text, path)
    if record.kind not in KINDS:
        raise ModelError(
            f"{path}: kind '{record.kind}', expected one of {', '.join(KINDS)}. Fix: use a newer"
            " dimefm"
        )
    return record


def save_tensors(
    tensors: dict[str, Tensor], path: Path, marks: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically; ``marks`` go into the file's metadata."""
    from safetensors.torch import save

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(on_cpu, marks))
    commit(part, path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into ``module``; every weight must be there.

    Raises ModelError when the weights do not fit.
    """
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: the weights do not load ({reason}). Fix: train again or restore the file"
        ) from error

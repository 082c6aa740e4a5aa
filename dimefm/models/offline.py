"""Names of models that came with data: they may be loaded, but nothing is downloaded for them.

The manifest of a cache and the record of a run name a teacher. A user who did not type the name
did not ask for a download.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import open_clip
from huggingface_hub import constants, try_to_load_from_cache

from dimefm.errors import ModelError

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CLIP_CACHE = "~/.cache/clip"  # where open_clip puts what is not on the hub


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let the Hugging Face hub answer from this machine alone, for the time of the block."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def require_downloaded(architecture: str, tag: str) -> None:
    """Raise ModelError unless the weights of a tag are on this machine."""
    config = open_clip.get_pretrained_cfg(architecture, tag) or {}
    if is_downloaded(config):
        return
    name = f"{architecture}/{tag}"
    raise ModelError(
        f"{name} is not on this machine, and a name that comes with data downloads nothing. Fix:"
        f" name {name} yourself, with --teacher, --text-model or --eval-text-model"
    )


def is_downloaded(config: dict) -> bool:
    """Tell whether the weights of open_clip's entry for a tag are on this machine."""
    if config.get("hf_hub"):
        repository, _, file = config["hf_hub"].rpartition("/")
        names = [file] if file else list(WEIGHTS)
        names += [f"{Path(name).stem}.safetensors" for name in names]
        return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
    folder = os.path.expanduser(CLIP_CACHE)
    file = os.path.basename(config.get("url", ""))
    return bool(file) and os.path.isfile(os.path.join(folder, file))

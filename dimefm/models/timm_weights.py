"""The pretrained weights of timm's networks, for students that start from them.

They are downloaded by timm only when the user named them, into the cache of the Hugging Face hub or
of ``torch.hub``. Weights that lie there need no network.
"""

from __future__ import annotations

import os
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import PretrainedCfg
from torch import nn

from dimefm.errors import ModelError
from dimefm.models import download, open_clip

FILES = ("model.safetensors", "pytorch_model.bin")  # of a timm model on the hub


def full_name(name: str) -> str:
    """Return a network's name with the tag of its weights: timm's first tag where none is given.

    Raises ModelError when timm has no weights for it.
    """
    try:
        settings = timm.get_pretrained_cfg(name)
    except RuntimeError:  # timm knows the network, not the tag
        settings = None
    if settings is None or not settings.has_weights:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        known = f"tags with weights: {', '.join(tags[:3])}" if tags else "it has none at all"
        raise ModelError(
            f"timm/{name}: timm has no pretrained weights for it ({known}). Fix: name another"
            " network or tag, or start from random weights"
        )
    base = name.partition(".")[0]
    return f"{base}.{settings.tag}" if settings.tag else base


def pretrained_tower(config: dict, name: str) -> nn.Module:
    """Return the image tower of a model config with timm's weights ``name`` in its trunk.

    What follows the trunk is random. Raises ModelError when the weights cannot be had.
    """
    fetch(name, "set init to the file")
    vision = {**config["vision_cfg"], "timm_model_name": name}
    try:
        return open_clip.image_tower({**config, "vision_cfg": vision}, pretrained=True)
    except ModelError as error:
        raise ModelError(f"timm/{name}: its weights cannot be loaded: {error}") from error


def normalization(name: str) -> dict:
    """Return mean and standard deviation of the pixels that the weights of a network expect."""
    settings = timm.get_pretrained_cfg(name)
    return {"mean": list(settings.mean), "std": list(settings.std)}


def fetch(name: str, remedy: str) -> None:
    """Check that the weights of a name are on this machine, or that their host can be reached.

    ``remedy`` completes "fetch ADDRESS where there is a network, and ...".
    """
    settings = timm.get_pretrained_cfg(name)
    if is_local(settings):
        return
    address = settings.url or ""
    target = os.path.join(torch.hub.get_dir(), "checkpoints")
    if settings.hf_hub_id:
        address = f"{constants.ENDPOINT}/{settings.hf_hub_id}"
        target = str(constants.HF_HUB_CACHE)
    remedy = f"fetch {address} where there is a network, and {remedy}"
    download.announce(f"downloading timm/{name} ({address}) to {target}")
    download.require_connection(f"timm/{name}", address, remedy)


def require_local(name: str) -> None:
    """Raise ModelError unless the weights of a name are on this machine."""
    if is_local(timm.get_pretrained_cfg(full_name(name))):
        return
    raise ModelError(
        f"timm/{name} is not on this machine, and a name that comes with data downloads nothing."
        f" Fix: name timm/{name} yourself, with --teacher, --text-model or --eval-text-model"
    )


def is_local(settings: PretrainedCfg) -> bool:
    """Tell whether the weights of timm's entry are on this machine."""
    if settings.file:
        return Path(settings.file).is_file()
    if settings.hf_hub_id:
        names = [settings.hf_hub_filename] if settings.hf_hub_filename else FILES
        return any(isinstance(try_to_load_from_cache(settings.hf_hub_id, n), str) for n in names)
    file = os.path.basename(settings.url or "")
    return bool(file) and (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file()

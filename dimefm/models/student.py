"""Student architectures by name, ending in the teacher's dimension or in a projection to it.

``NAME`` is a file of ``models/students/``, an open_clip architecture, ``timm/MODEL`` (any timm
image model), ``run:DIR`` (the architecture of a finished run), or the path of an open_clip JSON
config. ``NAME-quickgelu`` is the student NAME with OpenAI's activation, which a whole CLIP of
open_clip has in both towers or in none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dimefm.errors import ModelError
from dimefm.models import config_check, open_clip, timm_image
from dimefm.models.towers import ImageTower, TextTower
from dimefm.runs import folder as runs
from dimefm.runtime.seeding import seed_of

QUICK = "-quickgelu"
RUN = "run:"
"""The beginning of the name of a student that has the architecture of a run."""


@dataclass(frozen=True)
class StudentSpec:
    """A resolved student: its open_clip model config, the pixels of a side (None: a text tower),
    and what the user called it."""

    config: dict
    image_size: int | None
    name: str = "the student"


def resolve(name: str, image_size: int | None = None, dim: int | None = None) -> StudentSpec:
    """Return the spec of ``name`` with its image size and output dimension replaced where given.

    Raises ModelError for a name, a size or a config that cannot be.
    """
    config = _config(name)
    vision = config.get("vision_cfg")
    if not isinstance(vision, dict):
        raise ModelError(
            f"{name}: has no image tower ('vision_cfg'). Fix: name an architecture that has one"
        )
    if image_size is not None:
        vision["image_size"] = image_size
    config["embed_dim"] = _own_dim(config, name) if dim is None else dim
    size = vision.setdefault("image_size", 224)
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int) or size < 1:
        raise ModelError(
            f"{name}: image_size is {size!r}, expected a whole number, since a student sees"
            " squares. Fix: give one number of pixels"
        )
    return StudentSpec(config, size, name)


def resolve_text(name: str, dim: int | None = None) -> StudentSpec:
    """Return the spec of the text tower of ``name``, its output dimension replaced where given;
    raise ModelError when it has none."""
    config = _config(name)
    if not isinstance(config.get("text_cfg"), dict):
        raise ModelError(
            f"{name}: has no text tower ('text_cfg'). Fix: name an open_clip architecture or config"
            " that has one"
        )
    kept = {key: config[key] for key in ("text_cfg", "quick_gelu") if key in config}
    return StudentSpec(
        {"embed_dim": _own_dim(config, name) if dim is None else dim, **kept}, None, name
    )


def _own_dim(config: dict, name: str) -> int:
    dim = config.get("embed_dim")
    if not isinstance(dim, int) or dim < 1:
        raise ModelError(
            f"{name}: has no dimension of its own. Fix: name an open_clip architecture or config"
            " with 'embed_dim'"
        )
    return dim


def _config(name: str) -> dict:
    if name.startswith(RUN):
        return _config_of_run(name, Path(name.removeprefix(RUN)))
    if name.startswith(timm_image.PREFIX):
        vision = timm_image.vision_config(name.removeprefix(timm_image.PREFIX))
        return {"embed_dim": 0, "vision_cfg": vision}
    if name.endswith(".json"):
        config = config_check.read_config(Path(name))
        if not isinstance(config.get("vision_cfg"), dict):
            raise ModelError(
                f"{name}: no table 'vision_cfg'; expected an open_clip model config. Fix: name"
                " another file"
            )
        return config_check.model_config(config, name, most=config_check.MOST_STUDENT_PARAMETERS)
    plain = name.removesuffix(QUICK)
    if plain != name and not open_clip.knows(name) and open_clip.knows(plain):
        return {**open_clip.config_of(plain), "quick_gelu": True}
    return open_clip.config_of(name)


def _config_of_run(name: str, folder: Path) -> dict:
    """Return the model config of a finished run."""
    if not (folder / runs.FILE).is_file():
        raise ModelError(
            f"{name}: no finished run, {runs.FILE} is not there. Fix: name the folder of a finished"
            " run"
        )
    where = str(folder / runs.FILE)
    most = config_check.MOST_STUDENT_PARAMETERS
    return config_check.model_config(runs.read(folder).model_cfg, where, most=most)


def new_tower(config: dict, text: bool) -> ImageTower | TextTower:
    """Return the image tower, or the text tower, of a model config with random weights."""
    if text:
        return TextTower(open_clip.text_tower(config))
    return ImageTower(open_clip.image_tower(config))


def build(
    spec: StudentSpec, both_towers: bool, seed: int, batch_size: int = 2
) -> tuple[nn.Module, dict]:
    """Return (model with random weights drawn from ``seed``, preprocessing) of a spec.

    Raises ModelError when it cannot be built, or cannot encode images of its size in batches of
    ``batch_size``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights") % 2**32)
        if both_towers:
            model = open_clip.from_config(spec.config)
            _try(model, spec, batch_size)
            return model.to(memory_format=torch.channels_last), open_clip.preprocess_of(model)
        tower = new_tower(spec.config, text=False)
        _try(tower, spec, batch_size)
        return tower.to(memory_format=torch.channels_last), open_clip.default_preprocess(
            spec.image_size
        )


def patch_side(model: nn.Module) -> int:
    """Return the side in pixels of the patches that an image tower cuts an image into without
    overlap, 1 if it does not.

    Such a tower, as open_clip and timm build it, never sees the pixels that are left over at the
    right and the lower edge.
    """
    stem = next(
        (
            part
            for part in model.visual.modules()
            if isinstance(part, nn.Conv2d) and part.in_channels == 3
        ),
        None,
    )
    side = 1 if stem is None or stem.kernel_size != stem.stride else stem.stride[0]
    return side if stem is not None and stem.padding == (0, 0) else 1


def build_text(spec: StudentSpec, seed: int) -> nn.Module:
    """Return the text tower of a spec with random weights drawn from ``seed``; raise ModelError
    when it cannot be built or run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights") % 2**32)
        tower = new_tower(spec.config, text=True)
    try:
        found = list(
            tower.encode_text(torch.zeros(2, tower.text.context_length, dtype=torch.long)).shape
        )
        if found != [2, spec.config["embed_dim"]]:
            raise ValueError(
                f"its output for 2 sentences is {found}; expected {[2, spec.config['embed_dim']]}"
            )
    except Exception as error:  # open_clip fails in many ways on an impossible config
        raise ModelError(
            f"{spec.name}: cannot encode a sentence: {open_clip.reason_of(error)}"
        ) from error
    return tower


@torch.no_grad()
def _try(model: nn.Module, spec: StudentSpec, batch_size: int) -> None:
    """Encode blank images as evaluation and training do, so that what cannot work is refused before
    the first step.

    The model is left as it was, its running statistics included. Raises ModelError with the reason.
    """
    training, kept = (
        model.training,
        {name: buffer.clone() for name, buffer in model.named_buffers()},
    )
    pixels = torch.zeros(2, 3, spec.image_size, spec.image_size)
    try:
        for mode in (False, True):
            found = list(model.train(mode).encode_image(pixels).shape)
            if found != [2, spec.config["embed_dim"]]:
                raise ValueError(
                    f"its output for 2 images is {found}; expected {[2, spec.config['embed_dim']]}"
                )
    except Exception as error:  # timm and open_clip fail in many ways on a size that is not theirs
        raise ModelError(
            f"{spec.name} at {spec.image_size} pixels: cannot encode an image:"
            f" {open_clip.reason_of(error)}. Fix: give another --image-size or --student"
        ) from error
    try:
        model.encode_image(pixels[: min(batch_size, 2)])
    except ValueError as error:  # batch normalisation has no variance of one value
        raise ModelError(
            f"{spec.name}: cannot learn from {batch_size} image a step"
            f" ({open_clip.reason_of(error)}). Fix: give a --batch-size of 2 or more"
        ) from error
    for name, buffer in model.named_buffers():
        buffer.copy_(kept.get(name, buffer))
    model.train(training)

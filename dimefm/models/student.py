"""Student architectures by name, with a projection to the teacher's dimension or a bridge to it.

``NAME`` is a file of ``models/students/``, an open_clip architecture, ``timm/MODEL`` (any timm image model), or the path
of an open_clip JSON config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dimefm.data.order import seed_of
from dimefm.errors import ModelError
from dimefm.losses import Features, Words
from dimefm.models import bridge as bridges
from dimefm.models import dense, open_clip
from dimefm.models.text_tower import trimmed
from dimefm.models.towers import ImageTower, TextTower


@dataclass(frozen=True)
class Spec:
    """A resolved student: its open_clip model config, the pixels of a side (None: a text tower), and what the user called
    it."""

    config: dict
    image_size: int | None
    name: str = "the student"


def resolve(name: str, image_size: int | None = None, dim: int | None = None) -> Spec:
    """Return the spec of ``name`` with its image size and output dimension replaced where given.

    Raises ModelError for a name, a size or a config that cannot be.
    """
    config = _config(name)
    vision = config["vision_cfg"]
    if image_size is not None:
        vision["image_size"] = image_size
    config["embed_dim"] = _own_dim(config, name) if dim is None else dim
    size = vision.setdefault("image_size", 224)
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int) or size < 1:
        raise ModelError(f"{name}: image_size is {size!r}; a student sees squares, so give one number of pixels")
    return Spec(config, size, name)


def resolve_text(name: str, dim: int | None = None) -> Spec:
    """Return the spec of the text tower of ``name``, its output dimension replaced where given; raise ModelError when it has
    none."""
    config = _config(name)
    if not isinstance(config.get("text_cfg"), dict):
        raise ModelError(f"{name}: has no text tower ('text_cfg'); name an open_clip architecture or config that has one")
    kept = {key: config[key] for key in ("text_cfg", "quick_gelu") if key in config}
    return Spec({"embed_dim": _own_dim(config, name) if dim is None else dim, **kept}, None, name)


def _own_dim(config: dict, name: str) -> int:
    dim = config.get("embed_dim")
    if not isinstance(dim, int) or dim < 1:
        raise ModelError(f"{name}: has no dimension of its own; name an open_clip architecture or config with 'embed_dim'")
    return dim


def _config(name: str) -> dict:
    if name.startswith("timm/"):
        return {"embed_dim": 0, "vision_cfg": {"timm_model_name": name.removeprefix("timm/"), "timm_pool": ""}}
    if name.endswith(".json"):
        try:
            config = json.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{name}: cannot be read as an open_clip config: {error}") from error
        if not isinstance(config, dict) or not isinstance(config.get("vision_cfg"), dict):
            raise ModelError(f"{name}: no table 'vision_cfg'; expected an open_clip model config")
        return config
    return open_clip.config_of(name)


@dataclass(frozen=True)
class Extras:
    """What losses ask of a student beside rows: of the image tower ``hidden`` and ``patches``, of the text tower ``words``.

    ``apart``: the last caption of each pair is there for its words alone.
    """

    image: tuple[str, ...] = ()
    words: bool = False
    apart: bool = False

    @staticmethod
    def of(needs: frozenset[str], apart: bool) -> Extras:
        """Return what terms with these ``needs`` ask for."""
        return Extras(tuple(name for name in ("hidden", "patches") if name in needs), "words" in needs, apart)


class Student(nn.Module):
    """What trains: an image tower, a text tower, or a whole CLIP; ``features`` gives ``forward`` in a loss's words.

    The rows of a tower live in the first teacher's space: the model's own rows or, of a model that keeps another dimension,
    those of a ``bridge`` behind it. ``heads`` lead from there into the space of each further teacher. A whole CLIP keeps its
    own space; what its losses learn to compare it with a teacher are their parts, ``learnt``, one set a teacher, see
    :meth:`~dimefm.losses.Objective.learnt`. They learn here and are no part of what is finished. ``extras`` says what
    losses ask of the towers beside rows, and ``mask`` hides a part of prepared pixels, see
    :func:`~dimefm.models.masking.hide`.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: dict | None,
        heads: Sequence[nn.Module] = (),
        bridge: nn.Linear | None = None,
        learnt: nn.ModuleList | None = None,
        extras: Extras | None = None,
    ):
        super().__init__()
        self.model = model
        self.extras = extras or Extras()
        self.heads = nn.ModuleList(heads)
        self.bridge = bridge or nn.Identity()
        self.learnt = learnt or nn.ModuleList()
        self.mask: nn.Module = nn.Identity()
        self._trimmed = trimmed(model) if preprocess is None or self.extras.words else None
        if preprocess is None:
            return
        self.register_buffer("mean", torch.tensor(preprocess["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess["std"]).view(1, 3, 1, 1), persistent=False)

    def prepared(self, pixels: Tensor) -> Tensor:
        """Return what the image tower reads, [B, 3, S, S], of uint8 pixels [B, S, S, 3]."""
        pixels = pixels.permute(0, 3, 1, 2).to(self.mean.dtype).div(255)
        return self.mask(((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last))

    def images(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return image rows, not normalised, of uint8 pixels [B, S, S, 3], or [B, V, S, S, 3] of V views: [B, D] or
        [B, V, D]. With them come ``hidden`` and ``patches`` where they are asked for."""
        shape = pixels.shape[:-3]
        ready = self.prepared(pixels.flatten(0, -4))
        if not self.extras.image:
            return {"image": self.bridge(self.model.encode_image(ready)).unflatten(0, shape)}
        found = dense.image(self.model, ready)
        rows, hidden, patches = (value.unflatten(0, shape) for value in (self.bridge(found.rows), *found[1:]))
        more = {"hidden": hidden, "patches": patches if pixels.ndim == 4 else patches[:, 0]}
        return {"image": rows} | {name: more[name] for name in self.extras.image}

    def sentences(self, tokens: Tensor) -> Tensor:
        """Return a text tower's rows [B, D], not normalised, of tokens [B, L]; places that are never read are not
        computed."""
        if self._trimmed is None:
            return self.bridge(self.model.encode_text(tokens))
        return self.bridge(self._trimmed.encode_text(tokens[:, : int(self._trimmed.lengths(tokens).max())]))

    def captions(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return text rows, not normalised, of tokens [B, L], or [B, C, L] of C captions: [B, D] or [B, C, D].

        Where words are asked for they are those of the first caption, or of one more, the last, that is there for its words
        alone; with them come its ``lengths``.
        """
        shape = tokens.shape[:-1]
        if not self.extras.words:
            return {"text": self.model.encode_text(tokens.flatten(0, -2)).unflatten(0, shape)}
        found = dense.text(self.model, tokens.flatten(0, -2))
        rows, words = found.rows.unflatten(0, shape), found.states.unflatten(0, shape)
        if tokens.ndim == 3:
            place = -1 if self.extras.apart else 0
            rows = rows[:, :-1] if self.extras.apart else rows
            rows, words, tokens = rows[:, 0] if rows.shape[1] == 1 else rows, words[:, place], tokens[:, place]
        lengths = tokens.new_full(tokens.shape[:1], tokens.shape[1])  # of a tower that looks at padding
        return {"text": rows, "words": words, "lengths": lengths if self._trimmed is None else self._trimmed.lengths(tokens)}

    def forward(self, pixels: Tensor | None, tokens: Tensor | None, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return all that is learnt from, by name; rows are not normalised.

        Of pixels or tokens alone a tower's ``rows`` [B, D] and, for each further teacher, ``rows.1`` and so on; of both
        (pairs) ``image`` and ``text`` rows, the factor on cosines (``scale``) and, of a SigLIP, the ``bias``. ``labels``
        [B, L] are the tokens that were hidden from the sentences; they are handed on.
        """
        if pixels is None:
            return self._own(self.sentences(tokens))
        if tokens is None:
            found = self.images(pixels)
            return self._own(found.pop("image")) | found
        bias = getattr(self.model, "logit_bias", None)
        scalars = {"scale": self.model.logit_scale.exp()} | ({} if bias is None else {"bias": bias.clone()})
        further = {} if labels is None else {"labels": labels}
        return self.images(pixels) | self.captions(tokens) | scalars | further

    def _own(self, rows: Tensor) -> dict[str, Tensor]:
        return {"rows": rows} | {f"rows.{number}": head(rows) for number, head in enumerate(self.heads, 1)}

    @staticmethod
    def features(outputs: Mapping[str, Tensor], teachers: Sequence[Features]) -> list[Features]:
        """Return the student's features for each teacher, with that teacher's rows of the other side and scale.

        ``outputs`` are those of ``forward``. Of a text tower the sentences stand in ``image``, see
        :class:`~dimefm.losses.Features`. Of a whole CLIP its own sentences and scale make one set, the same for each
        teacher.
        """
        more: dict = {name: outputs[name] for name in ("hidden", "patches") if name in outputs}
        if "rows" in outputs:
            names = ["rows", *(f"rows.{number}" for number in range(1, len(teachers)))]
            return [teacher.beside(outputs[name], **more) for name, teacher in zip(names, teachers, strict=True)]
        if "words" in outputs:
            more["words"] = Words(outputs["words"], outputs["lengths"], outputs.get("labels"))
        scale, bias = outputs["scale"], outputs.get("bias", 0.0)
        return [Features.of(outputs["image"], outputs["text"], scale, bias, **more)] * max(1, len(teachers))

    def finished(self, config: dict) -> tuple[nn.Module, dict]:
        """Return (model, open_clip config) of what has been learnt: the model of ``config``, with the bridge folded into it
        where there is one, and then its dimension in the config."""
        if not isinstance(self.bridge, nn.Linear):
            return self.model, config
        return bridges.folded(self.model, self.bridge), {**config, "embed_dim": self.bridge.out_features}


def heads(dims: Sequence[int], seed: int) -> list[nn.Module]:
    """Return a linear map from ``dims[0]`` to each further dimension, with random weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "heads") % 2**32)
        return [nn.Linear(dims[0], dim, bias=False) for dim in dims[1:]]


def bridge(model: nn.Module, spec: Spec, dim: int, seed: int) -> nn.Linear:
    """Return a bridge from the tower ``model`` of a spec to ``dim`` dimensions, with random weights drawn from ``seed``.

    Raises ModelError when the tower could not take it in at the end.
    """
    found, noise = bridges.draw(spec.config["embed_dim"], dim, seed), torch.Generator().manual_seed(0)
    if isinstance(model, TextTower):
        inputs = torch.randint(model.text.vocab_size, (2, model.text.context_length), generator=noise)
    else:
        inputs = torch.randn(2, 3, spec.image_size, spec.image_size, generator=noise)
    with torch.random.fork_rng(devices=[]):
        ordinary = _tower({**spec.config, "embed_dim": dim}, isinstance(model, TextTower))
    try:
        bridges.check(model, found, ordinary, inputs)
    except ModelError as error:
        raise ModelError(f"{spec.name}: cannot take in a bridge: {error}; leave --bridge out") from error
    return found


def _tower(config: dict, text: bool) -> ImageTower | TextTower:
    return TextTower(open_clip.text_tower(config)) if text else ImageTower(open_clip.image_tower(config))


def build(spec: Spec, both_towers: bool, seed: int, batch_size: int = 2) -> tuple[nn.Module, dict]:
    """Return (model with random weights drawn from ``seed``, preprocessing) of a spec.

    Raises ModelError when it cannot be built, or cannot encode images of its size in batches of ``batch_size``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights") % 2**32)
        if both_towers:
            model = open_clip.from_config(spec.config)
            _try(model, spec, batch_size)
            return model.to(memory_format=torch.channels_last), open_clip.preprocess_of(model)
        tower = _tower(spec.config, text=False)
        _try(tower, spec, batch_size)
        return tower.to(memory_format=torch.channels_last), open_clip.default_preprocess(spec.image_size)


def patch_side(model: nn.Module) -> int:
    """Return the side in pixels of the patches that an image tower cuts an image into without overlap, 1 if it does not.

    Such a tower, as open_clip and timm build it, never sees the pixels that are left over at the right and the lower edge.
    """
    stem = next((part for part in model.visual.modules() if isinstance(part, nn.Conv2d) and part.in_channels == 3), None)
    side = 1 if stem is None or stem.kernel_size != stem.stride else stem.stride[0]
    return side if stem is not None and stem.padding == (0, 0) else 1


def build_text(spec: Spec, seed: int) -> nn.Module:
    """Return the text tower of a spec with random weights drawn from ``seed``; raise ModelError when it cannot be built or
    run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights") % 2**32)
        tower = _tower(spec.config, text=True)
    try:
        found = list(tower.encode_text(torch.zeros(2, tower.text.context_length, dtype=torch.long)).shape)
        if found != [2, spec.config["embed_dim"]]:
            raise ValueError(f"its output for 2 sentences is {found}; expected {[2, spec.config['embed_dim']]}")
    except Exception as error:  # open_clip fails in many ways on an impossible config
        raise ModelError(f"{spec.name}: cannot encode a sentence: {open_clip.reason_of(error)}") from error
    return tower


@torch.no_grad()
def _try(model: nn.Module, spec: Spec, batch_size: int) -> None:
    """Encode blank images as evaluation and training do, so that what cannot work is refused before the first step.

    The model is left as it was, its running statistics included. Raises ModelError with the reason.
    """
    training, kept = model.training, {name: buffer.clone() for name, buffer in model.named_buffers()}
    pixels = torch.zeros(2, 3, spec.image_size, spec.image_size)
    try:
        for mode in (False, True):
            found = list(model.train(mode).encode_image(pixels).shape)
            if found != [2, spec.config["embed_dim"]]:
                raise ValueError(f"its output for 2 images is {found}; expected {[2, spec.config['embed_dim']]}")
    except Exception as error:  # timm and open_clip fail in many ways on a size that is not theirs
        raise ModelError(
            f"{spec.name} at {spec.image_size} pixels: cannot encode an image: {open_clip.reason_of(error)}; "
            "give another --image-size or --student"
        ) from error
    try:
        model.encode_image(pixels[: min(batch_size, 2)])
    except ValueError as error:  # batch normalisation has no variance of one value
        raise ModelError(
            f"{spec.name}: cannot learn from {batch_size} image a step ({open_clip.reason_of(error)}); "
            "give a --batch-size of 2 or more"
        ) from error
    for name, buffer in model.named_buffers():
        buffer.copy_(kept.get(name, buffer))
    model.train(training)

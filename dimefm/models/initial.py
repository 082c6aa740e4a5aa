"""Where a student starts: from random weights, or from weights that exist already.

=====================  =====================================================================
``random``             random weights, drawn from the seed
``timm``               the pretrained weights of timm that the student's name names (downloaded)
``tag:TAG``            a pretrained tag of open_clip, or of timm, of the student's architecture
                       (downloaded)
``run:DIR``            a run of dimefm of the same student
``inherit:SPEC``       a part of a larger model, see :mod:`dimefm.models.weights.inheritance`
``FILE``               a weights file with the student's shapes
=====================  =====================================================================

All but ``inherit`` give each tensor of a tower, in its shape. One thing may be left to chance: the
last projection, where its dimension is another one, or the source has none. A tower is taken as a
whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from open_clip.timm_model import TimmModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models import (
    download,
    open_clip,
    projection,
    published,
    timm_image,
    timm_weights,
    weights_check,
    weights_file,
)
from dimefm.models.student import StudentSpec
from dimefm.models.towers import ImageTower
from dimefm.models.weights.inheritance import positions
from dimefm.models.weights.inheritance.blocks import NotInheritable
from dimefm.runs import folder as runs
from dimefm.runtime.text import first_few

Side = Literal["image", "text"]
Kind = Literal["random", "timm", "tag", "run", "inherit", "file"]

RANDOM = "random"
PREFIXED: tuple[Kind, ...] = ("tag", "run", "inherit")
SCALARS = ("logit_scale", "logit_bias")
TRUNK = "trunk."
FEW = 4  # tensors in a message


@dataclass(frozen=True)
class Start:
    """The parsed value of ``init``: a ``kind``, and the ``value`` behind its prefix."""

    text: str
    kind: Kind
    value: str = ""

    @staticmethod
    def parse(text: str) -> Start:
        """Return what ``text`` means; raise ModelError when it names nothing."""
        if text in (RANDOM, "timm"):
            return Start(text, "timm" if text == "timm" else "random")
        for kind in PREFIXED:
            if text.startswith(f"{kind}:") and len(text) > len(kind) + 1:
                return Start(text, kind, text.removeprefix(f"{kind}:"))
        if Path(text).is_file():
            return Start(text, "file", text)
        raise ModelError(
            f"init = '{text}': no such file; expected random, timm, tag:TAG, run:DIR, inherit:SPEC"
            " or a weights file. Fix: correct it"
        )


@dataclass(frozen=True)
class Weights:
    """Weights to start with: the tensors of each tower, under the tower's own names.

    ``scalars`` are the scale and bias of similarities. ``preprocess`` holds the mean and standard
    deviation of the pixels that the weights expect, {} where the source does not say.
    """

    source: str
    towers: dict[Side, dict[str, Tensor]]
    scalars: dict[str, Tensor] = field(default_factory=dict)
    preprocess: dict = field(default_factory=dict)
    of_timm: bool = False


@dataclass(frozen=True)
class Taken:
    """What a tower has taken: its ``drawn`` tensors are random, all others are the source's.

    ``resampled`` are position embeddings that were made for another grid. ``details`` are further
    facts for the record, as JSON values.
    """

    side: Side
    init: str
    source: str
    sha256: str
    tensors: int
    parameters: int
    drawn: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    details: dict = field(default_factory=dict)

    def record(self) -> dict:
        """Return the facts as JSON values."""
        values = {
            "init": self.init,
            "source": self.source,
            "weights_sha256": self.sha256,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "drawn": list(self.drawn),
            "resampled": list(self.resampled),
        }
        return {name: value for name, value in values.items() if value != []} | self.details

    def describe(self) -> str:
        """Return the facts in one line for people."""
        line = (
            f"{self.side} tower: starts from {self.init}: {self.tensors} tensors,"
            f" {self.parameters / 1e6:,.2f} M weights"
        )
        if "layers" in self.details:
            line += f" of layers {self.details['layers']}"
        if "measured_rows" in self.details:
            line += f", by importance on {self.details['measured_rows']} rows"
        if "activation" in self.details:
            line += f"; its activation is {self.details['activation']}"
        if self.resampled:
            line += f"; resampled: {first_few(self.resampled, FEW)}"
        if self.drawn:
            line += f"; drawn at random: {first_few(self.drawn, FEW)}"
        return line


def tower_names(model: nn.Module, side: Side) -> dict[str, str]:
    """Return the names of a tower's tensors in itself, with their names in the whole model."""
    names = {}
    for name in model.state_dict():
        is_image = name.startswith("visual.")
        if is_image != (side == "image") or name in SCALARS:
            continue
        prefix = "visual." if is_image else "text."
        names[name.removeprefix(prefix)] = name
    return names


def last_projection(model: nn.Module, side: Side) -> set[str]:
    """Return the names, in the tower itself, of the parameters of its last projection."""
    if side == "text":
        return {name for name in tower_names(model, side) if name.startswith("text_projection")}
    try:
        owner, attribute = projection.last_projection(ImageTower(model.visual))
    except ModelError:
        return set()
    last = getattr(owner, attribute)
    parameters = [last] if isinstance(last, nn.Parameter) else list(last.parameters())
    ids = {id(parameter) for parameter in parameters}
    return {name for name, value in model.visual.named_parameters() if id(value) in ids}


def load(start: Start, model: nn.Module, spec: StudentSpec) -> Weights:
    """Return the weights that ``start`` names, for a model of ``spec``.

    Raises ModelError when they cannot be had, or are not of such a model.
    """
    if start.kind == "timm":
        return _of_timm(start, spec, "")
    if start.kind == "tag":
        if "timm_model_name" in spec.config.get("vision_cfg", {}):
            return _of_timm(start, spec, start.value)
        return _of_tag(start, spec)
    if start.kind == "run":
        return _of_run(start, model, spec)
    return _of_file(Path(start.value), model)


@torch.no_grad()
def take(model: nn.Module, side: Side, weights: Weights, init: str) -> Taken:
    """Load the weights of one tower into ``model``; return what was taken.

    Raises ModelError, and loads nothing, unless each tensor but the last projection is there in
    its shape, and nothing else is.
    """
    names = tower_names(model, side)
    own = model.state_dict()
    source = weights.towers.get(side, {})
    if not source:
        have = " and ".join(weights.towers) or "no"
        raise ModelError(
            f"init = '{init}': {weights.source} has {have} tower, not the student's {side} tower."
            " Fix: name weights that have it"
        )
    may_be_drawn = last_projection(model, side)
    if weights.of_timm:
        may_be_drawn |= {name for name in names if name.startswith("head.")}
    found = _Comparison()
    for name, full_name in names.items():
        found.compare(name, own[full_name], source, may_be_drawn, side)
    for name in source:
        if name not in names:
            found.unknown.append(name)
    found.refuse(init, weights.source)
    for name, tensor in found.taken.items():
        own[names[name]].copy_(tensor)
    return Taken(
        side=side,
        init=init,
        source=weights.source,
        sha256=digest(source),
        tensors=len(found.taken),
        parameters=sum(tensor.numel() for tensor in found.taken.values()),
        drawn=tuple(names[name] for name in found.drawn),
        resampled=tuple(names[name] for name in found.resampled),
    )


@dataclass
class _Comparison:
    """The tensors of a source beside those of a tower."""

    taken: dict[str, Tensor] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def compare(
        self,
        name: str,
        own: Tensor,
        source: Mapping[str, Tensor],
        may_be_drawn: set[str],
        side: Side,
    ) -> None:
        """Sort one tensor of the tower into what is taken, drawn or wrong."""
        tensor = source.get(name)
        if tensor is None:
            (self.drawn if name in may_be_drawn else self.missing).append(name)
            return
        if tensor.shape != own.shape and positions.is_of_images(name, side == "text"):
            tensor = self._resampled(name, tensor, own)
        if tensor.shape == own.shape:
            self.taken[name] = tensor
        elif name in may_be_drawn:
            self.drawn.append(name)
        else:
            self.different.append(f"{name} {list(tensor.shape)} for {list(own.shape)}")

    def _resampled(self, name: str, tensor: Tensor, own: Tensor) -> Tensor:
        try:
            made = positions.resampled(tensor, own.shape[-2])
        except (NotInheritable, IndexError):
            return tensor
        self.resampled.append(name)
        return made

    def refuse(self, init: str, source: str) -> None:
        """Raise ModelError when anything is wrong; it lists what."""
        faults = []
        for title, names in (
            ("shapes differ", self.different),
            ("missing", self.missing),
            ("not of this tower", self.unknown),
        ):
            if names:
                faults.append(f"{title}: {first_few(names, FEW)}")
        if faults:
            raise ModelError(
                f"init = '{init}': {source} is not of the student's architecture, nothing was"
                f" loaded ({'; '.join(faults)[:280]}). Fix: name weights of the same student, or"
                " inherit:SPEC for a part of a larger one"
            )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of tensors: name, type, shape and bytes, in order of name."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def split(tensors: Mapping[str, Tensor]) -> Weights:
    """Return a model's weights by tower, from a state dict with open_clip's names."""
    towers: dict[Side, dict[str, Tensor]] = {}
    scalars = {}
    for name, tensor in tensors.items():
        if name in SCALARS:
            scalars[name] = tensor
        elif name.startswith("visual."):
            towers.setdefault("image", {})[name.removeprefix("visual.")] = tensor
        else:
            towers.setdefault("text", {})[name.removeprefix("text.")] = tensor
    return Weights("", towers, scalars)


def _of_timm(start: Start, spec: StudentSpec, tag: str) -> Weights:
    """Return timm's pretrained weights of the trunk of a student's image tower."""
    vision = spec.config.get("vision_cfg", {})
    name = str(vision.get("timm_model_name", ""))
    if not name:
        tags = open_clip.tags_of(spec.name) if open_clip.knows(spec.name) else []
        fix = f"init = 'tag:{tags[0]}'" if tags else "name another start"
        raise ModelError(
            f"init = '{start.text}': {spec.name} is no network of timm, expected one. Fix: {fix}"
        )
    if tag:
        name = f"{name.partition('.')[0]}.{tag}"
    name = timm_weights.full_name(name)
    with torch.random.fork_rng(devices=[]):
        tower = timm_weights.pretrained_tower(spec.config, name)
    random_parts = last_projection(ImageTower(tower), "image")
    tensors = {}
    for part, tensor in tower.state_dict().items():
        if part.startswith(TRUNK) and part not in random_parts:
            tensors[part] = tensor
    source = f"{timm_image.PREFIX}{name}"
    return Weights(
        source, {"image": tensors}, preprocess=timm_weights.normalization(name), of_timm=True
    )


def _of_tag(start: Start, spec: StudentSpec) -> Weights:
    """Return the weights of a pretrained tag of open_clip."""
    architecture, tag = spec.name, start.value
    tags = open_clip.tags_of(architecture) if open_clip.knows(architecture) else []
    if tag not in tags:
        raise ModelError(
            f"init = '{start.text}': '{tag}' is no pretrained tag of {architecture}; expected one"
            f" of {first_few(tags, FEW) or 'none, since it has no tags'}. Fix: correct it"
        )
    refuse_other_activation(start, open_clip.trained_with_quick_gelu(architecture, tag), spec)
    download.fetch_tag(architecture, tag)
    model = open_clip.create(architecture, tag)
    preprocess = _pixels(published.preprocess_of_tag(architecture, tag))
    return _named(split(model.state_dict()), f"{architecture}/{tag}", preprocess)


def refuse_other_activation(start: Start, quick_gelu: bool, spec: StudentSpec) -> None:
    """Raise ModelError when weights belong to another activation than the student has."""
    if quick_gelu == bool(spec.config.get("quick_gelu", False)):
        return
    names = {True: "QuickGELU", False: "GELU"}
    raise ModelError(
        f"init = '{start.text}': these weights were trained with {names[quick_gelu]}, and"
        f" {spec.name} has {names[not quick_gelu]}. Fix: name the architecture"
        f" {'with' if quick_gelu else 'without'} -quickgelu, or set quick_gelu in its config"
    )


def _of_run(start: Start, model: nn.Module, spec: StudentSpec) -> Weights:
    """Return the weights of a finished run."""
    folder = Path(start.value)
    if not (folder / runs.FILE).is_file():
        raise ModelError(
            f"init = 'run:{folder}': no finished run, {runs.FILE} is not there. Fix: name a"
            " finished run, or the checkpoints/best of one"
        )
    record = runs.read(folder)
    refuse_other_activation(start, bool(record.model_cfg.get("quick_gelu", False)), spec)
    path = folder / runs.KINDS[record.kind]
    tensors = _read(path, weights_check.count(model))
    return _named(split(tensors), str(folder), _pixels(record.preprocess_cfg or {}))


def _of_file(path: Path, model: nn.Module) -> Weights:
    """Return the weights of a file: of a whole CLIP, of a tower, or of timm's network in it."""
    tensors = _read(path, weights_check.count(model))
    tensors = weights_file.without_prefixes(tensors, model.state_dict())
    known = ("visual.", "text.")
    is_whole = "text_projection" in tensors and any(n.startswith("visual.") for n in tensors)
    if is_whole or all(name.startswith(known) or name in SCALARS for name in tensors):
        return _named(split(tensors), str(path), {})
    sides: list[Side] = ["image", "text"]
    for side in sides:
        names = tower_names(model, side)
        overlap = [name for name in tensors if name in names]
        if overlap:
            return Weights(str(path), {side: dict(tensors)})
    if isinstance(getattr(model, "visual", None), TimmModel):
        return _of_timm_file(path, tensors, model.visual)
    raise ModelError(
        f"init = '{path}': none of its names is one of the student's"
        f" ({first_few(sorted(tensors), FEW)[:200]}). Fix: name weights of the same student, or"
        " import them first"
    )


def _of_timm_file(path: Path, tensors: Mapping[str, Tensor], tower: TimmModel) -> Weights:
    """Return the weights of a file with timm's own names, without the classifier."""
    settings = getattr(tower.trunk, "pretrained_cfg", None) or {}
    classifiers = settings.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    kept = {}
    for name, tensor in tensors.items():
        is_classifier = any(name.startswith(f"{one}.") for one in classifiers)
        if not is_classifier:
            kept[f"{TRUNK}{name}"] = tensor
    return Weights(str(path), {"image": kept}, of_timm=True)


def _read(path: Path, parameters: int) -> dict[str, Tensor]:
    """Return the state dict of a file; raise ModelError when it is none, or far too large."""
    try:
        weights_check.check_unpacked(path, parameters)
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = weights_file.state_dict_of(path)
    except ModelError:
        raise
    except SafetensorError as error:
        raise ModelError(
            f"{path}: cannot be loaded: the file is damaged ({error}). Fix: fetch it again"
        ) from error
    except Exception as error:  # torch.load raises whatever a damaged file makes it raise
        raise ModelError(f"{path}: cannot be loaded: {open_clip.reason_of(error)}") from error
    weights_check.check_tensors(path, tensors.values(), parameters)
    return tensors


def _named(weights: Weights, source: str, preprocess: dict) -> Weights:
    return Weights(source, weights.towers, weights.scalars, preprocess)


def _pixels(preprocess: Mapping) -> dict:
    """Return the part of a preprocessing that the weights depend on."""
    return {name: list(preprocess[name]) for name in ("mean", "std") if name in preprocess}

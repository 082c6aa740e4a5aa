"""EncoderSpec: what the name of an encoder means, before anything is loaded.

==========================  ========================================================================
``ARCH/PRETRAINED``         an open_clip architecture and tag, e.g. ``ViT-L-14/openai``
                            (downloaded by open_clip)
``ARCH/path/to/weights``    an architecture and a local ``.pt`` or ``.safetensors`` file (OpenAI's
                            own weights need the ``-quickgelu`` architectures; with a tag the
                            activation is chosen by itself)
``FILE``                    such a file with ``open_clip_config.json`` next to it
``FOLDER``                  an open_clip folder (``open_clip_config.json`` and weights), or a run
                            folder of dimefm
``FOLDER``                  a folder that ``dimefm export --to onnx`` wrote; one of its graphs,
                            e.g. ``FOLDER/onnx/vision_model_quantized.onnx``, chooses the set
``local-dir:FOLDER``        open_clip's spelling of ``FOLDER``
``hf-hub:ORG/MODEL``        a model of open_clip on the Hugging Face hub (downloaded)
``FOLDER``                  a folder of transformers (``config.json`` and weights) of CLIP, SigLIP,
                            SigLIP 2, MetaCLIP 2, ALIGN, AltCLIP, Chinese-CLIP or a dual encoder
``hf:ORG/MODEL``            such a model on the Hugging Face hub (downloaded)
``timm/NAME.TAG``           an image model of timm, image rows alone: with timm's weights
                            (downloaded), ``timm/NAME.TAG/FILE`` with those of a file,
                            ``timm/NAME/random:SEED`` with random ones
``ARCH/random:SEED``        random weights, for tests and speed; the manifest says so
==========================  ========================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dimefm.errors import ModelError
from dimefm.models import onnx_folder, open_clip, timm_teacher
from dimefm.models.hf import families
from dimefm.models.spec_paths import path_of, unknown_model
from dimefm.models.timm_image import PREFIX
from dimefm.runs import folder as runs

HUB = "hf-hub:"
FEW_TAGS = 6  # in a message


@dataclass(frozen=True)
class EncoderSpec:
    """The parsed name of an encoder.

    ``kind`` says which fields count. "run": ``path`` is a run folder. "folder": ``path`` is an
    open_clip folder, and ``weights`` a weights file in it, None for the usual one. "hf": ``path``
    is a folder of transformers, or ``repository`` its name ORG/MODEL on the hub. "hub":
    ``repository`` is ORG/MODEL. "onnx": ``path`` is a folder of ONNX graphs, and ``tag`` the set of
    graphs, "" for the most exact. "timm": ``architecture`` is a network of timm, maybe with a tag
    in its name; its weights are those of the tag, of the file ``path``, or drawn from ``seed``.
    "file", "tag" and "random": ``architecture`` with a weights file ``path``, a ``tag`` of
    open_clip, or random weights drawn from ``seed``.
    """

    text: str
    kind: Literal["run", "folder", "onnx", "hub", "hf", "timm", "file", "tag", "random"]
    path: Path = Path()
    weights: Path | None = None
    architecture: str = ""
    tag: str = ""
    seed: int | None = None
    repository: str = ""

    @staticmethod
    def parse(text: str) -> EncoderSpec:
        """Return what ``text`` means; raise ModelError when it names nothing, or no weights."""
        if text.startswith(HUB):
            return EncoderSpec(text, "hub", repository=text.removeprefix(HUB))
        if text.startswith(families.PREFIX):
            return EncoderSpec(text, "hf", repository=text.removeprefix(families.PREFIX))
        try:
            return EncoderSpec._of_path(text)
        except (OSError, ValueError) as error:  # a name that no file can have
            raise ModelError(
                f"{text[:100]!r}: is no name of a file or model ({error.args[-1]}). Fix: check it"
            ) from error

    @staticmethod
    def _of_path(text: str) -> EncoderSpec:
        path = path_of(text)
        if (path / runs.FILE).is_file():
            return EncoderSpec(text, "run", path)
        if path.is_dir() and onnx_folder.is_onnx_folder(path):
            return EncoderSpec(text, "onnx", path)
        if path.is_dir():
            return _folder(text, path, None)
        variant = onnx_folder.variant_of(path) if path.is_file() else None
        if variant is not None:
            return EncoderSpec(text, "onnx", path.parent.parent, tag=variant)
        if path.is_file():
            if (path.parent / open_clip.CONFIG).is_file():
                return _folder(text, path.parent, path)
            raise ModelError(
                f"{text}: a weights file does not say its architecture. Fix: write ARCH/{text},"
                f" e.g. ViT-B-32/{text}"
            )
        return _architecture(text)


def _folder(text: str, folder: Path, weights: Path | None) -> EncoderSpec:
    if not (folder / open_clip.CONFIG).is_file():
        if (folder / families.CONFIG).is_file():
            return EncoderSpec(text, "hf", folder)
        raise ModelError(
            f"{folder}: neither the folder of a finished run ({runs.FILE}) nor of open_clip"
            f" ({open_clip.CONFIG}) nor of transformers ({families.CONFIG}). Fix: finish a run with"
            " train --resume, or name its checkpoints/best"
        )
    return EncoderSpec(text, "folder", folder, weights)


def _architecture(text: str) -> EncoderSpec:
    """Return what ``ARCH/WEIGHTS`` means."""
    if text.startswith(PREFIX):
        return _timm(text)
    architecture, _, weights = text.partition("/")
    if weights and not open_clip.knows(architecture):
        raise unknown_model(text)
    if not weights:
        open_clip.config_of(architecture)
        raise ModelError(
            f"{text}: an architecture without weights. Fix: say {architecture}/TAG (tags:"
            f" {_tags(architecture)}), {architecture}/FILE or {architecture}/random:SEED"
        )
    if weights.startswith("random:"):
        return EncoderSpec(text, "random", architecture=architecture, seed=_seed(text, weights))
    if Path(weights).is_file():
        return EncoderSpec(text, "file", Path(weights), architecture=architecture)
    if weights in open_clip.tags_of(architecture):
        return EncoderSpec(text, "tag", architecture=architecture, tag=weights)
    open_clip.config_of(architecture)
    raise ModelError(
        f"{text}: '{weights}' is neither a tag of {architecture} ({_tags(architecture)}, ...) nor a"
        " file. Fix: correct the name or path"
    )


def _timm(text: str) -> EncoderSpec:
    """Return what ``timm/NAME.TAG``, ``timm/NAME/FILE`` or ``timm/NAME/random:SEED`` means."""
    name, _, weights = text.removeprefix(PREFIX).partition("/")
    timm_teacher.refuse_unknown(text, name)
    base, _, tag = name.partition(".")
    tags = timm_teacher.tags_of(base)
    if tag and tag not in tags:
        known = ", ".join(tags[:FEW_TAGS]) or "none known"
        raise ModelError(
            f"{text}: '{tag[:100]}' is no tag of timm's {base} ({known}). Fix: correct the name"
        )
    if weights.startswith("random:"):
        return EncoderSpec(text, "timm", architecture=name, tag=tag, seed=_seed(text, weights))
    if weights and not Path(weights).is_file():
        raise ModelError(f"{text}: there is no such file {weights}. Fix: check the path")
    if weights:
        return EncoderSpec(text, "timm", Path(weights), architecture=name, tag=tag)
    if tag:
        return EncoderSpec(text, "timm", architecture=name, tag=tag)
    known = ", ".join(tags[:FEW_TAGS]) or "none known"
    raise ModelError(
        f"{text}: an image model without weights. Fix: say {PREFIX}{base}.TAG (tags: {known}),"
        f" {PREFIX}{base}/FILE or {PREFIX}{base}/random:SEED"
    )


def _seed(text: str, weights: str) -> int:
    if not re.fullmatch(r"random:[0-9]{1,18}", weights):
        architecture = text.rpartition("/")[0]
        raise ModelError(
            f"{text}: expected {architecture}/random:SEED with a whole number of at most 18 digits."
            f" Fix: write e.g. {architecture}/random:0"
        )
    return int(weights.removeprefix("random:"))


def _tags(architecture: str) -> str:
    return ", ".join(open_clip.tags_of(architecture)[:FEW_TAGS]) or "none known"

"""Export to a folder that transformers loads with ``AutoModel`` and ``AutoProcessor``, offline.

The class depends on the towers: ``CLIPModel`` for vision transformers of open_clip, ``SiglipModel``
for SigLIP's, ``VisionTextDualEncoderModel`` for image towers of timm. The files are written without
transformers; with it, they are loaded again and compared.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimefm.errors import ModelError
from dimefm.export import hf_files, hf_image, hf_text
from dimefm.export.formats import Options, Variant
from dimefm.export.hf_blocks import NotExpressible, Tensors
from dimefm.export.hf_text import Part
from dimefm.export.whole import WholeClip
from dimefm.models.hf.model import HfClip
from dimefm.models.hf.tokenizer import FolderTokenizer
from dimefm.runs.folder import save_tensors
from dimefm.runtime import console
from dimefm.storage.files import to_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
USAGE = "hf.md"
LEAST_COSINE = 0.99999
TAGS = {"library_name": "transformers", "pipeline_tag": "zero-shot-image-classification"}
CLIP, SIGLIP, DUAL = "CLIPModel", "SiglipModel", "VisionTextDualEncoderModel"


@dataclass(frozen=True)
class Layout:
    """A model as one of transformers' classes: its ``config.json`` and its tensors."""

    name: str
    config: dict[str, Any]
    tensors: Tensors


def check(whole: WholeClip, options: Options) -> None:
    """Raise ModelError for a model that no class of transformers computes."""
    layout_of(whole)


def layout_of(whole: WholeClip) -> Layout:
    """Return a model as the first class of transformers that computes it.

    Raises ModelError with the reason of each class when none does.
    """
    if isinstance(whole.image, HfClip):
        raise ModelError(f"{whole.name}: is a model of transformers already. Fix: copy its folder")
    reasons: dict[str, str] = {}
    makers: dict[str, Callable[[WholeClip], Layout]] = {CLIP: _clip, SIGLIP: _siglip, DUAL: _dual}
    for name, make in makers.items():
        try:
            layout = make(whole)
            hf_files.processor_settings(whole.preprocess)
            return layout
        except NotExpressible as error:
            reasons[name] = str(error)
    words = "; ".join(f"{name}: it has {reason}" for name, reason in reasons.items())
    raise ModelError(
        f"{whole.name}: no class of transformers computes it ({words[:330]}). Fix: use --to"
        " open_clip or --to onnx"
    )


def _clip(whole: WholeClip) -> Layout:
    return _joined(CLIP, "clip", whole, hf_image.clip_image(whole), hf_text.clip_text(whole))


def _dual(whole: WholeClip) -> Layout:
    image = hf_image.timm_image(whole)
    text = hf_text.clip_text(whole)
    return _joined(DUAL, "vision-text-dual-encoder", whole, image, text)


def _joined(name: str, kind: str, whole: WholeClip, image: Part, text: Part) -> Layout:
    """Return two towers with a projection behind each."""
    if whole.logit_bias is not None:
        raise NotExpressible("a bias on its logits")
    assert image.projection is not None and text.projection is not None
    scalars = whole.scalars()
    tensors = _prefixed(image, text)
    tensors["visual_projection.weight"] = image.projection
    tensors["text_projection.weight"] = text.projection
    tensors["logit_scale"] = scalars["logit_scale"]
    config = {
        "architectures": [name],
        "model_type": kind,
        "projection_dim": whole.dim,
        "logit_scale_init_value": math.log(whole.logit_scale),
        "dtype": "float32",
        "text_config": text.config,
        "vision_config": image.config,
    }
    return Layout(name, config, tensors)


def _siglip(whole: WholeClip) -> Layout:
    image = hf_image.siglip_image(whole)
    text = hf_text.siglip_text(whole)
    if whole.logit_bias is None:
        raise NotExpressible("no bias on its logits")
    hf_files.tokenizer_json(whole.tokenizer)
    tensors = _prefixed(image, text)
    for name, value in whole.scalars().items():
        tensors[name] = value.reshape(1)
    config = {
        "architectures": [SIGLIP],
        "model_type": "siglip",
        "initializer_factor": 1.0,
        "dtype": "float32",
        "text_config": text.config,
        "vision_config": image.config,
    }
    return Layout(SIGLIP, config, tensors)


def _prefixed(image: Part, text: Part) -> Tensors:
    tensors = {}
    for prefix, part in (("vision_model.", image), ("text_model.", text)):
        for name, tensor in part.tensors.items():
            tensors[prefix + name] = tensor
    return tensors


def write(whole: WholeClip, folder: Path, options: Options) -> dict[str, Any]:
    """Write the config, the weights, and the files of the tokenizer and the processor."""
    layout = layout_of(whole)
    (folder / CONFIG).write_text(to_json(layout.config), encoding="utf-8")
    tensors = {}
    for name, tensor in layout.tensors.items():
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    write_processing(whole, folder, layout.name)
    return {"class": layout.name}


def write_processing(whole: WholeClip, folder: Path, name: str) -> None:
    """Write the tokenizer and the image processor of one of transformers' classes."""
    if name == SIGLIP:
        hf_files.write_other_tokenizer(whole.tokenizer, folder)
        image_class, whole_class = "SiglipImageProcessor", "SiglipProcessor"
    else:
        if isinstance(whole.tokenizer, FolderTokenizer):
            whole.tokenizer.save(folder)
        else:
            hf_files.write_clip_tokenizer(whole.tokenizer, folder, whole.context_length)
        image_class, whole_class = "CLIPImageProcessor", "CLIPProcessor"
        if name == DUAL:
            whole_class = "VisionTextDualEncoderProcessor"
    hf_files.write_processor(whole.preprocess, folder, image_class, whole_class)


def variants(whole: WholeClip, folder: Path, options: Options) -> list[Variant]:
    """Return the written folder as transformers loads it, nothing where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        console.note(
            "note: the export was not loaded again, since the package transformers is not"
            " installed. Fix: pip install 'dimefm[export]' and export again"
        )
        return []
    from dimefm.export import hf_loading

    encoder = hf_loading.load(folder, whole.encoder.card)
    return [Variant("transformers", encoder, LEAST_COSINE, plain_texts=True)]

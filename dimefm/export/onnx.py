"""Export to ONNX: one file per tower, in the layout that transformers.js reads.

``models/onnx_folder.py`` describes the folder, and loads it as an encoder again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer

from dimefm.errors import ModelError
from dimefm.export import bpe_files, graphs, hf_files
from dimefm.export.formats import Options, Variant
from dimefm.export.hf_blocks import NotExpressible
from dimefm.export.whole import WholeClip
from dimefm.models import onnx_folder
from dimefm.models.onnx_folder import FACTS, IMAGE, TEXT, VARIANTS, graph_file
from dimefm.models.onnx_session import EXTRA
from dimefm.models.open_clip import activation_of
from dimefm.runtime.extras import package
from dimefm.storage.files import to_json

USAGE = "onnx.md"
SETTINGS = ("opset",)
TAGS = {"library_name": "transformers.js", "pipeline_tag": "zero-shot-image-classification"}

LEAST_COSINE = {"fp32": 0.99999, "uint8": 0.98, "fp16": 0.999}
"""Limits of the gate: how near the embeddings of each set of graphs must be to the model's."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check(whole: WholeClip, options: Options) -> None:
    """Raise an error for a model that cannot be written, a wrong opset or a missing package."""
    check_packages(options)
    _clip_tokenizer(whole)
    try:
        hf_files.processor_settings(whole.preprocess)
    except NotExpressible as error:
        raise ModelError(
            f"{whole.name}: cannot be exported to onnx: it has {error}. Fix: export it --to"
            " open_clip"
        ) from error


def check_packages(options: Options) -> None:
    """Raise an error for a wrong opset or a missing package."""
    for name in PACKAGES:
        package(name, EXTRA)
    graphs.check_opset(opset_of(options))


def write(whole: WholeClip, folder: Path, options: Options) -> dict[str, Any]:
    """Write graphs and settings into an empty folder; return what the record says about them."""
    opset = opset_of(options)
    (folder / onnx_folder.GRAPHS).mkdir()
    cut = write_graphs(whole, folder, opset)
    for variant in ("uint8", "fp16"):
        write_variant(folder, variant, (IMAGE, TEXT))
    hf_files.write_clip_tokenizer(_clip_tokenizer(whole), folder, context_length(whole))
    hf_files.write_processor(whole.preprocess, folder, "CLIPImageProcessor", "CLIPProcessor")
    content = config(whole, cut)
    (folder / onnx_folder.CONFIG).write_text(to_json(content), encoding="utf-8")
    return {"opset": opset, "any_text_length": cut is not None}


def write_graphs(
    whole: WholeClip, folder: Path, opset: int, text: bool = True
) -> graphs.Trimmed | None:
    """Write the float32 graphs of both towers, or of the image tower alone.

    Returns how the text tower is cut, None where it is not.
    """
    size = whole.encoder.image_size
    image_path = folder / graph_file(IMAGE, "fp32")
    graphs.write_image_graph(_ready(whole.image), size, image_path, opset)
    if not text:
        return None
    text_path = folder / graph_file(TEXT, "fp32")
    return graphs.write_text_graph(_ready(whole.text), context_length(whole), text_path, opset)


def write_variant(folder: Path, variant: str, kinds: tuple[str, ...]) -> None:
    """Write the graphs of a folder once more, with smaller weights."""
    make = {"uint8": graphs.quantize, "fp16": graphs.halve}[variant]
    for kind in kinds:
        make(folder / graph_file(kind, "fp32"), folder / graph_file(kind, variant))


def variants(whole: WholeClip, folder: Path, options: Options) -> list[Variant]:
    """Load each set of graphs again, for the gate."""
    cpu = torch.device("cpu")
    loaded = []
    for name in VARIANTS:
        encoder = onnx_folder.load(str(folder), folder, name, cpu, "fp32")
        loaded.append(Variant(name, encoder, LEAST_COSINE[name]))
    return loaded


def _ready(model: torch.nn.Module) -> torch.nn.Module:
    return model.to("cpu").float().eval()


def opset_of(options: Options) -> int:
    """Return the operator set that was asked for."""
    return int(options.settings.get("opset", graphs.OPSET))


def context_length(whole: WholeClip) -> int:
    """Return the most tokens of a sentence; raise ModelError where the tokenizer has no limit."""
    if whole.context_length is None:
        raise ModelError(
            f"{whole.name}: its tokenizer states no context length, expected a number. Fix: export"
            " it --to open_clip"
        )
    return whole.context_length


def config(whole: WholeClip, cut: graphs.Trimmed | None, has_text: bool = True) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    height, width = whole.encoder.image_size
    content: dict[str, Any] = {
        "model_type": "clip",
        "projection_dim": whole.dim,
        "logit_scale_init_value": math.log(whole.logit_scale),
        "vision_config": {
            "model_type": "clip_vision_model",
            "projection_dim": whole.dim,
            "image_size": max(height, width),
        },
    }
    text_cfg: dict[str, Any] = {}
    if has_text:
        tokenizer = _clip_tokenizer(whole)
        length = context_length(whole)
        text_cfg = {"context_length": length, "vocab_size": tokenizer.vocab_size}
        content["text_config"] = {
            "model_type": "clip_text_model",
            "projection_dim": whole.dim,
            "vocab_size": tokenizer.vocab_size,
            "max_position_embeddings": length,
            "bos_token_id": tokenizer.sot_token_id,
            "eos_token_id": tokenizer.eot_token_id,
            "pad_token_id": tokenizer.eot_token_id,
        }
    content[FACTS] = {
        "version": 1,
        "dim": whole.dim,
        "logit_scale": whole.logit_scale,
        "logit_bias": whole.logit_bias,
        "activation": activation_of(whole.text),
        "has_text": has_text,
        "any_length": cut is not None,
        "end": None if cut is None else cut.eos,
        "preprocess": {**whole.preprocess, "size": [height, width]},
        "text_cfg": text_cfg,
        "tokenizer": whole.encoder.card.tokenizer or "",
    }
    return content


def _clip_tokenizer(whole: WholeClip) -> SimpleTokenizer:
    return bpe_files.require_clip_bpe(whole.tokenizer, "onnx", "export it --to open_clip")

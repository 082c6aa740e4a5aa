"""Towers as ONNX graphs: one file each, with any number of images or sentences in a batch.

================  ==========================================  ===================================
file              input                                       output
================  ==========================================  ===================================
image graph       ``pixel_values`` float32 [B, 3, H, W]       ``image_embeds`` float32 [B, D]
text graph        ``input_ids`` int64 [N, L]                  ``text_embeds`` float32 [N, D]
================  ==========================================  ===================================

The names are those of transformers.js. Embeddings are as the tower gives them, not of length 1.

A text tower that reads nothing behind the end of a sentence takes any L up to its context length,
and ignores what stands behind the end. Other text towers take the full context length only.

Written against the exporter of torch 2.14 and onnxruntime 1.32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models.onnx_folder import IMAGE_ROWS, PIXELS, TEXT_ROWS, TOKENS
from dimefm.models.onnx_session import EXTRA
from dimefm.models.open_clip import quiet, reason_of
from dimefm.models.trimmed_text import Trimmed, trimmed
from dimefm.runtime.extras import package

OPSET = 20
OPSETS = range(18, 24)
"""Operator sets that torch's exporter writes and onnxruntime runs."""

EXAMPLES = 3  # rows of the input that is traced; 0 and 1 would become constants
SHORTEST = 2  # tokens of a sentence: its start and its end


class ImageGraph(nn.Module):
    """What an image graph computes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return embeddings [B, D] of pixels [B, 3, H, W]."""
        return self.model.encode_image(pixel_values)


class TextGraph(nn.Module):
    """What a text graph computes: of any length where ``cut`` is given, else of full length."""

    def __init__(self, model: nn.Module, cut: Trimmed | None):
        super().__init__()
        self.model = model if cut is None else cut.parts
        self._cut = cut

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return embeddings [N, D] of tokens [N, L]."""
        if self._cut is None:
            return self.model.encode_text(input_ids)
        return self._cut.encode_text(input_ids)


def check_opset(opset: int) -> None:
    """Raise ModelError for an operator set that cannot be written."""
    if opset not in OPSETS:
        raise ModelError(
            f"--opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}. Fix: choose one, {OPSET} suits"
            " most programs"
        )


def write_image_graph(
    model: nn.Module, size: tuple[int, int], path: Path, opset: int = OPSET
) -> None:
    """Write the image tower of a model, for pixels of ``size`` (height, width).

    Raises ModelError when the tower cannot be expressed.
    """
    pixels = torch.zeros(EXAMPLES, 3, *size)
    batch = torch.export.Dim("batch")
    graph = ImageGraph(model)
    _write(graph, pixels, {0: batch}, (PIXELS, IMAGE_ROWS), path, opset)


def write_text_graph(
    model: nn.Module, context_length: int, path: Path, opset: int = OPSET
) -> Trimmed | None:
    """Write the text tower of a model.

    Returns how it is cut when it takes sentences of any length, None when it does not. Raises
    ModelError when the tower cannot be expressed.
    """
    cut = trimmed(model)
    length = context_length if cut is None else min(context_length, EXAMPLES * EXAMPLES)
    tokens = torch.ones(EXAMPLES, length, dtype=torch.long)
    dynamic = {0: torch.export.Dim("batch")}
    if cut is not None:
        dynamic[1] = torch.export.Dim("length", min=SHORTEST, max=context_length)
    graph = TextGraph(model, cut)
    _write(graph, tokens, dynamic, (TOKENS, TEXT_ROWS), path, opset)
    return cut


def _write(
    graph: nn.Module,
    example: Tensor,
    dynamic: dict[int, Any],
    names: tuple[str, str],
    path: Path,
    opset: int,
) -> None:
    """Trace a graph on an example and write it as one file."""
    check_opset(opset)
    for name in ("onnx", "onnxscript"):
        package(name, EXTRA)
    source, target = names
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.eval(),
                (example,),
                None,
                dynamo=True,
                input_names=[source],
                output_names=[target],
                dynamic_shapes={source: dynamic},
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # torch and onnxscript raise freely on what they cannot trace
        raise ModelError(
            f"{path.name}: the tower cannot be expressed in ONNX ({reason_of(error)}). Fix: export"
            " it --to open_clip"
        ) from error
    assert program is not None
    with quiet():
        program.save(str(path), external_data=False)


def quantize(source: Path, target: Path) -> None:
    """Write a graph with its weights as 8-bit numbers; activations are quantized when it runs."""
    quantization = package("onnxruntime.quantization", EXTRA)
    with quiet():
        kind = quantization.QuantType.QUInt8
        quantization.quantize_dynamic(str(source), str(target), weight_type=kind)


def halve(source: Path, target: Path) -> None:
    """Write a graph with its weights as 16-bit floats; inputs and outputs stay float32.

    So do the norms: onnxruntime 1.32 crashes when it loads a vision transformer with 16-bit norms.
    """
    onnx = package("onnx", EXTRA)
    float16 = package("onnxruntime.transformers.float16", EXTRA)
    kept = [*float16.DEFAULT_OP_BLOCK_LIST, "LayerNormalization"]
    with quiet():
        model = float16.convert_float_to_float16(
            onnx.load(str(source)), keep_io_types=True, op_block_list=kept
        )
        onnx.save(model, str(target))

"""Run one ONNX graph on the CPU, from a file that may have come with data.

The file must hold all its weights: a graph may name other files to read them from, and such a graph
is refused. onnxruntime has no operators that run code or open files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dimefm.errors import ModelError
from dimefm.runtime.extras import package
from dimefm.runtime.text import shortened

EXTRA = "export"
MOST_BYTES = 2 << 30  # of a graph: the most that a file of protobuf can have
MOST_REASON = 300  # characters of onnxruntime's reason


class Graph:
    """An ONNX graph of one input and one output, ready to run.

    ``shape`` is that of the input; an axis of any length is None. ``parameters`` counts the numbers
    of its weights.
    """

    def __init__(self, path: Path, source: str, target: str):
        """Load the graph that turns ``source`` into ``target``; raise ModelError when it cannot be
        used.
        """
        self.path = path
        self._source = source
        self._target = target
        data = _read(path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.parameters = _checked_weights(data, path)
        self._session = _session(data, path)
        self.shape = _shape(self._session.get_inputs(), source, path)
        self.output_shape = _shape(self._session.get_outputs(), target, path)

    def run(self, values: np.ndarray) -> np.ndarray:
        """Return the output, float32 [N, D], for an input: pixels, float32 [N, 3, H, W], or tokens,
        int64 [N, L]. Raises ModelError with onnxruntime's reason.
        """
        try:
            (result,) = self._session.run([self._target], {self._source: values})
        except Exception as error:  # onnxruntime has its own classes, of no common base
            raise ModelError(
                f"{self.path}: cannot be run on an input of shape {list(values.shape)}, expected"
                f" {list(self.shape)} ({_reason(error)}). Fix: export the model again"
            ) from error
        return result


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size <= MOST_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}). Fix: export the model again"
        ) from error
    raise ModelError(
        f"{path}: has {size:,} bytes, expected at most {MOST_BYTES:,}. Fix: export the model again"
    )


def _checked_weights(data: bytes, path: Path) -> int:
    """Return how many numbers the weights have; raise ModelError when one is in another file."""
    onnx = package("onnx", EXTRA)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own class
        raise ModelError(
            f"{path}: is no ONNX file ({_reason(error)}). Fix: export the model again"
        ) from error
    if not model.graph.node:
        raise ModelError(f"{path}: is no ONNX file (it is empty). Fix: export the model again")
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"{path}: weights '{tensor.name[:60]}' lie in another file, expected one file with"
                " all weights. Fix: export the model again"
            )
    count = 0
    for tensor in model.graph.initializer:
        count += int(np.prod(tensor.dims, dtype=np.int64))
    return count


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor below a message of protobuf, in subgraphs and functions too."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        parts: Iterable[Any] = [value] if hasattr(value, "DESCRIPTOR") else value
        for part in parts:
            yield from _tensors(part)


def _session(data: bytes, path: Path) -> Any:
    runtime = package("onnxruntime", EXTRA)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own classes, of no common base
        raise ModelError(
            f"{path}: onnxruntime {runtime.__version__} cannot load it ({_reason(error)}). Fix:"
            " export the model again, with a smaller --opset for an old onnxruntime"
        ) from error


def _shape(places: Iterable[Any], name: str, path: Path) -> tuple[int | None, ...]:
    """Return the shape of the input or output ``name``; raise ModelError when there is none."""
    names = []
    for place in places:
        names.append(place.name)
        if place.name == name:
            return tuple(size if isinstance(size, int) else None for size in place.shape)
    raise ModelError(
        f"{path}: has {', '.join(names)[:100]}, expected '{name}'. Fix: export the model again"
    )


def _reason(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__, MOST_REASON)

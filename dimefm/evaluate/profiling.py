"""What an encoder costs: parameters, operations, speed and memory, and on which machine."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dimefm.models.encoder import Encoder
from dimefm.models.macs import NO_MODULES, NO_TEXT, image_macs, text_macs
from dimefm.models.onnx_folder import OnnxEncoder
from dimefm.runtime.machine import machine

SENTENCE = "a photo of a small dog on a lawn in front of a red house."
"""The sentence whose encoding is timed; it has the length of a usual caption."""

SECONDS = 0.3
"""How long the encoding of each tower is timed at most, beyond the batch that is running then."""

MOST_CALLS = 10
MOST_BATCH = 32
STATUS = Path("/proc/self/status")


def facts(encoder: Encoder, *, measure: bool = True) -> dict[str, Any]:
    """Return what every result says of its encoder and the machine, ready for JSON.

    Keys: ``image_parameters`` and ``text_parameters`` (numbers of weights), ``image_macs`` and
    ``text_macs`` (multiply-accumulate operations of an image and of a sentence of full context,
    None where they cannot be counted, with the reason in ``macs_note``), ``images_per_second`` and
    ``sentences_per_second`` (of prepared pixels and tokens, in batches, on this machine),
    ``peak_memory_bytes`` (the most that this process has had in memory), on a GPU
    ``peak_gpu_memory_bytes``, ``dim``, ``precision``, ``device``, ``threads`` and ``machine``, see
    :func:`dimefm.runtime.machine.machine`.

    Without ``measure`` operations and speeds are left out. Measuring takes about a second, or four
    batches of one image where an image takes longer.
    """
    has_text = encoder.has_text
    known: dict[str, Any] = {
        "image_parameters": encoder.image_parameters,
        "text_parameters": encoder.text_parameters if has_text else 0,
    }
    if measure:
        known |= _operations(encoder, has_text)
        known |= _speeds(encoder, has_text)
    known["peak_memory_bytes"] = peak_memory_bytes()
    if encoder.device.type == "cuda":
        known["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(encoder.device)
    known |= {
        "dim": encoder.card.dim,
        "precision": encoder.precision,
        "device": encoder.device.type,
        "threads": torch.get_num_threads(),
        "machine": machine(),
    }
    return known


def peak_memory_bytes() -> int | None:
    """Return the most bytes that this process has had in memory, None where that is unknown."""
    try:
        status = STATUS.read_text()
    except OSError:
        return _peak_of_usage()
    peak = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return None if peak is None else int(peak[1]) * 1024


def _peak_of_usage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _operations(encoder: Encoder, has_text: bool) -> dict[str, Any]:
    """Return the operations of both towers, and why one is not known."""
    found: dict[str, Any] = {
        "image_macs": image_macs(encoder),
        "text_macs": text_macs(encoder) if has_text else None,
    }
    if isinstance(encoder, OnnxEncoder):
        found["macs_note"] = NO_MODULES
    elif not has_text:
        found["macs_note"] = NO_TEXT
    return found


def _speeds(encoder: Encoder, has_text: bool) -> dict[str, Any]:
    """Return how many images and sentences are encoded a second."""
    image = torch.zeros(1, 3, *encoder.image_size)
    found: dict[str, Any] = {
        "images_per_second": _rate(encoder.encode_image, image, encoder.device),
        "sentences_per_second": None,
    }
    if has_text:
        tokens, _ = encoder.tokenize([SENTENCE])
        found["sentences_per_second"] = _rate(encoder.encode_text, tokens, encoder.device)
    return found


def _rate(encode: Callable[[Tensor], Tensor], one: Tensor, device: torch.device) -> float:
    """Return how many inputs like ``one`` [1, ..] are encoded a second, in batches.

    The first two calls are not counted: they allocate and choose algorithms.
    """
    _timed(encode, one, device)
    seconds = _timed(encode, one, device)
    wanted = int(SECONDS / 4 / max(seconds, 1e-6))
    size = min(max(wanted, 1), MOST_BATCH)
    batch = one.expand(size, *one.shape[1:]).contiguous()
    if size > 1:
        _timed(encode, batch, device)
    spent = 0.0
    calls = 0
    while spent < SECONDS and calls < MOST_CALLS:
        spent += _timed(encode, batch, device)
        calls += 1
    return round(calls * size / spent, 3)


def _timed(encode: Callable[[Tensor], Tensor], batch: Tensor, device: torch.device) -> float:
    """Return the seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    encode(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started

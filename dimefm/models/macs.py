"""Multiply-accumulate operations of a tower.

They are half the floating-point operations that ``torch.utils.flop_counter`` counts: those of
convolutions, linear layers and both products of attention. Norms, activations and the lookup of
token embeddings are not counted. The same method gives the figures that TinyCLIP publishes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dimefm.models.encoder import Encoder
from dimefm.models.onnx_folder import OnnxEncoder

NO_MODULES = "the operations of ONNX graphs are not counted"
NO_TEXT = "there is no text tower"


def image_macs(encoder: Encoder) -> int | None:
    """Return the multiply-accumulate operations of one image, None for a graph of ONNX."""
    if isinstance(encoder, OnnxEncoder):
        return None
    pixels = torch.zeros(1, 3, *encoder.image_size, device=encoder.device)
    return _counted(encoder.image_model.encode_image, pixels)


def text_macs(encoder: Encoder) -> int | None:
    """Return the multiply-accumulate operations of one sentence that fills the whole context.

    It is None for a graph of ONNX, and for a model without a text tower.
    """
    if isinstance(encoder, OnnxEncoder) or not encoder.has_text:
        return None
    tokens, _ = encoder.tokenize(["a photo"])  # padded to the context, which costs as much
    return _counted(encoder.text_model.encode_text, tokens.to(encoder.device))


def _counted(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _countable(), counter:
        encode(inputs)
    return counter.get_total_flops() // 2


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Run attention as plain products of matrices, which the counter knows on every device."""
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)

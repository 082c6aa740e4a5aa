"""What an encoder costs: its parameters, and the machine and libraries of an evaluation."""

from __future__ import annotations

from typing import Any

from dimefm.models.encoder import Encoder
from dimefm.runtime.machine import machine


def facts(encoder: Encoder) -> dict[str, Any]:
    """Return what every result says of its encoder and the machine, ready for JSON.

    Keys: ``image_parameters`` and ``text_parameters`` (numbers of weights), ``dim``,
    ``precision``, ``device`` and ``machine``, see :func:`dimefm.runtime.machine.machine`.
    """
    return {
        "image_parameters": encoder.image_parameters,
        "text_parameters": encoder.text_parameters,
        "dim": encoder.card.dim,
        "precision": encoder.precision,
        "device": encoder.device.type,
        "machine": machine(),
    }

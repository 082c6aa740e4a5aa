"""What an encoder costs, in words; :mod:`dimefm.evaluate.profiling` measures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GIGA = 1e9
MEGA = 1e6
MEBI = 1 << 20


def summary(known: Mapping[str, Any]) -> list[str]:
    """Return two lines for people on what an encoder costs; [] when nothing was measured."""
    if "images_per_second" not in known:
        return []
    image = _tower(known, "image", "images/s")
    text = _tower(known, "text", "sentences/s")
    memory = known.get("peak_memory_bytes")
    where = f"{known['machine']['cpu']}, {known['threads']} threads"
    if known["device"] != "cpu":
        where = ", ".join(known["machine"]["gpus"]) or known["device"]
    if memory:
        where += f"; peak memory {memory / MEBI:,.0f} MiB"
    towers = f"image tower: {image}"
    if known["text_parameters"]:
        towers += f"; text tower: {text}"
    return [towers, f"measured on {where}"]


def _tower(known: Mapping[str, Any], kind: str, unit: str) -> str:
    """Return the cost of one tower in words."""
    parts = [f"{known[f'{kind}_parameters'] / MEGA:.1f} M parameters"]
    macs = known.get(f"{kind}_macs")
    if macs is not None:
        parts.append(f"{macs / GIGA:.3g} GMACs")
    name = "images_per_second" if kind == "image" else "sentences_per_second"
    speed = known.get(name)
    if speed is not None:
        parts.append(f"{speed:,.0f} {unit}")
    return ", ".join(parts)

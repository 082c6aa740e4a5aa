"""What an encoder costs, in words; :mod:`dimefm.evaluate.profiling` measures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GIGA = 1e9
MEGA = 1e6
MEBI = 1 << 20


def sizes(known: Mapping[str, Any]) -> list[str]:
    """Return a line on parameters and operations; [] when they were not counted.

    They do not differ from call to call, so that equal evaluations write equal pages.
    """
    if "image_macs" not in known:
        return []
    line = f"image tower: {_tower(known, 'image')}"
    if known["text_parameters"]:
        line += f"; text tower: {_tower(known, 'text')}"
    return [line]


def speeds(known: Mapping[str, Any]) -> list[str]:
    """Return a line on what was measured on this machine; [] when nothing was."""
    images = known.get("images_per_second")
    sentences = known.get("sentences_per_second")
    if images is None:
        return []
    line = f"speed: {images:,.0f} images/s"
    if sentences is not None:
        line += f", {sentences:,.0f} sentences/s"
    count = known["threads"]
    threads = "1 thread" if count == 1 else f"{count} threads"
    where = f"{known['machine']['cpu']}, {threads}"
    if known["device"] != "cpu":
        where = ", ".join(known["machine"]["gpus"]) or known["device"]
    memory = known.get("peak_memory_bytes")
    peak = "" if memory is None else f"; peak memory {memory / MEBI:,.0f} MiB"
    return [f"{line} ({where}){peak}"]


def _tower(known: Mapping[str, Any], kind: str) -> str:
    parts = [f"{known[f'{kind}_parameters'] / MEGA:.1f} M parameters"]
    macs = known.get(f"{kind}_macs")
    if macs is not None:
        parts.append(f"{macs / GIGA:.3g} GMACs")
    return ", ".join(parts)

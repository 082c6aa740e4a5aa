"""The digest of a run's weights, as an encoder states it, from the files alone and without torch.

It is what ``scores.json`` calls ``weights_sha256``, and tells which run was scored.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dimefm.errors import ModelError
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord

LONGEST_HEADER = 100 << 20  # bytes; the limit of safetensors itself
BLOCK = 1 << 20
TORCH_NAMES = {
    "F64": "torch.float64",
    "F32": "torch.float32",
    "F16": "torch.float16",
    "BF16": "torch.bfloat16",
    "I64": "torch.int64",
    "I32": "torch.int32",
    "I16": "torch.int16",
    "I8": "torch.int8",
    "U8": "torch.uint8",
    "BOOL": "torch.bool",
}
"""Types of safetensors -> torch's names of them."""


def scored_weights(folder: Path, record: RunRecord) -> str | None:
    """Return the digest that an encoder of the run has, None when its weights cannot be read.

    A run of one tower has the digest of its tower and of its teacher together.
    """
    try:
        own = _digest_of_file(folder / runs.KINDS[record.kind])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if record.kind == "clip":
        return own
    teacher = (record.teacher or {}).get("weights_sha256")
    image, text = (own, teacher) if record.kind == "image-tower" else (teacher, own)
    return hashlib.sha256(f"{image}{text}".encode()).hexdigest()


def weights_of(folder: Path) -> str | None:
    """Return the digest of the run in a folder, None when it is not finished or cannot be read."""
    if not (folder / runs.FILE).is_file():
        return None
    try:
        return scored_weights(folder, runs.read(folder))
    except ModelError:
        return None


def _digest_of_file(path: Path) -> str:
    """Return the digest of the tensors of a safetensors file: name, type, shape and bytes of each,
    in order of name. Raises OSError or ValueError when it is no such file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name in sorted(header):
            entry = header[name]
            kind = TORCH_NAMES[entry["dtype"]]
            digest.update(f"{name}:{kind}:{tuple(entry['shape'])}:".encode())
            start, end = entry["data_offsets"]
            file.seek(8 + length + start)
            remaining = end - start
            while remaining > 0:
                block = file.read(min(BLOCK, remaining))
                if not block:
                    raise ValueError("the file ends within a tensor")
                digest.update(block)
                remaining -= len(block)
    return digest.hexdigest()

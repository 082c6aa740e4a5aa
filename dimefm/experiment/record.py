"""``stages.json``: what each finished stage was made from, and what it left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimefm.errors import DataError
from dimefm.storage.files import to_json, write_text
from dimefm.storage.small_files import read_json

FILE = "stages.json"


@dataclass(frozen=True)
class StageRecord:
    """One finished stage: digests of its inputs and outputs, and what came of it.

    ``summary`` is one line for people, ``details`` a table or "", ``seconds`` what it took.
    """

    inputs: str
    outputs: str
    summary: str
    details: str
    seconds: float


def read_records(out: Path) -> dict[str, StageRecord]:
    """Return the records of the stages that are finished in ``out``, by name.

    Raises DataError when the file is damaged.
    """
    path = out / FILE
    if not path.exists():
        return {}
    try:
        fields = read_json(path)
        return {name: StageRecord(**values) for name, values in fields.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). Fix: remove it; finished stages are then checked"
            " again"
        ) from error


def write_records(out: Path, records: dict[str, StageRecord]) -> None:
    """Write the records of finished stages."""
    fields = {name: dataclasses.asdict(record) for name, record in records.items()}
    write_text(out / FILE, to_json(fields))


def digest_of(value: Any) -> str:
    """Return the SHA-256 of JSON values, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()

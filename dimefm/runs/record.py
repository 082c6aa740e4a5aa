"""The record of a finished run, ``run.json``: what its folder holds and how it was made."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path

from dimefm.errors import ModelError
from dimefm.storage.files import to_json
from dimefm.storage.small_files import parse_json

FILE = "run.json"
LOG = "log.jsonl"  # one object per logged step

FINGERPRINTS = (
    "image_cache",
    "text_cache",
    "neighbours",
    "image_tokens",
    "text_tokens",
    "pairs",
)
"""The keys under which fingerprints of the training data are in the JSON."""

WRITTEN_AS_NULL = ("preprocess_cfg", "teacher", "teacher_at")
"""The fields that the JSON always has; other fields of the value None are not written."""

TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


@dataclass(frozen=True)
class RunRecord:
    """The fields of ``run.json``, in the order of the file.

    ``kind`` is "clip", "image-tower" or "text-tower"; ``model_cfg`` is the model in open_clip's
    words. ``teacher`` is the card of the first teacher (None without teachers), ``teacher_at`` its
    path relative to the run folder when it is a file or folder. ``fingerprints`` maps a key of the
    recipe to the fingerprints of what the run was trained on. ``machine`` is what rounds sums:
    torch's threads, the number of processes, the kind of device, torch's version. ``start`` says
    which weights the student began with (None: random ones), by tower. ``pruned`` says
    which share of the parameters was cut, and the sizes of the towers before. ``best``
    describes the folder of the best weights; ``without_improvement`` counts the last evaluations
    of a run that ended early. ``imported`` names the file and the family of weights that were
    imported, not trained.
    """

    kind: str
    model_cfg: dict = field(default_factory=dict)
    preprocess_cfg: dict | None = None
    teacher: dict | None = None
    teacher_at: str | None = None
    teachers: list = field(default_factory=list)
    steps: int = 0
    rows: int = 0
    image_parameters: int | None = None
    text_parameters: int | None = None
    parameters: int = 0
    fingerprints: dict = field(default_factory=dict)
    libraries: dict = field(default_factory=dict)
    machine: dict | None = None
    start: dict | None = None
    token_maps: dict | None = None
    pruned: dict | None = None
    ema: float | None = None
    best: dict | None = None
    without_improvement: int | None = None
    imported: dict | None = None

    def to_json(self) -> str:
        """Return the text of ``run.json``; the fingerprints are keys of their own."""
        values = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "fingerprints":
                values.update(value)
            elif value is not None or item.name in WRITTEN_AS_NULL:
                values[item.name] = value
        return to_json(values)

    @classmethod
    def from_json(cls, text: str, path: Path) -> RunRecord:
        """Return the record that ``text``, read from ``path``, holds; unknown keys are ignored.

        Raises ModelError when the text is no JSON object, has no kind, or has a value of a wrong
        type.
        """
        values = _json_object(text, path)
        if "kind" not in values:
            raise ModelError(f"{path}: has no 'kind'. Fix: train again or restore the file")
        known: dict = {"fingerprints": {}}
        for key in FINGERPRINTS:
            if key in values:
                _check_type(values[key], list, key, path)
                known["fingerprints"][key] = values[key]
        types = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if item.name in values and item.name != "fingerprints":
                _check_type(values[item.name], types[item.name], item.name, path)
                known[item.name] = values[item.name]
        return cls(**known)


def _json_object(text: str, path: Path) -> dict:
    """Return the JSON object of a text."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ModelError(
            f"{path}: cannot be read ({error}). Fix: train again or restore the file"
        ) from error
    if not isinstance(values, dict):
        got = TYPE_NAMES.get(type(values), "true or false")
        raise ModelError(
            f"{path}: cannot be read (got {got}, expected an object). Fix: train again or restore"
            " the file"
        )
    return values


def _check_type(value: object, expected: type, key: str, path: Path) -> None:
    """Raise ModelError unless a value of the record has the ``expected`` type.

    A whole number is a number, but true and false are not.
    """
    allowed = typing.get_args(expected) or (expected,)
    if float in allowed:
        allowed = (*allowed, int)
    if isinstance(value, allowed) and not isinstance(value, bool):
        return
    names = " or ".join(TYPE_NAMES[kind] for kind in typing.get_args(expected) or (expected,))
    got = json.dumps(value, ensure_ascii=False)
    raise ModelError(
        f"{path}: '{key}' is {got[:60]}, expected {names}. Fix: train again or restore the file"
    )

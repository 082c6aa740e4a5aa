"""The weights of a folder of transformers: safetensors, or torch's format without objects."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.models import weights_file
from dimefm.models.hf.config import FolderConfig, model_class
from dimefm.models.open_clip import quiet, reason_of
from dimefm.models.weights_check import check_length, check_tensors, check_unpacked
from dimefm.runtime.text import first_few
from dimefm.storage.small_files import Unreadable, read_json

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.(safetensors|bin)")
MOST_INDEX = 16 << 20  # bytes
MOST_FILES = 200
FEW = 4  # names in a message


def weights_of(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a folder; raise ModelError when there are none."""
    for name, index in zip(WEIGHTS, INDEXES, strict=True):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / index).is_file():
            return _present(folder / index)
    raise ModelError(
        f"{folder}: cannot be loaded: it has no weights, neither {' nor '.join(WEIGHTS)}. Fix: put"
        " model.safetensors next to its config"
    )


def load(config: FolderConfig, folder: Path, parameters: int) -> nn.Module:
    """Return the model of a folder with its weights in float32.

    Raises ModelError when a weight is missing, has another shape, or belongs to no part of the
    model.
    """
    files = weights_of(folder)
    if len(files) == 1:
        check_length(files[0], parameters)
    tensors: dict[str, Tensor] = {}
    for file in files:
        check_unpacked(file, parameters)
        tensors |= _tensors(file)
    check_tensors(files[0], tensors.values(), parameters)
    try:
        with _silent(), torch.random.fork_rng(devices=[]):  # what is missing would be drawn
            model, report = model_class(config).from_pretrained(
                None,
                config=config.values,
                state_dict=tensors,
                torch_dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
            )
    except Exception as error:  # transformers raises whatever odd weights lead to
        raise _damaged(files[0], error) from error
    _refuse_unmatched(report, files[0])
    return model.eval()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from logging and from drawing bars."""
    from transformers.utils import logging

    has_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if has_bars:
            logging.enable_progress_bar()


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return weights_file.state_dict_of(file)
    except ModelError:
        raise
    except Exception as error:  # safetensors and torch raise whatever a damaged file leads to
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ModelError:
    reason = reason_of(error)
    remedy = "" if "Fix: " in reason else ". Fix: fetch the file again"
    return ModelError(f"{file}: cannot be loaded: {reason}{remedy}")


def _present(index: Path) -> list[Path]:
    """Return the files that an index names; raise ModelError when one is missing."""
    names = parts_of(index)
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise ModelError(
            f"{index}: names files that are not in the folder: {first_few(absent, FEW)}. Fix:"
            " fetch them"
        )
    return [index.parent / name for name in names]


def parts_of(index: Path) -> list[str]:
    """Return the names of the files that an index names; raise ModelError for a path."""
    try:
        content: Any = read_json(index, MOST_INDEX)
    except (OSError, Unreadable) as error:
        raise ModelError(f"{index}: cannot be read: {error}. Fix: restore the file") from error
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{index}: has no table 'weight_map'. Fix: restore the file")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if not PLAIN_NAME.fullmatch(name):
            raise ModelError(
                f"{index}: names the file '{name[:100]}', expected the name of a weights file in"
                " the same folder. Fix: restore the file"
            )
    if len(names) > MOST_FILES:
        raise ModelError(
            f"{index}: names {len(names):,} files, expected at most {MOST_FILES}. Fix: restore it"
        )
    return names


def _refuse_unmatched(report: Any, file: Path) -> None:
    """Raise ModelError for weights that a model lacks, and for those that no part of it takes."""
    faults = []
    for title, key in (
        ("missing", "missing_keys"),
        ("of another shape", "mismatched_keys"),
        ("of no part of the model", "unexpected_keys"),
    ):
        found = report.get(key) or ()
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in found)
        if names:
            faults.append(f"{len(names)} {title} ({first_few(names, FEW)})")
    if faults:
        raise ModelError(
            f"{file}: does not fit its config.json: weights {', '.join(faults)}. Fix: fetch the"
            " file and its config again"
        )

"""Check a file of weights that came with data, before it is read.

open_clip reads safetensors, and everything else with torch's loader of plain tensors, which runs no
code. What is left to check is the size: a packed file may unpack to far more than the model has.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from open_clip.factory import _find_checkpoint_in_dir

from dimefm.errors import ModelError

BYTES_OF_A_WEIGHT = 32  # at most: a weight in fp32 or fp64, and what an optimizer keeps of it
OTHER_BYTES = 256 << 20  # of a file that holds more than weights


def weights_of(folder: Path) -> Path:
    """Return the weights file of an open_clip folder; raise ModelError when there is none."""
    name = _find_checkpoint_in_dir(folder)
    if name is None:
        raise ModelError(
            f"{folder}: cannot be loaded: it has no weights. Fix: put open_clip_model.safetensors"
            " next to its config"
        )
    return Path(name)


def check_length(path: Path, parameters: int) -> None:
    """Raise ModelError when a file is too short for so many weights, before they are allocated."""
    size = _size(path)
    if size < parameters:
        raise ModelError(
            f"{path}: cannot be loaded: it has {size:,} bytes, but its config describes a model of"
            f" {parameters:,} weights. Fix: fetch the file and its config again"
        )


def check_unpacked(path: Path, parameters: int) -> None:
    """Raise ModelError when a file unpacks to far more than so many weights."""
    most = max(_size(path), BYTES_OF_A_WEIGHT * parameters + OTHER_BYTES)
    unpacked = _unpacked_size(path)
    if unpacked > most:
        raise ModelError(
            f"{path}: cannot be loaded: it unpacks to {unpacked:,} bytes, expected at most"
            f" {most:,} for a model of {parameters:,} weights. Fix: fetch the file again"
        )


def _size(path: Path) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be loaded: {error.strerror}. Fix: check the file"
        ) from error
    raise ModelError(f"{path}: cannot be loaded: it is no regular file. Fix: check the path")


def _unpacked_size(path: Path) -> int:
    """Return the size of what a zip file holds, 0 for any other file."""
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return 0
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return 0  # the loader says what is wrong with it

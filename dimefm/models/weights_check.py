"""Check a file of weights that came with data, before it is read.

open_clip reads safetensors, and everything else with torch's loader of plain tensors, which runs no
code. What is left to check is the size: a packed file may unpack to far more than the model has.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from open_clip.factory import _find_checkpoint_in_dir
from torch import Tensor, nn

from dimefm.errors import ModelError

BYTES_OF_A_WEIGHT = 32  # at most: a weight in fp32 or fp64, and what an optimizer keeps of it
OTHER_BYTES = 256 << 20  # of a file that holds more than weights
END, POINTER, LARGE_END = 22, 20, 56  # bytes of the records at the end of a zip file


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
    """Raise ModelError when a file unpacks to far more than so many weights.

    It is raised, too, for a zip file that does not say for certain what it holds.
    """
    _check_bytes(path, _unpacked_size(path), parameters)


def check_tensors(path: Path, tensors: Iterable[Tensor], parameters: int) -> None:
    """Raise ModelError when tensors have far more numbers than so many weights.

    A file of any size can have such tensors: torch's format may use a number many times.
    """
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    _check_bytes(path, numbers, parameters)


def count(model: nn.Module) -> int:
    """Return the number of weights of a model."""
    return sum(weights.numel() for weights in model.parameters())


def _check_bytes(path: Path, unpacked: int, parameters: int) -> None:
    most = max(_size(path), BYTES_OF_A_WEIGHT * parameters + OTHER_BYTES)
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
    """Return the size of what a zip file holds, 0 for any other file.

    torch has a zip reader of its own, which takes files that Python's reader does not, and finds
    the table of contents in another way. So the size counts only where both read the same table.
    """
    if path.suffix == ".safetensors" or not _is_zip(path):
        return 0
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.start_dir != _table_start(path):
                raise ValueError("it is not where the end of the file says")
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise ModelError(
            f"{path}: cannot be loaded: its table of contents cannot be read ({error}), expected a"
            " zip file as torch.save writes it. Fix: fetch the file again, or save its state_dict"
            " as .safetensors"
        ) from error


def _is_zip(path: Path) -> bool:
    """Tell whether torch and numpy take a file for a zip file, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:  # the loader says what is wrong with it
        return False


def _table_start(path: Path) -> int | None:
    """Return at which byte a zip file says that its table of contents begins.

    None when the file does not end in the record that says so, or the record is ambiguous: a file
    of more than 4 GiB has a larger record before the last one, and a pointer to it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - END - POINTER - LARGE_END))
        tail = file.read()
    end = tail[-END:]
    if not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0")):  # \0\0: no comment
        return None
    pointer = tail[-END - POINTER : -END]
    if not pointer.startswith(b"PK\x06\x07"):
        return int.from_bytes(end[16:20], "little")
    large_end = tail[: -END - POINTER]
    place = int.from_bytes(pointer[8:16], "little")
    if place != size - len(tail) or not large_end.startswith(b"PK\x06\x06"):
        return None
    return int.from_bytes(large_end[48:56], "little")

"""Read the bytes of a ``.npy`` file without trust in its header."""

from __future__ import annotations

import io
import math

import numpy as np

VERSION = (1, 0)
"""The version that numpy writes, but for arrays with more than a thousand fields."""


def array_of(data: bytes) -> tuple[np.ndarray, bytes]:
    """Return the array that the bytes of a ``.npy`` file hold, and the bytes behind it.

    The array is of numbers and shares the bytes, so it cannot be changed. Raises ValueError, with
    the reason, for anything else: Python objects, or a header that promises more than there is.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != VERSION:
            raise ValueError(f"version {version} of the format, expected {VERSION}")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise
    except Exception as error:  # numpy parses the header as Python's literals
        raise ValueError(f"the header cannot be read ({type(error).__name__})") from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}, expected numbers")
    start = file.tell()
    count = math.prod(shape)
    end = start + count * dtype.itemsize
    if min(shape, default=0) < 0 or end > len(data):
        raise ValueError(f"shape {shape} needs {end:,} bytes, the file has {len(data):,}")
    array = np.frombuffer(data, dtype, count, start)
    array = array.reshape(shape, order="F" if is_fortran else "C")
    return array, data[end:]

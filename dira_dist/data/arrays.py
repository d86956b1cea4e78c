"""Arrays in shards: NPY members, which hold what no image format does; read without trusting their header."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy


def array_header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an NPY file's array.

    Raises:
        ValueError: it is none.
    """
    shape, _, dtype, _ = _parse(data)
    return shape, dtype


def decode_array(data: bytes, check: Callable[[tuple[int, ...]], None]) -> npt.NDArray[Any]:
    """The array of an NPY file, as a view of its bytes where they are in C order and this machine's.

    Args:
        data: the file.
        check: raises ValueError for a shape that is not wanted, before anything is read.

    Raises:
        ValueError: it is no whole NPY file of numbers, or ``check`` refuses its shape.
    """
    shape, in_fortran_order, dtype, start = _parse(data)
    check(shape)
    wanted, found = math.prod(shape) * dtype.itemsize, len(data) - start
    if wanted != found or min(shape, default=1) < 1:
        raise ValueError(f"its array of shape {shape} and type {dtype} has {found} bytes, where {wanted} are meant")
    array = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if in_fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _parse(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, type, and where the values begin."""
    stream = io.BytesIO(data)
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, in_fortran_order, dtype = read(stream)
    except Exception as error:  # numpy evaluates the header, which fails in many ways
        raise ValueError(f"its array is no NPY file: {type(error).__name__}: {error}") from error
    if dtype.kind not in "buif":
        raise ValueError(f"its array holds {dtype}, which are no numbers")
    return shape, in_fortran_order, dtype, stream.tell()

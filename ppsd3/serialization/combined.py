"""Paddle's ``.pdiparams``: tensors one after the other, each with a header. Read to see whether a file is whole."""

from __future__ import annotations

import math
import os
import struct
from typing import IO

# Bytes of a value, by the number of the dtype in Paddle's ``VarType.Type``: bool, int16 ... float64, uint8,
# int8, bfloat16.
_WIDTHS = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2}


def is_whole(path: str) -> bool:
    """Whether the file at ``path`` ends with a tensor, and not within one."""
    size, end = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while end < size:
            file.seek(end)
            try:
                end = _end_of_tensor(file)
            except (struct.error, KeyError, ValueError):  # cut within a header
                return False
    return end == size > 0


def _end_of_tensor(file: IO[bytes]) -> int:
    """Where the tensor that begins at the present position ends."""
    _, levels = struct.unpack("<IQ", file.read(12))  # version, levels of detail
    for _ in range(levels):
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(length, os.SEEK_CUR)
    _, length = struct.unpack("<Ii", file.read(8))  # version, bytes of the description
    fields = _fields(file.read(length))
    (dtype,) = (value for number, value in fields if number == 1)
    return file.tell() + _WIDTHS[dtype] * math.prod(value for number, value in fields if number == 2)


def _fields(message: bytes) -> list[tuple[int, int]]:
    """(number, value) of the fields of a protobuf message that has integers alone."""
    values, value, shift = [], 0, 0
    for byte in message:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value, shift = 0, 0
    return [(key >> 3, value) for key, value in zip(values[::2], values[1::2])]
